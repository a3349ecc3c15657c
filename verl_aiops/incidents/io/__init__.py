"""Incidents from and to files."""

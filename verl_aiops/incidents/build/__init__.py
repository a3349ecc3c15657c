"""Data files made of incidents."""

"""Preference learning and incident-triage rewards for stock verl."""

__version__ = "0.1.0"

"""Preference pairs of a model's own answers."""

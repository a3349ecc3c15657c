"""Runs side by side: which rows go together, what changed, and whether it is more than chance."""

"""Investigations: conversations in which the model calls tools over a case, on any rollout engine of verl."""

"""Conversations of several rounds, on any rollout engine of verl."""

"""A run's folder: what it notes of itself, how it is resumed, and how it ends."""

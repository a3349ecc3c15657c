"""A model asked, its answers kept, and what they come to."""

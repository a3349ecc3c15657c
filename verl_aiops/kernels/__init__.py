"""Layers computed otherwise than their module would, to the same numbers."""

"""Files that users bring: what they are by their first bytes, and reading them so that each fault is one clear message.

Nothing here knows what a row means; `data`, `incidents`, `rewards` and `evaluation` do.
"""

"""Reward models: asked, transformed, and combined with a rule reward."""

"""Comparisons and curves as text, pages and plots."""

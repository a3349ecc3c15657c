"""Evaluation of investigations: cases asked with tools, their verdicts scored by the reward, tables and comparisons."""

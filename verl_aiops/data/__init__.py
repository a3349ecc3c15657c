"""Preference data for any task: read, check, tokenise. Needs a tokenizer of transformers and nothing of verl."""

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.data.preference import DataReport, PreferenceDataset

__all__ = ["DataReport", "PreferenceDataError", "PreferenceDataset"]

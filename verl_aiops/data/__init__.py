"""Preference data for any task: read, check, tokenise. Needs a tokenizer of transformers and nothing of verl."""

from verl_aiops.data.dataset import DataReport, PreferenceDataset
from verl_aiops.data.errors import PreferenceDataError

__all__ = ["DataReport", "PreferenceDataError", "PreferenceDataset"]

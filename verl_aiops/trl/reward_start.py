"""What a reward model's training starts from: tokenizer, padding, and the classifier."""

from __future__ import annotations

from typing import Any

from verl_aiops.data import scored_rows
from verl_aiops.inputs.weights_file import cut_short
from verl_aiops.trl.extra import TrainingError, in_a_line, load_tokenizer
from verl_aiops.trl.reward_data import RewardPairs
from verl_aiops.trl.reward_settings import RewardTraining
from verl_aiops.trl.run import pick_device

__all__ = ["chat_tokenizer", "load_model", "padding_token"]


def chat_tokenizer(model: str) -> Any:
    """Raises TrainingError if there is none, or it has no chat template."""
    tokenizer = load_tokenizer(model)
    if not tokenizer.chat_template:
        raise TrainingError(f"--model {model}: its tokenizer has no chat template, by which conversations are rendered")
    return tokenizer


def padding_token(tokenizer, *parts: RewardPairs) -> int:
    """A token to pad with that no conversation ends with. Raises TrainingError if the tokenizer has none."""
    token = scored_rows.padding_token(tokenizer, {ids[-1] for part in parts for ids in part.conversations})
    if token is None:
        raise TrainingError("every special token of the tokenizer ends a conversation, so none is left to pad with")
    return token


def load_model(settings: RewardTraining, longest: int) -> Any:
    """The classifier that training starts from, its score head drawn from the seed.

    Args:
        longest: tokens of the longest conversation.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed

    pick_device(settings.device)
    set_seed(settings.seed)
    if cut := cut_short(settings.model):
        raise TrainingError(f"--model {settings.model}: {cut}")
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            settings.model, num_labels=1, dtype=getattr(torch, settings.dtype)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"--model {settings.model} cannot be loaded as a classifier: {in_a_line(error)}") from None
    if not hasattr(model, "score"):
        raise TrainingError(f"--model {settings.model}: {type(model).__name__} is no decoder with a score head")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions and longest > positions:
        raise TrainingError(
            f"--max-length {settings.max_length}: a conversation has {longest} tokens, and the model {positions} "
            f"positions; choose --max-length {positions}"
        )
    return model

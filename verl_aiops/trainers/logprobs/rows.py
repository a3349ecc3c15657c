"""The log-prob backend `rows`: two rows per pair, each with the prompt."""

from __future__ import annotations

import inspect

import torch
from tensordict import TensorDict

__all__ = ["rows_answer_log_probs"]


def _takes_logits_to_keep(module: torch.nn.Module) -> bool:
    module = getattr(module, "_fsdp_wrapped_module", module)
    if hasattr(module, "get_base_model"):
        module = module.get_base_model()
    return "logits_to_keep" in inspect.signature(module.forward).parameters


def _labelled_positions(
    prompt_lengths: torch.Tensor, answer_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of every position that predicts an answer token, flat, answer after answer."""
    rows = torch.repeat_interleave(torch.arange(len(answer_lengths), device=answer_lengths.device), answer_lengths)
    first = torch.cumsum(answer_lengths, 0) - answer_lengths
    within = torch.arange(len(rows), device=rows.device) - first[rows]
    return rows, prompt_lengths[rows] - 1 + within


def rows_answer_log_probs(
    module: torch.nn.Module, batch: TensorDict, *, packed: bool, device: torch.device | str
) -> torch.Tensor:
    """Two rows per pair, each prompt and answer on its own; any Hugging Face causal language model.

    The vocabulary projection runs only where an answer token is predicted, and the log-probs are taken in
    float32 whatever dtype the model computes in: DPO compares sums over whole answers, and bfloat16 log-probs
    lose three digits of them.

    Args:
        module: the (FSDP-wrapped) model.
        batch: nested ``input_ids``, ``position_ids`` and ``responses``, plus ``prompt_lengths`` (rows,).
        packed: all rows in one sequence without padding (needs attention that separates them by position ids).
        device: where the model computes.

    Returns:
        nested (rows, answer length), float32.
    """
    batch = batch.select("input_ids", "position_ids", "responses", "prompt_lengths").to(device)
    input_ids = batch["input_ids"]
    responses = batch["responses"]
    offsets = responses.offsets()
    rows, columns = _labelled_positions(batch["prompt_lengths"], offsets.diff())
    keep = _takes_logits_to_keep(module)
    if packed:
        flat = input_ids.offsets()[rows] + columns
        arguments = {
            "input_ids": input_ids.values().unsqueeze(0),
            "attention_mask": None,
            "position_ids": batch["position_ids"].values().unsqueeze(0),
        }
        if keep:
            logits = module(**arguments, use_cache=False, logits_to_keep=flat).logits.squeeze(0)
        else:
            logits = module(**arguments, use_cache=False).logits.squeeze(0)[flat]
    else:
        lengths = input_ids.offsets().diff()
        width = int(lengths.max())
        mask = torch.arange(width, device=lengths.device).unsqueeze(0) < lengths.unsqueeze(1)
        arguments = {
            "input_ids": torch.nested.to_padded_tensor(input_ids, padding=0, output_size=(len(lengths), width)),
            "attention_mask": mask.long(),
            "position_ids": torch.nested.to_padded_tensor(
                batch["position_ids"], padding=0, output_size=(len(lengths), width)
            ),
        }
        if keep:
            # one stretch of columns serves every row of the micro-batch
            low, high = int(columns.min()), int(columns.max()) + 1
            wanted = torch.arange(low, high, device=lengths.device)
            logits = module(**arguments, use_cache=False, logits_to_keep=wanted).logits[rows, columns - low]
        else:
            logits = module(**arguments, use_cache=False).logits[rows, columns]
    logits = logits.float()
    # not log_softmax: over a vocabulary of 49,152 its CPU kernel is off by 1e-5 per token, always to the same side
    log_probs = logits.gather(-1, responses.values().unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
    return torch.nested.nested_tensor_from_jagged(log_probs, offsets)

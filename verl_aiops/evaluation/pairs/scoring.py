"""Log-probs of both answers of each pair under a model in a folder, by the code that DPO trains with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from verl_aiops.evaluation.device import pick_device
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.models.folders import ModelFolder

if TYPE_CHECKING:
    from verl_aiops.data import PreferenceDataset

__all__ = ["PairScores", "load_tokenizer", "score_pairs"]


class PairScores(NamedTuple):
    """(pairs,) float64 each: sums of token log-probs in nats, over the trained tokens of an answer."""

    chosen: np.ndarray
    rejected: np.ndarray


def load_tokenizer(model: ModelFolder, option: str) -> Any:
    """The folder's tokenizer, as the trainers load it. Raises EvaluationError."""
    from verl.utils import hf_tokenizer

    try:
        return hf_tokenizer(str(model.settings))
    except Exception as error:  # transformers raises what its readers raise
        said = " ".join(str(error).split())[:300]
        raise EvaluationError(f"{option} {model.path}: its tokenizer cannot be loaded: {said}") from error


def score_pairs(
    model: ModelFolder,
    pairs: PreferenceDataset,
    *,
    option: str,
    scratch: Path,
    device: str = "auto",
    dtype: str = "float32",
    batch_tokens: int = 4096,
    progress: bool = True,
) -> PairScores:
    """Both answers' log-probs of all pairs.

    Args:
        option: which of the command's models it is, for messages and the progress bar.
        scratch: folder where a checkpoint of verl is merged; removed again.
        device: ``auto`` is the GPU where there is one.
        dtype: of the weights; log-probs are float32 in any case.
        batch_tokens: most tokens that go through the model together; a pair that has more goes alone.

    Raises:
        EvaluationError: a pair is longer than the model's positions, there is no such device, or a log-prob is not
            finite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from verl_aiops.trainers.dpo.batches import pair_batch
    from verl_aiops.trainers.logprobs import LOGPROB_BACKENDS

    found = pick_device()
    if device == "cuda" != found:
        raise EvaluationError("--device cuda: PyTorch finds no GPU; use cpu, or auto")
    where = found if device == "auto" else device
    sums = np.zeros((len(pairs), 2))
    with model.weights(scratch) as folder:
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    _check_positions(module.config, pairs, f"{option} {model.path}")
    module.to(where).eval()
    bar = tqdm(total=len(pairs), desc=option.removeprefix("--"), unit=" pairs", disable=None if progress else True)
    with bar, torch.no_grad():
        for places in _batches(pairs.lengths, batch_tokens):
            batch = pair_batch([pairs[at] for at in places], mini_pairs=len(places))
            values = LOGPROB_BACKENDS["rows"](module, batch, packed=False, device=where)
            masks = batch["response_mask"].unbind()
            of_rows = [
                float((row.cpu().double() * mask).sum()) for row, mask in zip(values.unbind(), masks, strict=True)
            ]
            sums[places] = np.array(of_rows).reshape(-1, 2)
            bar.update(len(places))
    bad = np.flatnonzero(~np.isfinite(sums).all(1))
    if len(bad):
        raise EvaluationError(
            f"{option} {model.path}: the log-probs of {len(bad)} of {len(pairs)} pairs are not finite, first of "
            f"{pairs[int(bad[0])]['id']}: are its weights whole? float16 overflows where float32 does not"
        )
    return PairScores(sums[:, 0], sums[:, 1])


def _check_positions(config: Any, pairs: PreferenceDataset, where: str) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = int((pairs.lengths[:, 0] + pairs.lengths[:, 1:].max(axis=1)).max())
    if limit and longest > limit:
        raise EvaluationError(
            f"{where}: the longest prompt with an answer has {longest} tokens, the model has {limit} positions. Give "
            "--max-prompt-length and --max-response-length, and --truncation left or drop"
        )


def _batches(lengths: np.ndarray, tokens: int) -> Iterator[list[int]]:
    """Pairs of like lengths together, as many as have at most ``tokens`` with padding.

    Args:
        lengths: (pairs, 3), tokens of prompt, chosen and rejected answer.
    """
    longest = lengths[:, 0] + lengths[:, 1:].max(axis=1)
    batch: list[int] = []
    for at in np.argsort(-longest, kind="stable").tolist():
        # the first of a batch is its longest
        if batch and 2 * (len(batch) + 1) * int(longest[batch[0]]) > tokens:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch

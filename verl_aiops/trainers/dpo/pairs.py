"""Preference data on its way to the workers: loaded, and arranged for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.data.fields import column_keys
from verl_aiops.files import default_cache_dir
from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.dpo.batches import pair_batch
from verl_aiops.trainers.dpo.order import PairOrder, check_saved_order, data_lines, order_seed, pair_order
from verl_aiops.trainers.together import in_blocks, shared_out

__all__ = [
    "PairOrder",
    "arrange",
    "check_saved_order",
    "data_lines",
    "load_pairs",
    "order_seed",
    "pair_batch",
    "pair_order",
    "pair_tokens",
]


def load_pairs(
    data: DictConfig, tokenizer, split: str, *, limit: int | None = None, dpo: DPOConfig | None = None
) -> PreferenceDataset:
    """The preference data of a run, tokenised and checked.

    Args:
        data: verl's ``data`` section.
        split: ``"train"`` or ``"val"``.
        limit: read this many rows from the beginning, whatever ``*_max_samples`` says.
        dpo: the run's settings, whose losses decide which examples rows give. Default: pairs.

    Raises:
        PreferenceDataError: bad files or rows; rows that the losses cannot take, or that lack what they need.
    """
    most = data.get(f"{split}_max_samples", -1) or -1
    files = data[f"{split}_files"]
    pairs = PreferenceDataset(
        OmegaConf.to_container(files) if OmegaConf.is_config(files) else files,
        tokenizer,
        max_prompt_length=data.max_prompt_length,
        max_response_length=data.max_response_length,
        truncation=data.truncation,
        limit=limit if limit is not None else (most if most > 0 else None),
        # like verl's own data sets: *_max_samples draws at random where the data is shuffled
        seed=order_seed(data) if limit is None and data.shuffle else None,
        **column_keys(data),
        text_pairs=data.get("text_pairs"),
        apply_chat_template_kwargs=OmegaConf.to_container(data.apply_chat_template_kwargs or OmegaConf.create({})),
        **(_examples_of(dpo) if dpo else {}),
        # a look at the first rows is quick, and not worth a file
        cache_dir=default_cache_dir("tokens") if limit is None else None,
    )
    # of rows that were only looked at, the others may have some
    if limit is None or pairs.report.rows < limit:
        _check_whole(pairs, f"data.{split}_files", dpo)
    return pairs


def _examples_of(dpo: DPOConfig) -> dict[str, Any]:
    """What a run makes of its rows, as `PreferenceDataset` takes it."""
    names = ("comparisons", "gap_weight", "yes_from_score")
    return {"kinds": dpo.kinds, "scored": dpo.scored, **{name: getattr(dpo, name) for name in names}}


def _check_whole(pairs: PreferenceDataset, key: str, dpo: DPOConfig | None) -> None:
    """Raises PreferenceDataError where nothing is to be learnt of all rows together."""
    if pairs.report.notes.get("no_weight") == pairs.report.kept:
        raise PreferenceDataError(
            f"{key}: all {pairs.report.kept} {pairs.report.what} have the weight 0, so there is nothing to learn from "
            "them. Give weights above 0, or remove the column."
        )
    if dpo is None:
        return
    if dpo.scored:
        dpo.check_data(pairs, key)
        return
    if dpo.estimates_kl and pairs.lacks_kl:
        raise PreferenceDataError(
            f"{key}: algorithm.dpo.loss_type={dpo.loss_type} estimates the KL by answers to other prompts, and all "
            "single answers have one prompt. Give answers to another prompt too, or use apo_zero_unpaired or bco."
        )
    if dpo.score_margin and not any(pairs[at].get("margin") for at in range(len(pairs))):
        raise PreferenceDataError(
            f"{key}: algorithm.dpo.score_margin={dpo.score_margin} has no effect, as no pair has scores. Give a margin "
            "column, or groups with scores; or remove it."
        )


def pair_tokens(dataset: PreferenceDataset, *, alone: bool = False) -> np.ndarray:
    """(examples,) tokens that an example costs as rows; with ``alone`` of single answers without those for the KL."""
    prompts, answers = dataset.lengths[:, 0], dataset.lengths[:, 1:].copy()
    if alone:
        answers[dataset.kinds == "single", 1:] = 0
    return prompts * (answers > 0).sum(axis=1) + answers.sum(axis=1)


def arrange(
    lengths: Sequence[int],
    mini_pairs: int,
    ranks: int,
    *,
    prompts: Sequence[Hashable] | None = None,
    cost: Callable[[list[int]], int] | None = None,
) -> list[int]:
    """Order of a step's pairs in which every data-parallel rank gets its share of every mini-batch.

    Workers receive contiguous, equal parts and cut their own part into mini-batches, so a plain order would give
    mini-batches of other pairs for another number of workers. Inside a mini-batch tokens are balanced over ranks, and
    a prompt's examples are on one rank wherever equal numbers allow it.

    Args:
        lengths: tokens of each pair, in the step's order.
        mini_pairs: pairs per optimizer step, all ranks together; divides ``len(lengths)``.
        ranks: data-parallel size; divides ``mini_pairs``.
        prompts: of each pair. Default: no prompt is there twice.
        cost: tokens that the model sees of the pairs at these positions, which have one prompt. Default: all of theirs.

    Returns:
        positions into the step's pairs: rank 0's mini-batches one after another, then rank 1's, ...
    """
    if prompts is None or len(set(prompts)) == len(prompts):
        prompts, cost = range(len(lengths)), None
    weigh = cost or (lambda pairs: sum(lengths[at] for at in pairs))
    parts: list[list[int]] = [[] for _ in range(ranks)]
    # the same mini-batches whatever the number of ranks
    order = in_blocks(prompts, mini_pairs)
    for start in range(0, len(order), mini_pairs):
        mini = order[start : start + mini_pairs]
        shares = shared_out(
            [prompts[at] for at in mini], ranks, lambda items, mini=mini: weigh([mini[item] for item in items])
        )
        for part, share in zip(parts, shares, strict=True):
            part += [mini[item] for item in share]
    return [at for part in parts for at in part]

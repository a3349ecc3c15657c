"""Pairs on their way to the workers: loading, and batches in which a pair is never torn apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.trainers.batch import ROWS_PER_PAIR, AnswerBatch, nested
from verl_aiops.trainers.dpo.order import PairOrder, check_saved_order, data_lines, order_seed, pair_order
from verl_aiops.trainers.reference.cache import default_cache_dir
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


def load_pairs(data: DictConfig, tokenizer, split: str, *, limit: int | None = None) -> PreferenceDataset:
    """The preference data of a run, tokenised and checked.

    Args:
        data: verl's ``data`` section.
        split: ``"train"`` or ``"val"``.
        limit: read this many rows from the beginning, whatever ``*_max_samples`` says.

    Raises:
        PreferenceDataError: bad files or rows.
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
        prompt_key=data.get("prompt_key", "prompt"),
        chosen_key=data.get("chosen_key", "chosen"),
        rejected_key=data.get("rejected_key", "rejected"),
        apply_chat_template_kwargs=OmegaConf.to_container(data.apply_chat_template_kwargs or OmegaConf.create({})),
        # a look at the first rows is quick, and not worth a file
        cache_dir=default_cache_dir("tokens") if limit is None else None,
    )
    # of rows that were only looked at, the others may have some
    whole = limit is None or pairs.report.rows < limit
    if whole and pairs.report.notes.get("no_weight") == pairs.report.kept:
        raise PreferenceDataError(
            f"data.{split}_files: all {pairs.report.kept} {pairs.report.what} have the weight 0, so there is nothing to "
            "learn from them. "
            "Give weights above 0, or remove the column."
        )
    return pairs


def pair_tokens(dataset: PreferenceDataset) -> np.ndarray:
    """(pairs,) tokens that a pair costs as two rows."""
    prompt, chosen, rejected = dataset.lengths.T
    return 2 * prompt + chosen + rejected


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


def pair_batch(
    examples: Sequence[dict],
    *,
    mini_pairs: int,
    reference: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    counted: Sequence[bool] | None = None,
    behaviour: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
    ranks: int = 1,
    logprob_backend: str = "rows",
    **settings,
) -> TensorDict:
    """Rows chosen, rejected, chosen, rejected, ... for verl's engines.

    Args:
        examples: items of :class:`PreferenceDataset`, already arranged for the ranks; instead of ``prompt_ids`` they
            may have ``chosen_prompt_ids`` and ``rejected_prompt_ids``.
        mini_pairs: pairs per optimizer step over all ranks, the denominator of the mean.
        reference: token log-probs of chosen and rejected answers for each example.
        counted: False for examples that only fill up the batch. Default: all True.
        behaviour: token log-probs of both answers under the policy that sampled them.
        ranks: data-parallel size the examples are arranged for.
        logprob_backend: with ``shared_prompt``, a rejected row's ``input_ids`` are its answer alone, so that what
            counts tokens (micro-batches under a budget, MFU) counts those that the model really sees.
        settings: non-tensor entries (micro-batch size and the like).

    Returns:
        the columns of `batch.AnswerBatch`.
    """
    counted = [True] * len(examples) if counted is None else list(counted)
    inputs, prompts, answers, masks, weights = [], [], [], [], []
    numbers: dict[bytes, int] = {}
    prompt_number: list[int] = []
    shares = logprob_backend == "shared_prompt"
    for example in examples:
        for side in ("chosen", "rejected"):
            # answers that were sampled each bring the prompt that they were given
            prompt = torch.as_tensor(example.get(f"{side}_prompt_ids", example.get("prompt_ids")), dtype=torch.int64)
            answer = torch.as_tensor(example[f"{side}_ids"], dtype=torch.int64)
            prompt_number.append(numbers.setdefault(prompt.numpy().tobytes(), len(numbers)))
            # a pair's prompt goes through the model once, and is counted as often; other pairs of the same prompt may
            # be in other micro-batches
            seen = shares and side == "rejected" and prompt_number[-1] == prompt_number[-2]
            inputs.append(answer if seen else torch.cat([prompt, answer]))
            prompts.append(prompt)
            answers.append(answer)
            masks.append(torch.as_tensor(example[f"{side}_mask"], dtype=torch.float32))
            weights.append(float(example["weight"]))
    chosen_tokens = [float(mask.sum()) for mask in masks[0::ROWS_PER_PAIR]]
    means, counts = _per_mini_batch(chosen_tokens, mini_pairs, ranks, counted)
    batch = AnswerBatch(
        input_ids=nested(inputs),
        position_ids=nested([torch.arange(len(ids)) for ids in inputs]),
        prompts=nested(prompts),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        prompt_number=torch.tensor(prompt_number),
        responses=nested(answers),
        response_mask=nested(masks),
        beats=torch.tensor([[1], [0]]).repeat(len(examples), 1),
        pair_weight=torch.tensor(weights),
        counted=torch.tensor([float(real) for real in counted]).repeat_interleave(ROWS_PER_PAIR),
        mean_chosen_length=means,
        global_pairs=counts,
    )
    if reference is not None:
        batch.ref_log_probs = nested([torch.as_tensor(side) for pair in reference for side in pair])
    if behaviour is not None:
        batch.behaviour_log_probs = nested([side.float() for pair in behaviour for side in pair])
    return batch.to_tensordict(force_group_size=ROWS_PER_PAIR, logprob_backend=logprob_backend, **settings)


def _per_mini_batch(
    chosen_tokens: list[float], mini_pairs: int, ranks: int, counted: list[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean chosen length and number of counted pairs of each row's mini-batch, both (rows,), for pairs arranged as
    :func:`arrange` does."""
    # on each rank the first `share` pairs are its part of the first mini-batch, and so on
    share = mini_pairs // ranks
    per_rank = len(chosen_tokens) // ranks
    tokens = np.asarray(chosen_tokens)
    real = np.asarray(counted)
    number = (np.arange(len(tokens)) % per_rank) // share
    minis = [(number == k) & real for k in range(per_rank // share)]
    means, counts = np.array([tokens[mini].mean() for mini in minis]), np.array([mini.sum() for mini in minis])
    return tuple(torch.from_numpy(values[number].repeat(ROWS_PER_PAIR)).float() for values in (means, counts))

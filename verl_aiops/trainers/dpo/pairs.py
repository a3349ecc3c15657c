"""Pairs on their way to the workers: loading, order, and batches in which a pair is never torn apart."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from verl_aiops.data import PreferenceDataError, PreferenceDataset
from verl_aiops.data.repeats import count_shared, count_untrained, shared_text
from verl_aiops.trainers.batch import ROWS_PER_PAIR, AnswerBatch, nested
from verl_aiops.trainers.reference.cache import default_cache_dir

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
    if whole and pairs.report.notes.get("no_weight") == len(pairs):
        raise PreferenceDataError(
            f"data.{split}_files: all {len(pairs)} pairs have the weight 0, so there is nothing to learn from them. "
            "Give weights above 0, or remove the column."
        )
    return pairs


def order_seed(data: DictConfig) -> int:
    """``data.seed``, or 1 where it is null: runs that set nothing are repeatable too."""
    return data.seed if data.seed is not None else 1


class PairOrder:
    """Which pairs make up which step: a function of the seed and the step number alone, so that a resumed run
    sees exactly the data that an uninterrupted one would have seen.

    Args:
        pairs: number of pairs in the data set.
        batch: pairs per step; the remainder of an epoch is left to other epochs' shuffles.
        seed: of the shuffles; ignored without ``shuffle``.
        shuffle: a new permutation every epoch, or the file's order every time.
        data_digest: identity of the tokenised data, kept in the checkpoint.
    """

    def __init__(self, pairs: int, batch: int, *, seed: int, shuffle: bool, data_digest: str):
        self.pairs, self.batch, self.seed, self.shuffle, self.data_digest = pairs, batch, seed, shuffle, data_digest
        self.steps_per_epoch = pairs // batch

    def epoch(self, epoch: int) -> np.ndarray:
        """All pairs in the order of that epoch (0-based)."""
        if not self.shuffle:
            return np.arange(self.pairs)
        return np.random.default_rng([self.seed, epoch]).permutation(self.pairs)

    def step(self, step: int) -> np.ndarray:
        """Pairs of a step (1-based, counted over the whole run)."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        return self.epoch(epoch)[position * self.batch : (position + 1) * self.batch]

    def state_dict(self) -> dict:
        return {k: getattr(self, k) for k in ("pairs", "batch", "seed", "shuffle", "data_digest")}

    def load_state_dict(self, state: dict) -> None:
        """Refuse a checkpoint that was made on other data or in another order."""
        own = self.state_dict()
        changed = [f"{k}: {state.get(k)!r} then, {own[k]!r} now" for k in own if state.get(k) != own[k]]
        if changed:
            raise ValueError(
                "the checkpoint was made with other training data or another order of it (" + "; ".join(changed) + "). "
                "Resuming would repeat or skip pairs. Use the same files and data settings, or start anew with "
                "trainer.resume_mode=disable and another trainer.default_local_dir."
            )


def pair_order(train: PreferenceDataset, data: DictConfig) -> PairOrder:
    """The order in which a run takes its training pairs; ``data`` is verl's section."""
    return PairOrder(
        len(train), data.train_batch_size, seed=order_seed(data), shuffle=data.shuffle, data_digest=train.identity()
    )


def check_saved_order(folder: str, order: PairOrder) -> None:
    """Raises ValueError if a checkpoint was made on other data or in another order, by what verl has saved of it."""
    path = os.path.join(folder, "data.pt")
    if os.path.isfile(path):
        order.load_state_dict(torch.load(path, weights_only=True))


def data_lines(train: PreferenceDataset, val: PreferenceDataset | None, order: PairOrder, steps: int) -> list[str]:
    """What is to be said of a run's data: pairs that no step trains on, and held-out pairs that are trained on."""
    lines = []
    untrained = count_untrained(len(train), order.batch, steps, order.epoch)
    if untrained:
        lines.append(
            f"{untrained} of {len(train)} training pairs are in none of the {steps} steps of {order.batch} pairs (an "
            f"epoch has {order.steps_per_epoch} steps)"
        )
    shared = count_shared(map(bytes, val.row_digests()), map(bytes, train.row_digests())) if val else 0
    if shared:
        lines.append(shared_text(shared, len(val)))
    return lines


def pair_tokens(dataset: PreferenceDataset) -> np.ndarray:
    """(pairs,) tokens that a pair costs as two rows."""
    prompt, chosen, rejected = dataset.lengths.T
    return 2 * prompt + chosen + rejected


def arrange(lengths: Sequence[int], mini_pairs: int, ranks: int) -> list[int]:
    """Order of a step's pairs in which every data-parallel rank gets its share of every mini-batch.

    Workers receive contiguous, equal parts and cut their own part into mini-batches, so a plain order would give
    mini-batches of other pairs for another number of workers. Inside a mini-batch tokens are balanced over ranks.

    Args:
        lengths: tokens of each pair, in the step's order.
        mini_pairs: pairs per optimizer step, all ranks together; divides ``len(lengths)``.
        ranks: data-parallel size; divides ``mini_pairs``.

    Returns:
        positions into the step's pairs: rank 0's mini-batches one after another, then rank 1's, ...
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    for start in range(0, len(lengths), mini_pairs):
        mini = list(range(start, start + mini_pairs))
        if ranks == 1:
            # nothing to balance, and pairs stay in the order of the data
            parts[0] += mini
            continue
        shares = get_seqlen_balanced_partitions([lengths[i] for i in mini], ranks, equal_size=True)
        for part, share in zip(parts, shares, strict=True):
            part += [mini[i] for i in sorted(share)]
    return [i for part in parts for i in part]


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

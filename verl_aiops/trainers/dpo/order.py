"""Which examples make up which step of offline DPO, and what is to be said of that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from verl_aiops.data import PreferenceDataset
from verl_aiops.data.repeats import count_shared, count_untrained, shared_text
from verl_aiops.data.shares import draw_epoch, read_shares
from verl_aiops.losses import advise_weights
from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.together import by_prompt, in_blocks

__all__ = [
    "PairOrder",
    "check_saved_order",
    "data_lines",
    "example_lines",
    "order_seed",
    "pair_order",
]


def order_seed(data: DictConfig) -> int:
    """``data.seed``, or 1 where it is null: runs that set nothing are repeatable too."""
    return data.seed if data.seed is not None else 1


class PairOrder:
    """Which examples make up which step: a function of the seed and the step number alone, so that a resumed run
    sees exactly the data that an uninterrupted one would have seen.

    Prompts are shuffled, and a prompt's examples follow one another: in one step wherever they fit into one.

    Args:
        pairs: number of examples in the data set.
        batch: examples per step; the remainder of an epoch is left to other epochs' shuffles.
        seed: of the shuffles; ignored without ``shuffle``.
        shuffle: a new permutation every epoch, or the file's order every time.
        data_digest: identity of the tokenised data, kept in the checkpoint.
        prompts: (examples,) number of each example's prompt. Default: no prompt is there twice.
        shares: of the files in each epoch, which sum to 1; with them an epoch is drawn as `data.shares` says, in which
            an example may be twice or not at all.
        files: (examples,) number of each example's file; needed with ``shares``, as ``prompts`` are.

    Attributes:
        prompts: as given, or None where no prompt is there twice.
    """

    def __init__(
        self,
        pairs: int,
        batch: int,
        *,
        seed: int,
        shuffle: bool,
        data_digest: str,
        prompts: np.ndarray | None = None,
        shares: Sequence[float] | None = None,
        files: np.ndarray | None = None,
    ):
        self.pairs, self.batch, self.seed, self.shuffle, self.data_digest = pairs, batch, seed, shuffle, data_digest
        self.steps_per_epoch = pairs // batch
        groups = [] if prompts is None else by_prompt(np.asarray(prompts).tolist())
        self.shares, self._files, self._numbers = shares, files, prompts
        repeats = 0 < len(groups) < pairs
        self.prompts = prompts if repeats else None
        # by prompt, the examples
        self._groups = groups if repeats else None
        self._epoch: tuple[int, np.ndarray] | None = None

    def epoch(self, epoch: int) -> np.ndarray:
        """All examples in the order of that epoch (0-based); with shares those that it has."""
        number = epoch if self.shuffle or self.shares else 0
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = number, self._make_epoch(number)
        return self._epoch[1].copy()

    def _make_epoch(self, epoch: int) -> np.ndarray:
        if self.shares:
            assert self._numbers is not None and self._files is not None
            drawn = draw_epoch(
                self._numbers, self._files, self.shares, seed=self.seed, epoch=epoch, shuffle=self.shuffle
            )
            # a prompt that is drawn again later is not to be pulled here
            runs = np.cumsum(np.diff(self._numbers[drawn], prepend=-1) != 0)
            return drawn[in_blocks(runs.tolist(), self.batch)]
        prompts = self.pairs if self._groups is None else len(self._groups)
        order = np.arange(prompts)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(prompts)
        if self._groups is None:
            return order
        examples = np.array([at for number in order for at in self._groups[number]])
        of_prompt = [number for number in order for _ in self._groups[number]]
        return examples[in_blocks(of_prompt, self.batch)]

    def step(self, step: int) -> np.ndarray:
        """Examples of a step (1-based, counted over the whole run)."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        return self.epoch(epoch)[position * self.batch : (position + 1) * self.batch]

    def state_dict(self) -> dict:
        state = {k: getattr(self, k) for k in ("pairs", "batch", "seed", "shuffle", "data_digest")}
        if self.shares:
            state["shares"] = list(self.shares)
        # said where it makes a difference: without a prompt that repeats, checkpoints from before can be gone on with
        return state if self._groups is None else state | {"prompts": len(self._groups)}

    def load_state_dict(self, state: dict) -> None:
        """Refuse a checkpoint that was made on other data or in another order."""
        own = self.state_dict()
        changed = [f"{k}: {state.get(k)!r} then, {own[k]!r} now" for k in own if state.get(k) != own[k]]
        if changed == [f"prompts: None then, {own.get('prompts')!r} now"]:
            changed = [
                "it took pairs of one prompt one by one, where a prompt's are taken together now: "
                f"{own['prompts']} prompts have {own['pairs']} examples"
            ]
        if changed:
            raise ValueError(
                "the checkpoint was made with other training data or another order of it (" + "; ".join(changed) + "). "
                "Resuming would repeat or skip pairs. Use the same files and data settings, or start anew with "
                "trainer.resume_mode=disable and another trainer.default_local_dir."
            )


def pair_order(train: PreferenceDataset, data: DictConfig) -> PairOrder:
    """The order in which a run takes its training examples; ``data`` is verl's section."""
    return PairOrder(
        len(train),
        data.train_batch_size,
        seed=order_seed(data),
        shuffle=data.shuffle,
        data_digest=train.identity(),
        prompts=train.prompt_numbers,
        shares=read_shares(data.get("train_shares"), _names(data.train_files), train.file_numbers),
        files=train.file_numbers,
    )


def _names(files: Any) -> list[str]:
    return [str(files)] if isinstance(files, str) else [str(name) for name in files]


_NAMES = {"pair": "pairs", "single": "single answers", "list": "lists"}


def check_saved_order(folder: str, order: PairOrder) -> None:
    """Raises ValueError if a checkpoint was made on other data or in another order, by what verl has saved of it."""
    path = os.path.join(folder, "data.pt")
    if os.path.isfile(path):
        order.load_state_dict(torch.load(path, weights_only=True))


def data_lines(train: PreferenceDataset, val: PreferenceDataset | None, order: PairOrder, steps: int) -> list[str]:
    """What is to be said of a run's data: examples that no step trains on, and held-out ones that are trained on."""
    lines = []
    what = _name_of(train)
    untrained = count_untrained(len(train), order.batch, steps, order.epoch)
    if untrained:
        lines.append(
            f"{untrained} of {len(train)} training {what} are in none of the {steps} steps of {order.batch} {what} (an "
            f"epoch has {order.steps_per_epoch} steps)"
        )
    shared = count_shared(map(bytes, val.row_digests()), map(bytes, train.row_digests())) if val else 0
    if shared:
        lines.append(shared_text(shared, len(val), _name_of(val)))
    return lines


def _name_of(data: PreferenceDataset) -> str:
    """What its examples are called, all of them together."""
    kinds = np.unique(data.kinds).tolist()
    return _NAMES[kinds[0]] if len(kinds) == 1 else "examples"


def example_lines(train: PreferenceDataset, dpo: DPOConfig) -> list[str]:
    """What data.train_batch_size counts, and whether the weights of yes and no fit their numbers."""
    kinds, numbers = np.unique(train.kinds, return_counts=True)
    counts = ", ".join(f"{number} {_NAMES[str(kind)]}" for kind, number in zip(kinds, numbers))
    prompts = len(np.unique(train.prompt_numbers))
    lines = [f"data.train_batch_size counts examples: {counts}, of {prompts} prompts"]
    yes, no = (train.report.examples.get(verdict, 0) for verdict in ("yes", "no"))
    if not yes + no:
        return lines
    if not (yes and no):
        return [*lines, f"warning: all {yes + no} single answers have a {'yes' if yes else 'no'}"]
    if dpo.scored:
        return [*lines, f"{yes} answers with a yes, {no} with a no"]
    weights = {"desirable_weight": dpo.desirable_weight, "undesirable_weight": dpo.undesirable_weight}
    if not all(weights.values()):
        return [*lines, f"{yes} answers with a yes, {no} with a no"]
    advice = advise_weights(yes, no, **weights)
    line = (
        f"{yes} answers with a yes, {no} with a no: weighted, {advice.ratio:.3g} to 1; KTO's paper (arXiv 2402.01306) "
        "recommends 1 to 4/3"
    )
    if not advice.balanced:
        low, high = advice.undesirable if yes > no else advice.desirable
        name = "undesirable_weight" if yes > no else "desirable_weight"
        line = f"warning: {line}, which algorithm.dpo.{name} between {low:.3g} and {high:.3g} gives"
    return [*lines, line]

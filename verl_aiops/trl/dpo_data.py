"""Preference files as TRL's DPO trainer reads them: the token ids and masks of our own data set, and their order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from verl_aiops.data.errors import FaultList, PreferenceDataError
from verl_aiops.data.fields import in_options_of_command, keys_of_option
from verl_aiops.data.repeats import count_shared
from verl_aiops.files import replacing

if TYPE_CHECKING:
    from datasets import Dataset

    from verl_aiops.data import PreferenceDataset
    from verl_aiops.trl.dpo_settings import DPOTraining

__all__ = [
    "COLUMNS",
    "PairSampler",
    "highest_id",
    "longest_pair",
    "on_disk",
    "read_pairs",
    "shared_pairs",
    "to_columns",
]

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "chosen_mask", "rejected_mask")


def read_pairs(files: tuple[str, ...], tokenizer, settings: DPOTraining) -> PreferenceDataset:
    """The pairs as main_ppo would train on them, checked.

    Raises:
        PreferenceDataError: files or rows that cannot be used, in the words of this command's options; weights other
            than 1, which TRL's losses have no place for.
    """
    from verl_aiops.data import PreferenceDataset

    with in_options_of_command():
        pairs = PreferenceDataset(
            list(files),
            tokenizer,
            max_prompt_length=settings.max_prompt_length,
            max_response_length=settings.max_response_length,
            truncation=settings.truncation,
            text_pairs=settings.text_pairs,
            **keys_of_option(settings.columns),
        )
    faults = FaultList()
    for at in range(len(pairs)):
        item = pairs[at]
        if item["weight"] != 1:
            faults.add(item["id"], f"weight={item['weight']}")
    if faults.count:
        raise PreferenceDataError(
            faults.message(
                f"{faults.count} of {len(pairs)} pairs have a weight other than 1, for which TRL's losses have no "
                "place; remove the column, or train with main_ppo +verl_aiops=dpo:"
            )
        )
    return pairs


def longest_pair(*parts: PreferenceDataset) -> int:
    """Tokens of the longest prompt with an answer."""
    return max(int((part.lengths[:, 0] + part.lengths[:, 1:].max(axis=1)).max()) for part in parts)


def highest_id(*parts: PreferenceDataset) -> int:
    """The largest token id of all pairs."""
    items = (part[at] for part in parts for at in range(len(part)))
    return max(int(item[name].max()) for item in items for name in ("prompt_ids", "chosen_ids", "rejected_ids"))


def shared_pairs(pairs: PreferenceDataset, others: PreferenceDataset) -> int:
    """How many of ``pairs`` the other set has too, token by token."""
    return count_shared(map(bytes, pairs.row_digests()), map(bytes, others.row_digests()))


def to_columns(pairs: PreferenceDataset) -> dict[str, list[np.ndarray]]:
    """Token ids and masks of all pairs, by the columns that TRL reads and the two masks that it does not know."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for at in range(len(pairs)):
        item = pairs[at]
        for name, rows in columns.items():
            rows.append(item[name].numpy().astype(np.int32 if name.endswith("_ids") else np.int8))
    return columns


def on_disk(pairs: PreferenceDataset, folder: Path) -> Dataset:
    """`to_columns` as a memory-mapped data set in ``folder``, from there if it stands there already.

    TRL keeps the reference's log-probs beside the file, so that a run which goes on does not score them again.
    """
    from datasets import Dataset, load_from_disk

    if not folder.is_dir():
        with replacing(folder, folder=True) as partial:
            Dataset.from_dict(to_columns(pairs)).save_to_disk(str(partial))
    return load_from_disk(str(folder))


class PairSampler(Sampler):
    """The pairs in the order in which main_ppo takes those of which each has a prompt of its own: a permutation by seed
    and epoch, and the remainder of an epoch that fills no step left to other epochs
    (`verl_aiops.trainers.dpo.order.PairOrder`, which takes pairs of one prompt together).
    """

    def __init__(self, pairs: int, batch: int, seed: int):
        self.pairs, self.used, self.seed = pairs, pairs // batch * batch, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch, 0-based."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.used

    def order(self, epoch: int) -> np.ndarray:
        """All pairs in the order of an epoch, 0-based."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.pairs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order(self.epoch)[: self.used].tolist())

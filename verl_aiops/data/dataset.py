"""The preference data set: files in, token ids out, every pair checked before training starts."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from verl_aiops.data.columns import PROMPT_COLUMNS
from verl_aiops.data.errors import FaultList, PreferenceDataError, RowFault
from verl_aiops.data.reading import FileRow, OpenedFile, open_files
from verl_aiops.data.rendering import PairRenderer
from verl_aiops.data.repeats import count_repeats
from verl_aiops.data.report import DataReport
from verl_aiops.data.rows import Columns, PreferenceRow, parse_row
from verl_aiops.data.storage import PairStore, as_array, from_array
from verl_aiops.data.token_cache import TokenCache
from verl_aiops.data.tokens import EncodedPair
from verl_aiops.inputs.parquet import BATCH_ROWS

TRUNCATIONS = ("error", "left", "drop")
_Item = TypeVar("_Item")


class PreferenceDataset(Dataset):
    """Preference pairs as token ids, tokenised when the object is made and kept in flat arrays.

    Reads parquet and JSON-lines files (one path or several) with the columns `prompt`, `chosen`, `rejected`, each a
    text or a list of {"role", "content"} messages, and optionally `id`, `group`, `weight` (default 1) and `tools`.
    Without a prompt column the answers are whole conversations and the prompt is what they begin with in common.

    An item is a dict:

        prompt_ids     int64 (P,)   tokens both answers follow
        chosen_ids     int64 (C,)   tokens of the preferred answer, with its end-of-turn token
        rejected_ids   int64 (R,)   likewise
        chosen_mask    int64 (C,)   1 where trained: all of a single answer; only the assistant's turns of several
        rejected_mask  int64 (R,)
        weight         float
        index          int          position in this data set
        id             str          the `id` column, or "file name:row"
        group          str | None

    Args:
        files: path, or sequence of paths.
        tokenizer: a transformers tokenizer; not kept.
        max_prompt_length, max_response_length: most tokens of a prompt and of an answer; None for no limit.
        truncation: what happens to rows over a limit. "error" refuses them. "left" cuts prompts from the left (a
            beginning-of-sequence token stays in front) and refuses answers over the limit: they are never cut. "drop"
            leaves rows out and counts them in `report.dropped`.
        limit: use at most this many rows: the first ones, or with `seed` a random choice in the order of the files.
            The others are not checked.
        chat_template: a Jinja template instead of the tokenizer's.
        apply_chat_template_kwargs: more variables for the template.
        progress: show a progress bar on stderr.
        cache_dir: keep the tokenised data there, and read it from there when files, tokenizer, template, settings and
            this package's rules are those it was made with.

    Raises PreferenceDataError (a ValueError) naming file and row for everything that cannot be used, all rows' faults
    in one error; ValueError for arguments out of range.
    """

    def __init__(
        self,
        files,
        tokenizer,
        *,
        max_prompt_length: int | None,
        max_response_length: int | None,
        truncation: str = "error",
        limit: int | None = None,
        seed: int | None = None,
        prompt_key: str = "prompt",
        chosen_key: str = "chosen",
        rejected_key: str = "rejected",
        id_key: str = "id",
        group_key: str = "group",
        weight_key: str = "weight",
        tools_key: str = "tools",
        chat_template: str | None = None,
        apply_chat_template_kwargs: dict | None = None,
        progress: bool = True,
        cache_dir: str | None = None,
    ):
        if truncation not in TRUNCATIONS:
            raise ValueError(f"data.truncation={truncation!r} is none of {', '.join(TRUNCATIONS)}")
        for name, value in (
            ("max_prompt_length", max_prompt_length),
            ("max_response_length", max_response_length),
            ("limit", limit),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1 is needed (None for no limit)")
        self.report = DataReport()
        self._limits = (max_prompt_length or sys.maxsize, max_response_length or sys.maxsize)
        self._truncation = truncation
        self._bos_id = tokenizer.bos_token_id
        self._store = PairStore()
        columns = Columns(prompt_key, chosen_key, rejected_key, id_key, group_key, weight_key, tools_key)
        variables = dict(apply_chat_template_kwargs or {})
        renderer = PairRenderer(tokenizer, chat_template, variables)
        cache = None
        if cache_dir is not None:
            settings: dict[str, Any] = {"columns": columns.names(), "template": chat_template, "variables": variables}
            settings |= {"limits": self._limits, "truncation": truncation, "limit": limit, "seed": seed}
            cache = TokenCache(cache_dir, [file.path for file in open_files(files)], tokenizer, settings)
        arrays = cache.load() if cache else None
        if arrays is None:
            self._load(open_files(files), columns, renderer, limit, seed, progress)
            if cache:
                cache.save(self._store.arrays() | {"report": as_array(asdict(self.report))})
        else:
            self._store, self.report = PairStore.of(arrays), DataReport(**from_array(arrays["report"]))
        self.report.warn()

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._store.item(range(len(self))[index])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt, chosen and rejected answer: int64 (pairs, 3)."""
        return self._store.lengths()

    def row_digests(self) -> np.ndarray:
        """SHA-256 of each pair's token ids and masks: uint8 (pairs, 32).

        A digest depends on what the model sees of the pair and on nothing else: not on position, id, group or weight.
        """
        return self._store.digests()

    def identity(self) -> str:
        """SHA-256 (hex) of all pairs' digests in order: equal for equal tokenised data in equal order."""
        return hashlib.sha256(self.row_digests().tobytes()).hexdigest()

    # ---- loading

    def _load(
        self,
        files: list[OpenedFile],
        columns: Columns,
        renderer: PairRenderer,
        limit: int | None,
        seed: int | None,
        progress: bool,
    ) -> None:
        # rows that cannot be used, and rows over a limit: all of them are found before either is told
        faults, too_long = FaultList(), FaultList()
        longest = (0, 0)
        row_ids = []
        found = dict.fromkeys(name for file in files for name in file.columns or ())
        self.report.unused = [name for name in found if name not in {*columns.names(), *PROMPT_COLUMNS}]
        absent = columns.optional_by_name()
        for batch in _batches(_selected(files, columns, limit, seed, progress), BATCH_ROWS):
            self.report.rows += len(batch)
            if absent:
                absent = {name: key for name, key in absent.items() if not any(name in row.values for row in batch)}
            rows = list(_parsed(batch, columns, faults))
            encoded = renderer.encode([row for _, row in rows])
            for (file_row, row), pair in zip(rows, encoded):
                if isinstance(pair, RowFault):
                    faults.add(file_row.where, str(pair))
                    continue
                sizes = len(pair.prompt_ids), max(len(pair.chosen_ids), len(pair.rejected_ids))
                longest = max(longest[0], sizes[0]), max(longest[1], sizes[1])
                if self._fit(pair, sizes):
                    self._append(pair, row, row.id if row.id is not None else file_row.name)
                    row_ids.append(row.id)
                elif self._truncation != "drop":
                    too_long.add(file_row.where, self._length_text(pair))
        if absent and (limit is None or self.report.rows < limit):  # rows that were not read may have it
            lacking = ", ".join(f"{key}={name!r}" for name, key in absent.items())
            raise PreferenceDataError(f"no row has the column of {lacking}; found: {', '.join(map(repr, found))}")
        self._raise_faults(faults, too_long, longest)
        self._store.freeze()
        self.report.kept = len(self)
        self.report.notes |= count_repeats(self._store.answers(), row_ids)
        if not len(self):
            raise PreferenceDataError(f"no pair is left: {self.report}")

    def _fit(self, pair: EncodedPair, sizes: tuple[int, int]) -> bool:
        """Cut the prompt if that is wanted; False if the pair is still over a limit, which `drop` counts."""
        prompt_fits, answers_fit = (size <= limit for size, limit in zip(sizes, self._limits))
        if answers_fit and not prompt_fits and self._truncation == "left":
            pair.prompt_ids = _cut_left(pair.prompt_ids, self._limits[0], self._bos_id)
            self.report.prompts_cut += 1
            return True
        if not (prompt_fits and answers_fit) and self._truncation == "drop":
            self.report.dropped["answer_too_long" if prompt_fits else "prompt_too_long"] += 1
        return prompt_fits and answers_fit

    def _append(self, pair: EncodedPair, row: PreferenceRow, name: str) -> None:
        self._store.append(pair, row.weight, name, row.group)
        if not row.weight:
            self.report.note("no_weight")
        self.report.prompt_end_changed += pair.prompt_end_changed
        self.report.eos_appended += pair.eos_appended
        for kind in sorted(pair.notes):
            self.report.note(kind)

    def _length_text(self, pair: EncodedPair) -> str:
        prompt, answer = ("none" if limit == sys.maxsize else limit for limit in self._limits)
        return (
            f"prompt {len(pair.prompt_ids)} tokens (limit {prompt}), chosen {len(pair.chosen_ids)}, "
            f"rejected {len(pair.rejected_ids)} (limit {answer})"
        )

    def _raise_faults(self, faults: FaultList, too_long: FaultList, longest: tuple[int, int]) -> None:
        parts = []
        if faults.count:
            parts.append(faults.message(f"{faults.count} of {self.report.rows} rows cannot be used:"))
        if too_long.count:
            remedies = ["raise data.max_prompt_length or data.max_response_length"]
            if self._truncation == "error":
                remedies.append("set data.truncation=left to cut prompts from the left (answers are never cut)")
            remedies.append("set data.truncation=drop to leave such rows out")
            parts.append(
                too_long.message(f"{too_long.count} of {self.report.rows} rows are too long:")
                + f"\nThe longest prompt has {longest[0]} tokens, the longest answer {longest[1]}. Either "
                + ", or ".join(remedies)
                + "."
            )
        if parts:
            raise PreferenceDataError("\n".join(parts))


def _cut_left(ids: list[int], limit: int, bos_id: int | None) -> list[int]:
    if ids[0] == bos_id:  # models lean heavily on it; without it the rest is read badly
        return ids[:1] + ids[len(ids) - (limit - 1) :]
    return ids[len(ids) - limit :]


def _selected(
    files: list[OpenedFile], columns: Columns, limit: int | None, seed: int | None, progress: bool
) -> Iterator[FileRow]:
    """The records to use, from all opened files, with a progress bar."""
    for file in files:
        if file.columns is not None:
            columns.check(file.columns_at, file.columns)
    total = sum(file.rows for file in files)
    wanted = np.arange(total)
    if limit is not None and limit < total:
        wanted = wanted[:limit] if seed is None else np.sort(np.random.default_rng(seed).permutation(total)[:limit])
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=len(wanted), desc="preference pairs", unit="pair", mininterval=interval, disable=not progress
    ) as bar:
        first = 0
        for file in files:
            of_file = wanted[(wanted >= first) & (wanted < first + file.rows)] - first
            first += file.rows
            if not len(of_file):
                continue
            for row in file.records([*columns.names(), *PROMPT_COLUMNS], of_file):
                yield row
                bar.update()


def _parsed(batch: list[FileRow], columns: Columns, faults: FaultList) -> Iterator[tuple[FileRow, PreferenceRow]]:
    for row in batch:
        try:
            if row.fault:
                raise RowFault(row.fault)
            yield row, parse_row(row.values, columns, row.others)
        except RowFault as fault:
            faults.add(row.where, str(fault))


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch

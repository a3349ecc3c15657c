"""From files to stored examples: every row read, checked, tokenised, and either kept, counted or told as a fault."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from verl_aiops.data.columns import PROMPT_COLUMNS
from verl_aiops.data.errors import FaultList, PreferenceDataError, RowFault
from verl_aiops.data.examples import Example, Wanted
from verl_aiops.data.fields import GROUP, PAIR, SINGLE, Columns
from verl_aiops.data.reading import FileRow, OpenedFile, ParquetFile
from verl_aiops.data.rendering import PairRenderer
from verl_aiops.data.repeats import count_label_repeats, count_repeats
from verl_aiops.data.report import DataReport
from verl_aiops.data.rows import PreferenceRow, parse_row
from verl_aiops.data.scored_rows import ScoredRenderer
from verl_aiops.data.storage import ExampleStore
from verl_aiops.data.tokens import EncodedRow
from verl_aiops.inputs.parquet import BATCH_ROWS

__all__ = ["Loader"]

_Item = TypeVar("_Item")


@dataclass
class Loader:
    """Reads the rows of files into `store` and counts what becomes of them in `report`.

    Args:
        columns, wanted: which column holds what, and what is made of a row.
        limits: most tokens of a prompt and of an answer.
        truncation: see `PreferenceDataset`.
        bos_id: the tokenizer's beginning-of-sequence token.
        text_as_chat: see `rows.parse_row`.
    """

    columns: Columns
    wanted: Wanted
    limits: tuple[int, int]
    truncation: str
    bos_id: int | None
    text_as_chat: bool = False
    store: ExampleStore = field(default_factory=ExampleStore)
    report: DataReport = field(default_factory=DataReport)

    def load(
        self,
        files: list[OpenedFile],
        renderer: PairRenderer | ScoredRenderer,
        limit: int | None,
        seed: int | None,
        progress: bool,
    ) -> None:
        """Raises PreferenceDataError."""
        columns = self.columns
        # rows that cannot be used, and rows over a limit: all of them are found before either is told
        faults, too_long = FaultList(), FaultList()
        longest = (0, 0)
        row_ids = []
        found = dict.fromkeys(name for file in files for name in file.columns or ())
        shapes: set[str] = set()
        margins: list[float] = []  # by kept row, 0 for groups
        absent = columns.optional_by_name()
        selected = _selected(files, columns, limit, seed, progress, labels="single" in self.wanted.kinds)
        for batch in _batches(selected, BATCH_ROWS):
            self.report.rows += len(batch)
            if absent:
                absent = {name: key for name, key in absent.items() if not any(name in row.values for _, row in batch)}
            rows = list(self._parsed(batch, faults))
            encoded = renderer.encode([row for _, _, row, _ in rows])
            for (number, file_row, row, examples), ids in zip(rows, encoded):
                shapes.add(row.shape)
                if isinstance(ids, RowFault):
                    faults.add(file_row.where, str(ids))
                    continue
                sizes = len(ids.prompt_ids), max(map(len, ids.answers_ids))
                longest = max(longest[0], sizes[0]), max(longest[1], sizes[1])
                if not examples:
                    self.report.dropped["all_answers_tied"] = self.report.dropped.get("all_answers_tied", 0) + 1
                elif self._fit(ids, sizes):
                    self._append(ids, row, examples, row.id if row.id is not None else file_row.name, number)
                    row_ids.append(row.id)
                    margins.append(row.margin if row.shape == PAIR else 0.0)
                elif self.truncation != "drop":
                    too_long.add(file_row.where, self._length_text(ids, row))
        read = {*columns.names(*sorted(shapes)), *PROMPT_COLUMNS}
        read |= {name for file in files for name in columns.read_beside(file.columns or ())}
        self.report.unused = [name for name in found if name not in read]
        if absent and (limit is None or self.report.rows < limit):  # rows that were not read may have it
            lacking = ", ".join(f"{key}={name!r}" for name, key in absent.items())
            raise PreferenceDataError(f"no row has the column of {lacking}; found: {', '.join(map(repr, found))}")
        self._raise_faults(faults, too_long, longest)
        self.store.freeze()
        if not len(self.store):
            raise PreferenceDataError(f"no {'pair' if shapes <= {PAIR} else 'row'} is left: {self.report}")
        if self.wanted.gap_weight:
            self._weigh_pairs(np.array(margins))
        labelled = self.store.labelled()
        self.report.notes |= count_repeats(labelled["pair"], row_ids)
        for kind, count in count_label_repeats(labelled["single"]).items():
            self.report.notes[kind] = self.report.notes.get(kind, 0) + count
        if self.store.lacks_kl:
            self.report.notes["one_prompt"] = len(labelled["single"])

    def _weigh_pairs(self, margins: np.ndarray) -> None:
        """Weights of pairs by the data set times their gap, by the mean gap of their file.

        Args:
            margins: (rows kept,), 0 where the row is no pair.
        """
        of_row = margins[self.store.columns["rows"]]
        files = self.store.columns["files"]
        factors = np.ones(len(self.store))
        for number in np.unique(files[of_row > 0]):
            its = (of_row > 0) & (files == number)
            factors[its] = of_row[its] / of_row[its].mean()
        self.store.columns["weights"] = self.store.columns["weights"] * factors

    def _parsed(
        self, batch: list[tuple[int, FileRow]], faults: FaultList
    ) -> Iterator[tuple[int, FileRow, PreferenceRow, list[Example]]]:
        for number, row in batch:
            try:
                if row.fault:
                    raise RowFault(row.fault)
                shape = self.columns.shape_of(row.values)
                parsed = parse_row(row.values, self.columns, row.others, shape, text_as_chat=self.text_as_chat)
                yield number, row, parsed, self.wanted.examples(parsed)
            except RowFault as fault:
                faults.add(row.where, str(fault))

    def _fit(self, pair: EncodedRow, sizes: tuple[int, int]) -> bool:
        """Cut the prompt if that is wanted; False if the row is still over a limit, which `drop` counts."""
        prompt_fits, answers_fit = (size <= limit for size, limit in zip(sizes, self.limits))
        if answers_fit and not prompt_fits and self.truncation == "left":
            pair.prompt_ids = _cut_left(pair.prompt_ids, self.limits[0], self.bos_id)
            self.report.prompts_cut += 1
            return True
        if not (prompt_fits and answers_fit) and self.truncation == "drop":
            self.report.dropped["answer_too_long" if prompt_fits else "prompt_too_long"] += 1
        return prompt_fits and answers_fit

    def _append(self, pair: EncodedRow, row: PreferenceRow, examples: list[Example], name: str, file: int) -> None:
        self.store.append(pair, row, examples, name=name, file=file)
        self.report.kept += 1
        for example in examples:
            what = example.kind if example.kind != "single" else "yes" if example.label else "no"
            self.report.examples[what] = self.report.examples.get(what, 0) + 1
        if not row.weight:
            self.report.note("no_weight")
        self.report.prompt_end_changed += pair.prompt_end_changed
        self.report.eos_appended += pair.eos_appended
        for kind in sorted(pair.notes):
            self.report.note(kind)

    def _length_text(self, encoded: EncodedRow, row: PreferenceRow) -> str:
        prompt, answer = ("none" if limit == sys.maxsize else limit for limit in self.limits)
        sizes = [len(ids) for ids in encoded.answers_ids]
        if row.shape == GROUP:
            answers = f"longest of {len(sizes)} completions {max(sizes)}"
        else:
            parts = ("chosen", "rejected") if row.shape == PAIR else ("completion",)
            answers = ", ".join(f"{part} {size}" for part, size in zip(parts, sizes))
        return f"prompt {len(encoded.prompt_ids)} tokens (limit {prompt}), {answers} (limit {answer})"

    def _raise_faults(self, faults: FaultList, too_long: FaultList, longest: tuple[int, int]) -> None:
        parts = []
        if faults.count:
            parts.append(faults.message(f"{faults.count} of {self.report.rows} rows cannot be used:"))
        if too_long.count:
            remedies = ["raise data.max_prompt_length or data.max_response_length"]
            if self.truncation == "error":
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
    files: list[OpenedFile], columns: Columns, limit: int | None, seed: int | None, progress: bool, *, labels: bool
) -> Iterator[tuple[int, FileRow]]:
    """The records to use, from all opened files, each with its file's number, with a progress bar."""
    for file in files:
        if file.columns is not None:
            columns.check(file.columns_at, file.columns, labels=labels)
    total = sum(file.rows for file in files)
    wanted = np.arange(total)
    if limit is not None and limit < total:
        wanted = wanted[:limit] if seed is None else np.sort(np.random.default_rng(seed).permutation(total)[:limit])
    interval = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=len(wanted), desc="preference pairs", unit="pair", mininterval=interval, disable=not progress
    ) as bar:
        first = 0
        for number, file in enumerate(files):
            of_file = wanted[(wanted >= first) & (wanted < first + file.rows)] - first
            first += file.rows
            if not len(of_file):
                continue
            # of parquet no other column is touched; the lines of a file may have other shapes than its first
            shapes = columns.shapes(file.columns) if isinstance(file, ParquetFile) else (PAIR, GROUP, SINGLE)
            names = [*columns.names(*shapes), *PROMPT_COLUMNS, *columns.read_beside(file.columns or ())]
            for row in file.records(names, of_file):
                yield number, row
                bar.update()


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch

"""The preference data set: files in, token ids out, every pair checked before training starts."""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from verl_aiops.data.columns import PROMPT_COLUMNS
from verl_aiops.data.errors import FaultList, PreferenceDataError, RowFault
from verl_aiops.data.notes import say
from verl_aiops.data.reading import open_files
from verl_aiops.data.rendering import EncodedPair, PairRenderer
from verl_aiops.data.repeats import count_repeats
from verl_aiops.data.rows import Columns, PreferenceRow, parse_row
from verl_aiops.data.storage import Ragged
from verl_aiops.data.token_cache import TokenCache
from verl_aiops.inputs.parquet import BATCH_ROWS

TRUNCATIONS = ("error", "left", "drop")
logger = logging.getLogger(__name__)


@dataclass
class DataReport:
    """What became of the rows read.

    `dropped` counts rows left out, by reason (each row under one reason); `notes` the kept rows of each kind in
    `notes.NOTES`; `unused` names columns of the files that are not read.
    """

    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: {"prompt_too_long": 0, "answer_too_long": 0})
    prompts_cut: int = 0
    prompt_end_changed: int = 0
    eos_appended: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def __str__(self):
        parts = [f"{self.kept} of {self.rows} pairs kept"]
        parts += [f"{count} dropped ({reason.replace('_', ' ')})" for reason, count in self.dropped.items() if count]
        if self.prompts_cut:
            parts.append(f"{self.prompts_cut} prompts cut from the left")
        if self.unused:
            parts.append(f"columns not used: {', '.join(self.unused)}")
        return ", ".join(parts)


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
        self._ids = {part: Ragged("i") for part in ("prompt", "chosen", "rejected")}
        self._masks = {part: Ragged("B") for part in ("chosen", "rejected")}
        self._weights, self._names, self._groups, self._row_ids = [], [], [], []
        self._digests = None
        columns = Columns(prompt_key, chosen_key, rejected_key, id_key, group_key, weight_key, tools_key)
        variables = dict(apply_chat_template_kwargs or {})
        renderer = PairRenderer(tokenizer, chat_template, variables)
        cache = None
        if cache_dir is not None:
            settings = {"columns": columns.names(), "limits": self._limits, "truncation": truncation, "limit": limit}
            settings |= {"seed": seed, "template": chat_template, "variables": variables}
            cache = TokenCache(cache_dir, [file.path for file in open_files(files)], tokenizer, settings)
        arrays = cache.load() if cache else None
        if arrays is None:
            self._load(files, columns, renderer, limit, seed, progress)
            if cache:
                cache.save(self._arrays())
        else:
            self._restore(arrays)
        self._warn()

    def __len__(self):
        return len(self._weights)

    def __getitem__(self, index):
        index = range(len(self))[index]
        item = {f"{part}_ids": torch.from_numpy(ids[index].astype(np.int64)) for part, ids in self._ids.items()}
        item |= {f"{part}_mask": torch.from_numpy(mask[index].astype(np.int64)) for part, mask in self._masks.items()}
        item |= {"weight": float(self._weights[index]), "index": index}
        return item | {"id": self._names[index], "group": self._groups[index]}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt, chosen and rejected answer: int64 (pairs, 3)."""
        return np.stack([self._ids[part].lengths() for part in ("prompt", "chosen", "rejected")], axis=1)

    def row_digests(self) -> np.ndarray:
        """SHA-256 of each pair's token ids and masks: uint8 (pairs, 32).

        A digest depends on what the model sees of the pair and on nothing else: not on position, id, group or weight.
        """
        if self._digests is None:
            lengths = self.lengths.astype("<i8")
            digests = bytearray()
            for index in range(len(self)):
                row = hashlib.sha256(lengths[index].tobytes())
                for ids in self._ids.values():
                    row.update(ids[index].astype("<i4").tobytes())
                for mask in self._masks.values():
                    row.update(mask[index].tobytes())
                digests += row.digest()
            self._digests = np.frombuffer(bytes(digests), dtype=np.uint8).reshape(-1, 32)
        return self._digests

    def identity(self) -> str:
        """SHA-256 (hex) of all pairs' digests in order: equal for equal tokenised data in equal order."""
        return hashlib.sha256(self.row_digests().tobytes()).hexdigest()

    # ---- loading

    def _load(self, files, columns, renderer, limit, seed, progress):
        faults, too_long = FaultList(), FaultList()
        longest = [0, 0]
        files = open_files(files)
        found = dict.fromkeys(name for file in files for name in file.columns or ())
        self.report.unused = [name for name in found if name not in {*columns.names(), *PROMPT_COLUMNS}]
        for batch in _batches(_selected(files, columns, limit, seed, progress), BATCH_ROWS):
            self.report.rows += len(batch)
            rows = list(_parsed(batch, columns, faults))
            encoded = renderer.encode([row for _, row in rows])
            for (record, row), pair in zip(rows, encoded):
                if isinstance(pair, RowFault):
                    faults.add(record.where, str(pair))
                    continue
                sizes = len(pair.prompt_ids), max(len(pair.chosen_ids), len(pair.rejected_ids))
                longest = [max(a, b) for a, b in zip(longest, sizes)]
                if self._fit(pair, sizes):
                    self._append(pair, row, row.id if row.id is not None else record.name)
                elif self._truncation != "drop":
                    too_long.add(record.where, self._length_text(pair))
        self._raise_faults(faults, too_long, longest)
        for store in (*self._ids.values(), *self._masks.values()):
            store.freeze()
        self._weights = np.array(self._weights, dtype=np.float64)
        self.report.kept = len(self)
        self.report.notes |= count_repeats(self._seen(), self._row_ids)
        if not len(self):
            raise PreferenceDataError(f"no pair is left: {self.report}")

    def _seen(self) -> Iterator[tuple[bytes, bytes]]:
        """Each pair's preferred and other answer after its prompt, as digests."""
        for index in range(len(self)):
            prompt = self._ids["prompt"][index].astype("<i4").tobytes()
            answers = (self._ids[part][index].astype("<i4").tobytes() for part in ("chosen", "rejected"))
            yield tuple(
                hashlib.sha256(len(prompt).to_bytes(8, "little") + prompt + answer).digest() for answer in answers
            )

    def _warn(self):
        say(self.report.notes, self.report.kept, logger)
        if self.report.prompt_end_changed:
            logger.warning(
                "%d of %d pairs: the prompt's last tokens alone are not those it has before an answer, because the "
                "chat template's generation prompt does not come back in the conversation, or tokens merge across "
                "the border. These tokens are left out, so the model is trained after a prompt that differs at its "
                "end from the one it answers in use.",
                self.report.prompt_end_changed,
                self.report.rows,
            )

    def _arrays(self) -> dict[str, np.ndarray]:
        """Everything that was made of the files, for the cache."""
        arrays = {"weights": self._weights}
        for kind, stores in (("ids", self._ids), ("masks", self._masks)):
            for part, store in stores.items():
                arrays[f"{part}_{kind}"], arrays[f"{part}_{kind}_ends"] = store.arrays()
        rest = {"names": self._names, "groups": self._groups, "report": asdict(self.report)}
        return arrays | {"rest": np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8)}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        for kind, stores in (("ids", self._ids), ("masks", self._masks)):
            for part in stores:
                stores[part] = Ragged.of(arrays[f"{part}_{kind}"], arrays[f"{part}_{kind}_ends"])
        rest = json.loads(arrays["rest"].tobytes())
        self._weights, self._names, self._groups = arrays["weights"], rest["names"], rest["groups"]
        self.report = DataReport(**rest["report"])

    def _fit(self, pair: EncodedPair, sizes) -> bool:
        """Cut the prompt if that is wanted; False if the pair is still over a limit, which `drop` counts."""
        prompt_fits, answers_fit = (size <= limit for size, limit in zip(sizes, self._limits))
        if answers_fit and not prompt_fits and self._truncation == "left":
            pair.prompt_ids = _cut_left(pair.prompt_ids, self._limits[0], self._bos_id)
            self.report.prompts_cut += 1
            return True
        if not (prompt_fits and answers_fit) and self._truncation == "drop":
            self.report.dropped["answer_too_long" if prompt_fits else "prompt_too_long"] += 1
        return prompt_fits and answers_fit

    def _append(self, pair: EncodedPair, row: PreferenceRow, name: str):
        for part, ids in self._ids.items():
            ids.append(getattr(pair, f"{part}_ids"))
        for part, mask in self._masks.items():
            mask.append(getattr(pair, f"{part}_mask"))
        self._weights.append(row.weight)
        self._names.append(name)
        self._groups.append(row.group)
        self._row_ids.append(row.id)
        if not row.weight:
            self.report.notes["no_weight"] = self.report.notes.get("no_weight", 0) + 1
        self.report.prompt_end_changed += pair.prompt_end_changed
        self.report.eos_appended += pair.eos_appended
        for kind in sorted(pair.notes):
            self.report.notes[kind] = self.report.notes.get(kind, 0) + 1

    def _length_text(self, pair):
        prompt, answer = ("none" if limit == sys.maxsize else limit for limit in self._limits)
        return (
            f"prompt {len(pair.prompt_ids)} tokens (limit {prompt}), chosen {len(pair.chosen_ids)}, "
            f"rejected {len(pair.rejected_ids)} (limit {answer})"
        )

    def _raise_faults(self, faults, too_long, longest):
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


def _cut_left(ids, limit, bos_id):
    if ids[0] == bos_id:  # models lean heavily on it; without it the rest is read badly
        return ids[:1] + ids[len(ids) - (limit - 1) :]
    return ids[len(ids) - limit :]


def _selected(files, columns, limit, seed, progress) -> Iterator:
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
            for record in file.records([*columns.names(), *PROMPT_COLUMNS], of_file):
                yield record
                bar.update()


def _parsed(batch, columns, faults):
    for record in batch:
        try:
            if record.fault:
                raise RowFault(record.fault)
            yield record, parse_row(record.values, columns, record.others)
        except RowFault as fault:
            faults.add(record.where, str(fault))


def _batches(items, size):
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch

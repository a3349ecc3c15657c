"""The preference data set: files in, token ids out, every row checked before training starts."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Dataset

from verl_aiops.data.examples import KINDS, Wanted
from verl_aiops.data.fields import Columns
from verl_aiops.data.loading import Loader
from verl_aiops.data.ragged import as_array, from_array
from verl_aiops.data.reading import open_files
from verl_aiops.data.rendering import PairRenderer
from verl_aiops.data.report import DataReport
from verl_aiops.data.scored_rows import ScoredRenderer
from verl_aiops.data.storage import ExampleStore
from verl_aiops.data.token_cache import TokenCache

TRUNCATIONS = ("error", "left", "drop")
TEXT_PAIRS = ("chat", "plain")
_Item = TypeVar("_Item")


class PreferenceDataset(Dataset):
    """Preferences as token ids, tokenised when the object is made and kept in flat arrays.

    Reads parquet and JSON files, of lines or one array (one path or several), whose rows have one of three shapes, in
    any mixture:

        pairs      `prompt`, `chosen`, `rejected`, and optionally `margin`, the gap of their scores
        groups     `prompt` and `completions`, each with a `rank` (1 is the best) or a `score`
        yes or no  `prompt`, `completion`, `label` (true or false)

    Prompts and answers are texts or lists of {"role", "content"} messages; optional are `id`, `group`, `weight`
    (default 1) and `tools`. Without a prompt column a pair's answers are whole conversations and the prompt is what
    they begin with in common. Pairs in other tools' layouts (`foreign`) are brought to these columns.

    An item is an example, what one term of a loss is made of, as a dict:

        kind            str          "pair", "single" (an answer and its label) or "list" (ranked answers)
        prompt_ids      int64 (P,)   tokens that the answers follow
        weight          float
        index           int          position in this data set
        id              str          the `id` column of the row, or "file name:row"
        group           str | None
        prompt_number   int          the same for examples of equal prompt ids
        answer_numbers  list of int  of the answers, in their order: the same for equal (prompt, answer, mask)

    A pair has

        chosen_ids      int64 (C,)   tokens of the preferred answer, with its end-of-turn token
        rejected_ids    int64 (R,)   likewise
        chosen_mask     int64 (C,)   1 where trained: all of a single answer; only the assistant's turns of several
        rejected_mask   int64 (R,)
        margin          float        by how much the preferred one's score is higher; 0 where unknown

    a single answer

        answer_ids, answer_mask   int64 (A,)
        label                     bool
        kl_ids, kl_mask           int64 (K,)   an answer to another prompt (`kl_answers`), of no tokens where all
                                               single answers of the data set have one prompt

    and a list, best first

        answers_ids, answers_masks   lists of int64 (A,)
        ranks                        list of float   1 is the best, equal where tied
        scores                       list of float   nan where unknown

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
        prompt_key: the column of the prompt; `chosen_key` and its kin name those of the other things.
        system_key: the column of system texts; with it, texts are messages.
        text_pairs: rows of texts as one user's and one assistant's message, "chat", or as they are, "plain"; by default
            as they are, and a tokenizer with a chat template is said to be passed over.
        kinds: which kinds of examples the losses of the run take; see `examples.Wanted`, as for the next three.
        comparisons: which answers of a group make pairs: "all", "best" (against the rest), "adjacent" (ranks).
        gap_weight: weigh pairs by their score gaps.
        yes_from_score: the score from which a group's answer is a yes, for losses of single answers alone.
        scored: conversations as a reward model reads them (`scored_rows`), for losses of the score of an answer's last
            token. The template is the tokenizer's own, without variables, as servers have it.
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
        margin_key: str = "margin",
        completions_key: str = "completions",
        rank_key: str = "rank",
        score_key: str = "score",
        completion_key: str = "completion",
        label_key: str = "label",
        system_key: str = "",
        text_pairs: str | None = None,
        kinds: Iterable[str] = ("pair",),
        comparisons: str = "all",
        gap_weight: bool = False,
        yes_from_score: float | None = None,
        scored: bool = False,
        chat_template: str | None = None,
        apply_chat_template_kwargs: dict | None = None,
        progress: bool = True,
        cache_dir: str | None = None,
    ):
        most = {"max_prompt_length": max_prompt_length, "max_response_length": max_response_length, "limit": limit}
        _check_arguments(truncation, text_pairs, system_key, most)
        wanted = Wanted.of(kinds, comparisons, gap_weight, yes_from_score)
        lengths = (max_prompt_length or sys.maxsize, max_response_length or sys.maxsize)
        columns = Columns(
            prompt=prompt_key,
            chosen=chosen_key,
            rejected=rejected_key,
            id=id_key,
            group=group_key,
            weight=weight_key,
            tools=tools_key,
            margin=margin_key,
            completions=completions_key,
            rank=rank_key,
            score=score_key,
            completion=completion_key,
            label=label_key,
            system=system_key,
        )
        variables = dict(apply_chat_template_kwargs or {})
        if scored and (chat_template or variables or text_pairs == "plain" or truncation == "left"):
            raise ValueError(
                "a reward model reads conversations as servers render them when it scores: whole, in the tokenizer's "
                "own chat template without variables. Remove data.apply_chat_template_kwargs, data.text_pairs=plain "
                "and data.truncation=left"
            )
        renderer = (
            ScoredRenderer(tokenizer)
            if scored
            else PairRenderer(tokenizer, chat_template, variables, plain_is_meant=text_pairs == "plain")
        )
        cache = None
        if cache_dir is not None:
            settings: dict[str, Any] = {"columns": columns.settings(), "template": chat_template}
            settings |= {"text_pairs": text_pairs, "variables": variables, "wanted": wanted.settings()}
            settings |= {"limits": lengths, "truncation": truncation, "limit": limit, "seed": seed}
            settings |= {"scored": True} if scored else {}
            cache = TokenCache(cache_dir, [file.path for file in open_files(files, arrays=True)], tokenizer, settings)
        arrays = cache.load() if cache else None
        if arrays is None:
            loader = Loader(columns, wanted, lengths, truncation, tokenizer.bos_token_id, text_pairs == "chat")
            loader.load(open_files(files, arrays=True), renderer, limit, seed, progress)
            self._store, self.report = loader.store, loader.report
            if cache:
                cache.save(self._store.arrays() | {"report": as_array(asdict(self.report))})
        else:
            self._store, self.report = ExampleStore.of(arrays), DataReport(**from_array(arrays["report"]))
        self.report.warn()

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._store.item(range(len(self))[index])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt and answers: int64 (examples, 1 + rows_per_example), 0 where an example has fewer answers.

        Of pairs alone: prompt, chosen and rejected answer, (pairs, 3).
        """
        return self._store.lengths()

    @property
    def kinds(self) -> np.ndarray:
        """(examples,) each one's kind, as text."""
        return np.array(KINDS)[self._store.columns["kinds"]]

    @property
    def prompt_numbers(self) -> np.ndarray:
        """(examples,) int64: equal for examples of equal prompt ids."""
        return self._store.prompt_numbers

    @property
    def file_numbers(self) -> np.ndarray:
        """(examples,) int64: places of their files among `files`."""
        return self._store.columns["files"].astype(np.int64)

    @property
    def rows_per_example(self) -> int:
        """The most answers of any example, 2 or more; a single answer has two with the one for its KL."""
        return self._store.rows_per_example

    @property
    def answer_numbers(self) -> np.ndarray:
        """(examples, rows_per_example) int64: equal for equal (prompt, answer, mask), -1 where there are fewer
        answers. The second of a single answer is the one for its KL."""
        return self._store.answer_numbers

    @property
    def lacks_kl(self) -> bool:
        """Whether there are single answers, and no answer to another prompt for the estimate of their KL."""
        return self._store.lacks_kl

    def answer_digests(self) -> np.ndarray:
        """SHA-256 of prompt, answer and mask, as the model sees them, by the answer's number: uint8 (answers, 32)."""
        return self._store.answer_digests()

    def row_digests(self) -> np.ndarray:
        """SHA-256 of each example's token ids and masks, label and ranks: uint8 (examples, 32).

        A digest depends on what is learnt of the example and on nothing else: not on position, id, group or weight.
        """
        return self._store.digests

    def identity(self) -> str:
        """SHA-256 (hex) of all examples' digests in order: equal for equal tokenised data in equal order."""
        return hashlib.sha256(self.row_digests().tobytes()).hexdigest()


def _check_arguments(truncation: str, text_pairs: str | None, system_key: str, most: Mapping[str, int | None]) -> None:
    if truncation not in TRUNCATIONS:
        raise ValueError(f"data.truncation={truncation!r} is none of {', '.join(TRUNCATIONS)}")
    for name, value in most.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: at least 1 is needed (None for no limit)")
    if text_pairs not in (None, *TEXT_PAIRS):
        raise ValueError(f"data.text_pairs={text_pairs!r}: expected one of {', '.join(TEXT_PAIRS)}, or null")
    if text_pairs == "plain" and system_key:
        raise ValueError(
            f"data.text_pairs=plain with data.system_key={system_key}: plain texts have no system message. Remove one "
            "of the two"
        )


def group_of(item: Mapping[str, Any]) -> str:
    """What an item of the data set shares with those that are not independent of it: its group, or else its prompt."""
    return item["group"] if item["group"] is not None else f"prompt {item['prompt_number']}"

"""Which column holds what, and by that which shape a row has: a pair, a group of ranked answers, one answer's label."""

from __future__ import annotations

import difflib
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.data.foreign import Layout, columns_read, layout_of
from verl_aiops.data.layouts import holds_another, layout_hint, setting_hint

__all__ = [
    "GROUP",
    "NAMED",
    "NO_PLACE_FOR_LABELS",
    "PAIR",
    "SCORES_OF_PAIR",
    "SINGLE",
    "Columns",
    "column_keys",
    "in_options",
    "in_options_of_command",
    "keys_of_option",
    "listed",
]

PAIR, GROUP, SINGLE = "pair", "group", "single"
# the fields of `Columns` that a run may name by settings ``data.*_key`` and commands by ``--columns``
NAMED = (
    *("prompt", "chosen", "rejected", "system", "margin", "completions", "rank", "score", "completion", "label"),
    *("id", "group", "weight", "tools"),
)
# scores of both answers, as trl-lib's and HuggingFaceH4's files have them: a pair's margin where no column says it
SCORES_OF_PAIR = ("score_chosen", "score_rejected")
NO_PLACE_FOR_LABELS = (
    "one answer a row and a label (KTO), for which no loss of this run has a place: set algorithm.dpo.loss_type=kto "
    "(beside pairs [sigmoid,kto]), or write pairs of a good and a bad answer to a prompt"
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what. `rank` and `score` are fields of each completion, or, with an s, columns beside them."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    id: str = "id"
    group: str = "group"
    weight: str = "weight"
    tools: str = "tools"
    margin: str = "margin"
    completions: str = "completions"
    rank: str = "rank"
    score: str = "score"
    completion: str = "completion"
    label: str = "label"
    # that of the system message, where a run names it: texts are then messages. Without, see `columns.SYSTEM`
    system: str = ""

    @property
    def ranks(self) -> str:
        return f"{self.rank}s"

    @property
    def scores(self) -> str:
        return f"{self.score}s"

    def names(self, *shapes: str) -> list[str]:
        """All columns that rows of these shapes are read from; of pairs where none is named."""
        names = [self.prompt]
        for shape in shapes or (PAIR,):
            names += {
                PAIR: [self.chosen, self.rejected, self.margin, *SCORES_OF_PAIR],
                GROUP: [self.completions, self.ranks, self.scores],
                SINGLE: [self.completion, self.label],
            }[shape]
        names += [self.id, self.group, self.weight, self.tools, *([self.system] if self.system else [])]
        return list(dict.fromkeys(names))

    def layout(self, place: str, found: Sequence[str]) -> Layout | None:
        """The layout of another tool that columns `found` at `place` are in, see `foreign.layout_of`."""
        return layout_of(place, found, prompt=self.prompt, chosen=self.chosen, rejected=self.rejected)

    def read_beside(self, found: Sequence[str]) -> tuple[str, ...]:
        """What of columns `found` their layout, if there is one, is read from beside `names`."""
        layout = self.layout("the file", found)
        return columns_read(layout) if layout else ()

    def settings(self) -> dict[str, str]:
        """All of it, by name."""
        return {field: getattr(self, field) for field in self.__slots__}

    def optional_by_name(self) -> dict[str, str]:
        """Columns that a file may lack but that were asked for by a name of their own: the name -> its argument."""
        optional = ("id", "group", "weight", "tools", "margin", "completions", "completion", "label")
        named = {getattr(self, field): f"{field}_key" for field in optional if getattr(self, field) != field}
        return named | ({self.system: "system_key"} if self.system else {})

    def _needed(self) -> dict[str, tuple[str, ...]]:
        """By shape, what no row of it can lack. A pair's prompt may stand inside its answers."""
        return {
            PAIR: (self.chosen, self.rejected),
            GROUP: (self.prompt, self.completions),
            SINGLE: (self.prompt, self.completion, self.label),
        }

    def shapes(self, found: Sequence[str]) -> tuple[str, ...]:
        """The shapes that rows with the columns `found` may have."""
        return tuple(shape for shape, names in self._needed().items() if set(names) <= set(found))

    def shape_of(self, values: Mapping[str, Any]) -> str:
        """The shape of a row: the first that is there whole, or, for the fault to be told of it, most of it."""
        present = {name for name, value in values.items() if value is not None}
        whole = self.shapes(tuple(present))
        if whole:
            return whole[0]

        def filled(shape: str) -> tuple[int, int]:
            own = [name for name in self._needed()[shape] if name != self.prompt]
            return sum(name in present for name in own), sum(name in values for name in own)

        return max((PAIR, GROUP, SINGLE), key=filled)  # the first of equals

    def check(self, place: str, found: Sequence[str], *, labels: bool = False) -> None:
        """Raise PreferenceDataError if columns `found` at `place` make no row of any shape nor are in a layout that is
        read, or lack a prompt asked for by name.

        Without a prompt column the prompt of a pair is what both conversations begin with, so its absence alone is no
        fault.

        Args:
            labels: whether the run has a place for single answers with labels.
        """
        for field, other in itertools.combinations(("prompt", "chosen", "rejected", "completions", "completion"), 2):
            if getattr(self, field) == getattr(self, other):
                name = getattr(self, field)
                raise PreferenceDataError(f"data.{field}_key and data.{other}_key both name the column {name!r}")
        if self.layout(place, found) is not None:
            return
        shapes = self.shapes(found)
        if shapes and (self.prompt == "prompt" or self.prompt in found):
            if shapes == (SINGLE,) and not labels:
                raise PreferenceDataError(f"{place} holds {NO_PLACE_FOR_LABELS}; found: {listed(found)}")
            return
        raise PreferenceDataError(self._lacking(place, found))

    def _lacking(self, place: str, found: Sequence[str]) -> str:
        if self.completions in found and self.prompt not in found:
            missing, hints = ["prompt"], [layout_hint(found), setting_hint(["prompt"], found)]
        else:
            required = ["chosen", "rejected"] + (["prompt"] if self.prompt != "prompt" else [])
            missing = [field for field in required if getattr(self, field) not in found]
            no_answers = missing[:2] == ["chosen", "rejected"]
            hints = [layout_hint(found, least=2)] if no_answers else []
            if not any(hints):
                for field in missing:
                    # a hint that turns pairs round would train the wrong way without a word
                    fit = [name for name in found if not holds_another(field, name)]
                    near = difflib.get_close_matches(getattr(self, field), fit, n=1, cutoff=0.5)
                    hints += [f"did you mean data.{field}_key={name}?" for name in near]
            if not any(hints):
                hints = [setting_hint(missing, found) or (layout_hint(found) if no_answers else "")]
        lacking = ", ".join(repr(getattr(self, field)) for field in missing)
        return " ".join([f"{place} lacks the column(s) {lacking}; found: {listed(found)}.", *filter(None, hints)])


def column_keys(section: Mapping[str, Any]) -> dict[str, str]:
    """Which columns a run names by themselves, as `PreferenceDataset` takes them.

    Args:
        section: verl's ``data``.
    """
    keys = {f"{field}_key": section.get(f"{field}_key") for field in NAMED}
    return {key: name for key, name in keys.items() if name is not None}


def keys_of_option(columns: str | None) -> dict[str, str]:
    """The same from the text of a command's ``--columns``: ``prompt=question,chosen=better``.

    Raises PreferenceDataError for what is no ``NAME=COLUMN``, and a name that is none of ours or stands there twice.
    """
    keys: dict[str, str] = {}
    for part in columns.split(",") if columns else ():
        name, _, column = (text.strip() for text in part.partition("="))
        if not name or not column:
            raise PreferenceDataError(f"--columns {columns}: expected NAME=COLUMN,NAME=COLUMN, found {part!r}")
        if name not in NAMED:
            near = difflib.get_close_matches(name, NAMED, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise PreferenceDataError(f"--columns {columns}: no such name: {name!r}{hint}. Names: {', '.join(NAMED)}")
        if f"{name}_key" in keys:
            raise PreferenceDataError(f"--columns {columns}: {name} is named twice")
        keys[f"{name}_key"] = column
    return keys


def in_options(message: str) -> str:
    """A data set's message with a command's options for the settings of verl's trainers."""
    message = re.sub(r"((?:data\.\w+_key=\S+ )*)data\.(\w+)_key=(\S+)", _columns_option, message)
    message = re.sub(r"data\.(\w+)_key", r"--columns \1=COLUMN", message)
    option = re.compile(r"data\.(max_prompt_length|max_response_length|truncation|text_pairs)(=?)")
    return option.sub(lambda m: f"--{m[1].replace('_', '-')}{' ' if m[2] else ''}", message)


@contextmanager
def in_options_of_command(*, quiet: bool = False) -> Iterator[None]:
    """`in_options` for all that reading says inside, errors and warnings.

    Args:
        quiet: no warnings, as of files that were read once before.
    """

    def reword(record: logging.LogRecord) -> bool:
        record.msg, record.args = in_options(record.getMessage()), ()
        return not quiet

    logger = logging.getLogger("verl_aiops.data.report")
    logger.addFilter(reword)
    try:
        yield
    except PreferenceDataError as error:
        raise PreferenceDataError(in_options(str(error))) from None
    finally:
        logger.removeFilter(reword)


def _columns_option(found: re.Match) -> str:
    """``data.chosen_key=a data.rejected_key=b`` as ``--columns chosen=a,rejected=b``."""
    return "--columns " + ",".join(key.removeprefix("data.").replace("_key=", "=") for key in found[0].split())


def listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"

"""Every row of the RL files, read before Ray starts: can the run ask it?

What a row needs for its answers to be scored is added by the rules of a task, such as `trainers.triage.rows`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import DictConfig

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.data.messages import ROLES
from verl_aiops.data.reading import open_files
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.common import LOOP, data_files
from verl_aiops.trainers.rl.agent_loops import known_loop
from verl_aiops.trainers.rl.prompt_counts import PromptCounts

__all__ = ["PromptRules", "check_rows", "first_rows_of", "row_faults", "shown"]

_SHOWN = 8
_MANY_ROWS = 50_000


@dataclass(frozen=True)
class PromptRules:
    """What a row needs in a run of any task.

    ``default_loop``: the agent loop of rows that name none; ``loops``: those that the run brings itself.
    """

    default_loop: str = LOOP
    loops: frozenset[str] = frozenset()
    prompt_key: str = "prompt"

    @property
    def columns(self) -> tuple[str, ...]:
        return self.prompt_key, "data_source", "agent_name", "reward_model", "extra_info"

    def reward_faults(self, row: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
        """What keeps answers to a row from being scored; ``info`` is its ``extra_info``, if that is an object."""
        return []

    def notes(self, sources: Mapping[str, int]) -> list[str]:
        """What is worth saying of usable rows, counted by ``data_source``."""
        return []


@dataclass
class _Found:
    """Faults by kind: the first of its kind as it is shown, and how many rows have it."""

    first: dict[tuple[str, str], str] = field(default_factory=dict)
    count: dict[tuple[str, str], int] = field(default_factory=dict)
    rows: int = 0
    faulty: int = 0

    def add(self, key: str, where: str, faults: Sequence[str]) -> None:
        self.rows += 1
        self.faulty += bool(faults)
        # what was found differs from row to row, what was expected is the kind
        for kind, fault in {fault.split(", got ")[0]: fault for fault in faults}.items():
            at = key, kind
            self.first.setdefault(at, f"{where}: {fault}")
            self.count[at] = self.count.get(at, 0) + 1


def check_rows(config: DictConfig, rules: PromptRules, counts: PromptCounts | None = None) -> list[str]:
    """Read all rows of the training and validation files; ``counts`` takes them in.

    Returns:
        what is worth saying of rows that can be used.

    Raises:
        ConfigError: files or rows that cannot be used, all of them in one message, counted.
    """
    found, notes, wrong = _Found(), [], []
    sources: dict[str, int] = {}
    for key in ("train_files", "val_files"):
        names = data_files(config, key)
        if not names:
            wrong.append(f"data.{key} is not set: give the parquet files that `verl-aiops build-rl` writes")
        before = found.rows
        for name in names:
            if "://" in name:
                notes.append(f"{name} is not on this machine: its rows were not checked")
                before = None
                if counts is not None:
                    counts.whole = False
                continue
            try:
                for where, row in _rows(name, rules.columns):
                    found.add(f"data.{key}", where, [row] if isinstance(row, str) else row_faults(row, rules))
                    if counts is not None and isinstance(row, Mapping):
                        counts.add(key, row)
                    source = row.get("data_source") if isinstance(row, Mapping) else None
                    if isinstance(source, str):
                        sources[source] = sources.get(source, 0) + 1
            except PreferenceDataError as error:
                wrong.append(f"data.{key}: {error}")
                before = None
        if key == "train_files" and before is not None and names:
            wrong += _too_few(config, found.rows - before)
    if found.faulty or wrong:
        raise ConfigError(_message(found, wrong))
    return notes + rules.notes(sources)


def first_rows_of(config: DictConfig, rules: PromptRules, count: int = 4) -> list[dict[str, Any]]:
    """The first rows of the training files, which `check_rows` has read; none where they are elsewhere."""
    here = [name for name in data_files(config, "train_files") if "://" not in name]
    rows = (row for name in here for _, row in _rows(name, rules.columns) if isinstance(row, dict))
    return list(itertools.islice(rows, count))


def _rows(name: str, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each row with the place it stands at, or what keeps it from being read."""
    from tqdm import tqdm

    (file,) = open_files(name)
    if file.rows >= _MANY_ROWS:
        print(f"verl-aiops: checking {file.rows:,} rows of {name}", flush=True)
    bar = tqdm(total=file.rows, desc=os.path.basename(name), unit="row", delay=2, disable=None)
    with bar:
        for record in file.records(list(columns), np.arange(file.rows)):
            bar.update()
            if record.fault:
                yield record.where, record.fault
                continue
            info = record.values.get("extra_info")
            given = info.get("id") if isinstance(info, Mapping) else None
            named = f", {str(given)[:80]}" if isinstance(given, str | int) else ""
            yield f"{record.where}{named}", record.values


def _too_few(config: DictConfig, rows: int) -> list[str]:
    """verl drops a last batch that is not full."""
    batch = config.data.get("gen_batch_size") or config.data.train_batch_size
    most = config.data.get("train_max_samples") or -1
    if not isinstance(batch, int) or not isinstance(most, int):
        return []  # told by who checks numbers
    used = min(rows, most) if most > 0 else rows
    if used >= batch:
        return []
    return [f"data.train_files hold {used:,} rows to train on, fewer than one batch (data.train_batch_size={batch})"]


def _message(found: _Found, wrong: Sequence[str]) -> str:
    lines = []
    if wrong:
        lines += ["the RL files cannot be used:", *wrong]
    if found.faulty:
        lines.append(
            f"{found.faulty:,} of {found.rows:,} rows cannot be trained on or validated with; verl would leave them "
            "out of every step. Mend or remove them, or build the file again with `verl-aiops build-rl`:"
        )
        for (key, kind), first in list(found.first.items())[:_SHOWN]:
            more = found.count[key, kind] - 1
            lines.append(f"{key}: {first}" + (f" (and {more:,} more row{'s' * (more > 1)} like it)" if more else ""))
        if len(found.first) > _SHOWN:
            lines.append(f"and {len(found.first) - _SHOWN} more kinds of faults")
    return "\n  ".join(lines)


def row_faults(row: Mapping[str, Any], rules: PromptRules) -> list[str]:
    """What keeps a row from being asked or scored; empty where nothing does."""
    info = row.get("extra_info")
    faults = _prompt_faults(row.get(rules.prompt_key), rules.prompt_key)
    if info is not None and not isinstance(info, Mapping):
        faults.append(f"extra_info: expected an object, got {shown(info)}")
        info = None
    faults += _loop_faults(row, info or {}, rules)
    return faults + rules.reward_faults(row, info or {})


def _prompt_faults(prompt: Any, key: str) -> list[str]:
    if not isinstance(prompt, list) or not prompt:
        return [f"{key}: expected a list of messages {{role, content}}, got {shown(prompt)}"]
    for at, message in enumerate(prompt):
        role, content = (message.get(name) for name in ("role", "content")) if isinstance(message, Mapping) else (0, 0)
        if role not in ROLES:
            return [f"{key}[{at}]: expected a message with a role of {', '.join(ROLES)}, got {shown(message)}"]
        # images and the like stand in lists of parts, which are the model's processor's to judge
        if not isinstance(content, str | list) or not content:
            return [f"{key}[{at}].content: expected text, got {shown(content)}"]
    if prompt[-1]["role"] == "assistant":
        return [f"{key}: expected a user's message at the end, which is to be answered, got {shown(prompt[-1])}"]
    return []


def _loop_faults(row: Mapping[str, Any], info: Mapping[str, Any], rules: PromptRules) -> list[str]:
    from verl_aiops.rollout.rounds.turns import rounds_of

    try:
        rounds = rounds_of(info)
    except ValueError as error:
        return [str(error).replace(", found ", ", got ")]
    if "agent_name" in row and not isinstance(row["agent_name"], str):
        return [f"agent_name: expected the name of an agent loop, such as {LOOP!r}, got {shown(row['agent_name'])}"]
    loop = row.get("agent_name", rules.default_loop)
    if loop not in rules.loops and not known_loop(loop):
        return [
            f"agent_name: expected a registered agent loop, such as {LOOP!r}, or one that the file of "
            f"actor_rollout_ref.rollout.agent.agent_loop_config_path names, got {shown(loop)}"
        ]
    if rounds and loop == "single_turn_agent":
        return [
            f"agent_name: expected {LOOP!r}, as extra_info.rounds holds later rounds, which this loop never asks "
            f"(actor_rollout_ref.rollout.agent.default_agent_loop={LOOP} chooses it for rows that name none), "
            f"got {shown(loop)}"
        ]
    return []


def shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:80]

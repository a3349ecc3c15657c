"""Reading what `verl-aiops eval-pairs` wrote: `pairs.jsonl` and `summary.json` of its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops.evaluation.compare.read_runs import label_and_path
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.pairs.scoring import PairScores
from verl_aiops.inputs.json_text import JsonFault, read_json, read_object_file
from verl_aiops.inputs.shown import brief

__all__ = ["PAIRS", "PairRun", "of_pairs", "read_pair_runs"]

PAIRS = "pairs.jsonl"
_ANSWERS = "generations.jsonl"


@dataclass(frozen=True)
class PairRun:
    """One model's log-probs of pairs.

    ``keys``: of each pair the digest of its tokens, and how many with the same stood before it; ``tokens``: (pairs, 2)
    of chosen and rejected answer; ``about``: the evaluation's summary.
    """

    label: str
    path: str
    model: str
    keys: tuple[tuple[str, int], ...]
    ids: tuple[str, ...]
    groups: tuple[object, ...]
    tokens: np.ndarray
    scores: PairScores
    about: Mapping[str, Any]


def of_pairs(specs: Sequence[str]) -> bool:
    """Whether what `compare` is given are evaluations of pairs, each ``[LABEL=]FOLDER``.

    Raises:
        EvaluationError: some are, and others hold answers.
    """
    kinds = {spec: _is_of_pairs(label_and_path(spec)[1]) for spec in specs}
    if len(set(kinds.values())) < 2:
        return all(kinds.values())
    pairs = next(spec for spec, is_pairs in kinds.items() if is_pairs)
    answers = next(spec for spec, is_pairs in kinds.items() if not is_pairs)
    raise EvaluationError(
        f"{pairs} holds log-probs of pairs (verl-aiops eval-pairs), {answers} does not: one says how a model ranks "
        "answers of the data, the other what it answers itself. Compare pairs with pairs, and answers with answers"
    )


def _is_of_pairs(path: str) -> bool:
    place = Path(path).expanduser()
    if not place.exists() and "," not in path:
        raise EvaluationError(f"{path}: no such folder. Name the --out of a `verl-aiops eval`, or LABEL=FOLDER.")
    return (place / PAIRS).is_file() and not (place / _ANSWERS).is_file()


def read_pair_runs(specs: Sequence[str]) -> list[PairRun]:
    """Two or more folders, each of whose trained model is a run; or one, whose model before and after are two.

    Raises:
        EvaluationError: too few, two with one label, or a folder that is damaged or not finished.
    """
    named = [label_and_path(spec) for spec in specs]
    if len(named) == 1:
        (_, path), *_ = named
        both = _read(path)
        if len(both) < 2:
            raise EvaluationError(
                f"{path}: one model alone; name another evaluation beside it, or give eval-pairs its --before"
            )
        return both
    labels = [label for label, _ in named]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise EvaluationError(f"label {twice!r}: two runs have it; give each its own: LABEL=FOLDER")
    return [_read(path, label)[-1] for label, path in named]


def _read(path: str, label: str | None = None) -> list[PairRun]:
    folder = Path(path).expanduser()
    try:
        about = read_object_file(folder / "summary.json")
    except (OSError, JsonFault) as error:
        raise EvaluationError(
            f"{path}: its summary.json cannot be read ({error}); evaluate anew with --overwrite"
        ) from None
    models = about.get("models")
    if not isinstance(models, dict) or not models:
        raise EvaluationError(f"{path}/summary.json: expected what `verl-aiops eval-pairs` writes, found no models")
    rows = [_row(f"{path}/{PAIRS}, line {at}", line, list(models)) for at, line in _lines(folder / PAIRS)]
    if not rows:
        raise EvaluationError(f"{path}/{PAIRS}: no pairs in it")
    seen: dict[str, int] = {}
    keys = []
    for row in rows:
        keys.append((row["digest"], seen.get(row["digest"], 0)))
        seen[row["digest"]] = keys[-1][1] + 1
    tokens = np.array([row["tokens"] for row in rows])
    groups = tuple(row.get("group") if isinstance(row.get("group"), str | int) else at for at, row in enumerate(rows))
    return [
        PairRun(
            label or name,
            path,
            str(model.get("path", "?")) if isinstance(model, dict) else "?",
            tuple(keys),
            tuple(str(row["id"]) for row in rows),
            groups,
            tokens,
            PairScores(*(np.array([row[name][side] for row in rows]) for side in ("chosen", "rejected"))),
            about,
        )
        for name, model in models.items()
    ]


def _lines(file: Path):
    with file.open("rb") as stream:
        yield from enumerate(stream, 1)


def _row(where: str, line: bytes, models: Sequence[str]) -> dict[str, Any]:
    try:
        row = read_json(line)
    except JsonFault as error:
        raise EvaluationError(f"{where}: {error}; expected a line of `verl-aiops eval-pairs`") from None
    if not isinstance(row, dict) or not isinstance(row.get("digest"), str) or not _are(row.get("tokens"), int, 2):
        raise EvaluationError(f"{where}: expected id, digest and tokens of `verl-aiops eval-pairs`, found {brief(row)}")
    for name in models:
        own = row.get(name)
        values = [own.get(side) for side in ("chosen", "rejected")] if isinstance(own, dict) else None
        if not _are(values, (int, float), 2) or not all(map(math.isfinite, values or ())):
            raise EvaluationError(f"{where}: {name}: expected two finite log-probs, found {brief(own)}")
    return row


def _are(values: Any, kind: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
    )

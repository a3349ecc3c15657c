"""`verl-aiops compare` of evaluations of pairs: every run against the first, over the pairs that all have scored.

``comparison.json`` has ``pairs``, ``groups``, ``runs`` (label, path, model, pairs, what is ``left_out``), ``notes``,
and by metric ``values`` by run and ``comparisons`` by run: ``difference``, ``p``, ``p_holm`` and ``test``, as
`compare.numbers` has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops import __version__
from verl_aiops.evaluation.errors import EvaluationError, check_out
from verl_aiops.evaluation.pairs.results import PairRun, read_pair_runs
from verl_aiops.evaluation.pairs.scoring import PairScores
from verl_aiops.evaluation.pairs.summary import CHANGE, METRICS, MOVED, measures, summarise
from verl_aiops.evaluation.report import wording
from verl_aiops.evaluation.run.table import as_columns
from verl_aiops.evaluation.stats.paired_tests import FEW_GROUPS, holm, sign_flip_test
from verl_aiops.files import write_atomically

__all__ = ["compare_pairs", "comparison_of_pairs", "table_of_comparison"]

_FILES = ("comparison.json", "table.txt")
_PLOT = "pairs.svg"
_DIGITS = 2  # of nats
_SHOWN = 3


def compare_pairs(
    specs: Sequence[str], out: str | Path, *, seed: int = 0, plots: bool = True, overwrite: bool = False
) -> tuple[str, list[str]]:
    """Compare runs with the first of them.

    Args:
        specs: ``FOLDER`` or ``LABEL=FOLDER`` of `eval-pairs`; of a single one its model before and after.
        out: the folder to write.

    Returns:
        The table, and the names of the files in ``out``.

    Raises:
        EvaluationError: runs that cannot be read or have no pair in common, files that are there.
    """
    folder = Path(out)
    check_out(folder)
    there = [name for name in (*_FILES, _PLOT) if (folder / name).exists()]
    if there and not overwrite:
        raise EvaluationError(f"--out {folder}: {there[0]} is there already; choose another folder, or add --overwrite")
    runs = read_pair_runs(specs)
    scored, tokens, groups, left_out, notes = _paired(runs)
    result = comparison_of_pairs(runs, scored, tokens, groups, left_out, notes, seed)
    table = table_of_comparison(result)
    folder.mkdir(parents=True, exist_ok=True)
    for name in there:
        (folder / name).unlink(missing_ok=True)
    write_atomically(
        folder / "comparison.json", json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    )
    files = list(_FILES)
    if plots:
        try:
            from verl_aiops.evaluation.pairs.plot import plot_pairs

            plot_pairs(scored, folder / _PLOT)
            files.append(_PLOT)
        except ImportError:
            table += 'no plot: matplotlib is not installed (pip install "verl-aiops[plot]")\n'
    write_atomically(folder / "table.txt", table)
    return table, files


def _paired(runs: Sequence[PairRun]) -> tuple[dict[str, PairScores], np.ndarray, list[object], list[int], list[str]]:
    """Scores by run of the pairs that all have, in the first one's order; their tokens and groups; how many each run
    has besides; and what differs where some have.

    A pair is the same where its tokens are: log-probs of other tokens are of another text.
    """
    common = set(runs[0].keys).intersection(*(run.keys for run in runs[1:]))
    notes = _differences(runs) if any(len(run.keys) > len(common) for run in runs) else []
    if not common:
        raise EvaluationError(f"no pair stands in all runs. {' '.join(notes)}".strip())
    kept = [key for key in runs[0].keys if key in common]
    scored = {}
    for run in runs:
        places = {key: at for at, key in enumerate(run.keys)}
        order = [places[key] for key in kept]
        scored[run.label] = PairScores(run.scores.chosen[order], run.scores.rejected[order])
    first = [at for at, key in enumerate(runs[0].keys) if key in common]
    groups = [runs[0].groups[at] for at in first]
    return scored, runs[0].tokens[first], groups, [len(run.keys) - len(common) for run in runs], notes


def _differences(runs: Sequence[PairRun]) -> list[str]:
    """What made the runs' pairs different ones, as far as their files say."""
    first, found = runs[0], []
    for run in runs[1:]:
        own, other = dict(zip(first.ids, first.keys)), dict(zip(run.ids, run.keys))
        changed = [name for name in own if name in other and own[name] != other[name]]
        if changed:
            shown = ", ".join(changed[:_SHOWN])
            found.append(
                f"{len(changed):,} ids stand in {first.label} and in {run.label} with other tokens, such as {shown}: "
                "another text, tokenizer or chat template."
            )
    files = {run.label: _as_text(run.about.get("data")) for run in runs}
    if len(set(files.values())) > 1:
        found.append(f"Data: {_by_run(files)}.")
    names = dict.fromkeys(name for run in runs for name in _settings(run))
    for name in names:
        values = {run.label: _as_text(_settings(run).get(name)) for run in runs}
        if len(set(values.values())) > 1 and name not in ("device", "dtype", "batch_tokens"):
            found.append(f"--{name.replace('_', '-')}: {_by_run(values)}.")
    return found


def _settings(run: PairRun) -> Mapping[str, Any]:
    settings = run.about.get("settings")
    return settings if isinstance(settings, dict) else {}


def _as_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _by_run(values: Mapping[str, str]) -> str:
    return "; ".join(f"{value} in {label}" for label, value in values.items())


def comparison_of_pairs(
    runs: Sequence[PairRun],
    scored: Mapping[str, PairScores],
    tokens: np.ndarray,
    groups: Sequence[object],
    left_out: Sequence[int],
    notes: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """The numbers. Args: of `_paired`; ``seed`` of the resampling."""
    first, *others = scored
    numbers: dict[object, int] = {}
    places = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    against = {label: summarise({first: scored[first], label: scored[label]}, tokens, groups, seed) for label in others}
    of_run = {label: measures(scores, tokens) for label, scores in scored.items()}
    metrics: dict[str, Any] = {}
    for name, (title, of) in METRICS.items():
        values = {first: against[others[0]][first][name]} | {label: against[label][label][name] for label in others}
        # a pair is right or not, so differences are whole numbers, and the test is exact
        whole = None if of is None else 1
        tests = [
            sign_flip_test(of_run[label][name] - of_run[first][name], places, denominator=whole, seed=seed)
            for label in others
        ]
        adjusted = holm([test.p for test in tests])
        metrics[name] = {
            "title": title,
            "digits": _DIGITS if of is None else None,
            "values": values,
            "comparisons": {
                label: {"difference": against[label][CHANGE][name], "p": test.p, "p_holm": p, "test": test.method}
                for label, test, p in zip(others, tests, adjusted, strict=True)
            },
        }
    return {
        "verl_aiops": __version__,
        "of": "pairs",
        "pairs": len(tokens),
        "groups": len(numbers),
        "few_groups": FEW_GROUPS,
        "seed": seed,
        "notes": list(notes),
        "runs": [
            {"label": run.label, "path": run.path, "model": run.model, "pairs": len(run.keys), "left_out": out}
            for run, out in zip(runs, left_out, strict=True)
        ],
        "metrics": metrics,
        "moved": {label: against[label][CHANGE]["moved"] for label in others},
    }


def table_of_comparison(result: Mapping[str, Any]) -> str:
    """What was compared and left out, a table for each run against the first, verdicts."""
    first, *others = (run["label"] for run in result["runs"])
    few = result["groups"] < FEW_GROUPS
    head = (
        f"{len(result['runs'])} runs over {wording.counted(result['pairs'], 'pair')} of "
        f"{wording.counted(result['groups'], 'group')} that all of them scored; 95 % intervals"
        + (f" need {FEW_GROUPS} groups, so none are given" if few else " over groups")
    )
    lines = [head, *(f"  {run['label']}: {run['model']}" for run in result["runs"])]
    lines += [
        f"  {run['left_out']:,} of {wording.counted(run['pairs'], 'pair')} of {run['label']} left out: not in all runs"
        for run in result["runs"]
        if run["left_out"]
    ]
    lines += [f"  {note}" for note in result["notes"]]
    parts = ["\n".join(map(wording.visible, lines))]
    for label in others:
        rows = [("", first, label, "difference", f"p{', Holm' if len(others) > 1 else ''}")]
        for metric in result["metrics"].values():
            entry, digits = metric["comparisons"][label], metric["digits"]
            means = [wording.in_one(wording.value_parts(metric["values"][run], digits)) for run in (first, label)]
            change = wording.in_one(wording.change_parts(entry["difference"], digits))
            rows.append((metric["title"], *means, change, wording.p_text(entry["p_holm"])))
        moved = wording.in_one(wording.value_parts(result["moved"][label]))
        parts.append(as_columns([*rows, (MOVED[0], "", "", moved, "")]))
    parts.append("\n".join(_verdict(result, label) for label in others))
    return "\n\n".join(parts) + "\n"


def _verdict(result: Mapping[str, Any], label: str) -> str:
    first = result["runs"][0]["label"]
    said = []
    for name, what in (("accuracy", ""), ("margin", "margin ")):
        metric = result["metrics"][name]
        entry = metric["comparisons"][label]
        p = wording.p_text(entry["p_holm"])
        change = wording.in_one(wording.change_parts(entry["difference"], metric["digits"]))
        unit = "nats" if metric["digits"] else "points"
        said.append((entry, f"{what}{change} {unit}, p {p if p.startswith('<') else '= ' + p}"))
    entry = said[0][0]
    if entry["p_holm"] >= wording.ALPHA:
        start = f"No difference shown between {label} and {first} in pairs ranked right"
    else:
        better = "more" if entry["difference"]["value"] > 0 else "fewer"
        start = f"{label} ranks {better} pairs right than {first}"
    return wording.visible(f"{start}: {'; '.join(text for _, text in said)}.")

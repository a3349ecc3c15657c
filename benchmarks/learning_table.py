"""The table of `learning.py`, from kept answers alone: every stage's share of right answers, parts apart, and the
differences from one of them with intervals over faults, by `verl-aiops compare`."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learning_data import part_of

__all__ = ["keep_answers", "plot", "table_of", "write_table"]

METRICS = ("acc_main", "service_ok", "type_ok", "json_ok")
ALL = "all"
# left out of what is kept: nothing in a table comes from them, and the incidents are in the data
_DROPPED = ("tokens",)


def keep_answers(generations: Path, target: Path) -> None:
    """Write an evaluation's answers as compressed lines."""
    with generations.open(encoding="utf-8") as lines:
        read = map(json.loads, lines)
        kept = ({key: None if key in _DROPPED else value for key, value in line.items()} for line in read)
        write_lines(target, (json.dumps(line).encode("ascii") + b"\n" for line in kept))


def keep_metrics(logged: Path, target: Path) -> None:
    """Write what a trainer logged as compressed lines."""
    with logged.open("rb") as lines:
        write_lines(target, lines)


def write_lines(target: Path, lines: Iterable[bytes]) -> None:
    """Compressed; the same lines give the same bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.writelines(lines)


def read_kept(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rb") as file:
        return [json.loads(line) for line in file]


def table_of(answers: Path, first: str, files: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Compare kept answers.

    Args:
        answers: the folder, ``LABEL/NAME.jsonl.gz`` for each run (seed) of a label.
        first: the label that the others are held to.
        files: the names of each label's runs, in the order of the table.

    Returns:
        by part (`all` first) ``incidents``, ``groups``, ``notes`` and ``labels``: for each label by metric ``value``,
        ``low``, ``high``, the shares of its ``runs``, and what ``comparison.json`` says of it against the first.
    """
    from verl_aiops.evaluation.compare.command import Options, compare

    order = dict.fromkeys([first, *files])
    runs = {label: [read_kept(answers / label / name) for name in files[label]] for label in order if files.get(label)}
    if first not in runs or len(runs) < 2:
        raise SystemExit(
            f"{answers}: expected answers of {first} and of others to compare, found {', '.join(runs) or 'none'}"
        )
    parts = sorted({part_of(line) for line in runs[first][0]})
    table: dict[str, Any] = {}
    for part in [ALL, *(parts if len(parts) > 1 else [])]:
        with tempfile.TemporaryDirectory() as scratch:
            specs = []
            for number, (label, seeds) in enumerate(runs.items()):
                paths = [Path(scratch) / f"{number}-{seed}.jsonl" for seed in range(len(seeds))]
                for path, lines in zip(paths, seeds):
                    chosen = [line for line in lines if part in (ALL, part_of(line))]
                    path.write_text("".join(json.dumps(line) + "\n" for line in chosen))
                specs.append(f"{label}={','.join(map(str, paths))}")
            compare(specs, Path(scratch) / "out", Options(plots=False, examples=0))
            compared = json.loads((Path(scratch) / "out" / "comparison.json").read_text())
        table[part] = _section(compared, {label: _shares(seeds, part) for label, seeds in runs.items()})
    return table


def _shares(seeds: Sequence[Sequence[Mapping[str, Any]]], part: str) -> dict[str, list[float]]:
    """Of each run the share of its answers by metric."""
    kept = [[line["score"] for line in lines if line["score"] and part in (ALL, part_of(line))] for lines in seeds]
    return {key: [sum(score[key] for score in own) / len(own) for own in kept if own] for key in METRICS}


def _section(compared: Mapping[str, Any], shares: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for label, own in shares.items():
        labels[label] = {}
        for key in METRICS:
            metric = compared["metrics"][key]
            labels[label][key] = {**metric["values"][label], "runs": own[key]}
            against = metric["comparisons"].get(label)
            if against is not None:
                labels[label][key] |= against
    return {**{key: compared[key] for key in ("incidents", "groups", "notes")}, "labels": labels}


def write_table(result: Mapping[str, Any], path: Path) -> str:
    """The table in Markdown: both fields right, by part."""
    parts = list(result["table"])
    lines = [f"| both fields right | {' | '.join(_head(result['table'][part], part) for part in parts)} |"]
    lines.append("| --- |" + " ---: |" * len(parts))
    for label in result["table"][ALL]["labels"]:
        cells = [_cell(result["table"][part]["labels"][label]["acc_main"]) for part in parts]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    path.write_text(text, encoding="utf-8")
    return text


def _head(section: Mapping[str, Any], part: str) -> str:
    return f"{part} ({section['incidents']:,})"


def _cell(value: Mapping[str, Any]) -> str:
    text = f"{100 * value['value']:.1f} %{_interval(value, '')}"
    if len(value["runs"]) > 1:
        text += f" ({', '.join(f'{100 * one:.1f}' for one in value['runs'])})"
    if "difference" in value:
        less = value["difference"]
        text += f"; {100 * less['value']:+.1f}{_interval(less, '+')}"
    return text


def _interval(value: Mapping[str, Any], sign: str) -> str:
    if value.get("low") is None:
        return ""
    return f" [{100 * value['low']:{sign}.1f}, {100 * value['high']:{sign}.1f}]"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Both fields right with intervals over faults, a panel for each part; points of single runs are small."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    table = result["table"]
    labels = list(table[ALL]["labels"])
    figure, panels = plt.subplots(
        1, len(table), figsize=(3.2 * len(table) + 1.5, 0.42 * len(labels) + 1.4), sharey=True, squeeze=False
    )
    for panel, (part, section) in zip(panels[0], table.items()):
        for at, label in enumerate(labels):
            value = section["labels"][label]["acc_main"]
            colour = "tab:gray" if label in result["baselines"] else "tab:blue"
            if value.get("low") is not None:
                panel.plot([100 * value["low"], 100 * value["high"]], [at, at], color=colour, lw=1.5)
            panel.plot(100 * value["value"], at, "s" if label in result["baselines"] else "o", color=colour)
            panel.plot([100 * one for one in value["runs"]], [at] * len(value["runs"]), "|", color=colour, ms=8)
        for label in result["baselines"]:
            panel.axvline(100 * section["labels"][label]["acc_main"]["value"], color="tab:gray", lw=0.6, ls=":")
        panel.set_title(_head(section, part), fontsize=10)
        panel.set_xlabel("both fields right, %")
        panel.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)

"""The report of `learning_tools.py` from kept answers alone: tables, plots, one case before and after."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learning_table import read_kept, write_lines
from tools_data import PUBLIC, part_name

__all__ = ["keep_investigations", "write_report"]

Line = dict[str, Any]
# What the short table has of each side.
_SHOWN = {"acc_main": "exact set", "any_service": "any service", "score": "reward"}
_BEFORE = ("sft", "base")
_TRUTH = ("root_causes", "propagation", "no_fault", "cannot_tell")
_REWARD = "reward/score"
_SMOOTHED = 10


def keep_investigations(generations: Path, target: Path) -> None:
    """Write an evaluation's lines compressed. Of `--cases`, which may be others'
    and not to be passed on, scores and counts are kept, and no text."""
    lines = [json.loads(text) for text in generations.read_text(encoding="utf-8").splitlines()]
    kept = [_without_texts(line) if line["part"] == PUBLIC else line for line in lines]
    write_lines(target, ((json.dumps(line, ensure_ascii=False) + "\n").encode() for line in kept))


def _without_texts(line: Line) -> Line:
    calls = [
        {**call, "arguments": "", "result": "", "reply": "", "name": call["name"] if call["ok"] else ""}
        for call in line["tool_calls"]
    ]
    # whether there is something to find decides what a case counts for
    truth = {key: line["ground_truth"][key] for key in _TRUTH[2:] if line["ground_truth"].get(key)}
    causes = line["ground_truth"].get("root_causes") or []
    truth["root_causes"] = [{"component": f"left out {at}", "reason": "left out"} for at in range(len(causes))]
    predicted = None if line["predicted"] is None else {}
    texts = {"rounds": [""] * len(line["rounds"]), "tool_calls": calls, "ground_truth": truth, "predicted": predicted}
    return {**line, **texts}


def write_report(
    out: Path, files: Mapping[str, Sequence[Path]], baselines: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """Tables, a transcript and, with matplotlib, plots: table.md (behind the exact set its difference from SFT),
    tables/SIDE.txt, transcript.md, learning.png, reward.png.

    Args:
        files: by label one file of answers for each seed.
        baselines: labels that are no model's.

    Returns:
        what `verl-aiops compare` says of each side, and the text of table.md.
    """
    runs = {label: [read_kept(path) for path in paths] for label, paths in files.items()}
    models = [label for label in runs if label not in baselines]
    # a stage is held to SFT: to the untrained model, which calls no tool, every difference is the stage's own figure
    held_to = next((label for label in models if label != "base"), next(iter(models or runs)))
    sides = list(dict.fromkeys(line["part"] for own in runs.values() for lines in own for line in lines))
    result = {side: _side(runs, side, held_to, out / "tables" / f"{part_name(side)}.txt") for side in sides}
    text = _table(result, list(runs))
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "transcript.md").write_text(_transcripts(runs, baselines), encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        _plot(result, list(runs), baselines, out / "learning.png")
        _plot_rewards(out / "metrics", out / "reward.png")
    return result, text


def _side(runs: Mapping[str, list[list[Line]]], side: str, held_to: str, target: Path) -> dict[str, Any]:
    """Every label's metrics with intervals over faults; seeds count as answers to the same case."""
    from verl_aiops.evaluation.investigation.compare import compare_investigations
    from verl_aiops.evaluation.investigation.evaluate import summarise

    lines = {
        label: [{**line, "sample": seed} for seed, own in enumerate(seeds) for line in own if line["part"] == side]
        for label, seeds in runs.items()
    }
    cases = {label: {line["id"] for line in own} for label, own in lines.items()}
    # a model whose time was over may have been asked about some of the sides only
    order = [held_to, *(label for label in lines if label != held_to and cases[label] == cases[held_to])]
    with tempfile.TemporaryDirectory() as scratch:
        for label in order:
            (Path(scratch) / label).mkdir()
            file = Path(scratch) / label / "generations.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines[label]), encoding="utf-8")
        if len(order) == 1:
            return {"cases": len(cases[held_to]), "runs": {held_to: summarise(lines[held_to], 0)}, "differences": {}}
        text, _ = compare_investigations(
            [f"{name}={Path(scratch) / name}" for name in order], Path(scratch) / "out", plots=False
        )
        compared = json.loads((Path(scratch) / "out" / "comparison.json").read_text(encoding="utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return {"cases": len(cases[held_to]), **compared}


def _table(result: Mapping[str, Any], labels: Sequence[str]) -> str:
    from verl_aiops.evaluation.investigation.evaluate import shown
    from verl_aiops.evaluation.investigation.metrics import METRICS

    def cell(one: Mapping[str, Any], label: str, name: str) -> str:
        text = shown(one["runs"].get(label, {}).get(name), METRICS[name].digits)
        found = one["differences"].get(label, {}).get("metrics", {}).get(name)
        if name != "acc_main" or not found or found["low"] is None:
            return text
        value, low, high = (100 * found[key] for key in ("value", "low", "high"))
        return f"{text}; {value:+.1f} [{low:+.0f}, {high:+.0f}]"

    heads = [f"{side} ({one['cases']}): {title}" for side, one in result.items() for title in _SHOWN.values()]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for label in labels:
        cells = [cell(one, label, name) for one in result.values() for name in _SHOWN]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _transcripts(runs: Mapping[str, list[list[Line]]], baselines: Sequence[str]) -> str:
    """One case as every model investigated it: one that the last is right about and the first ones are not."""
    models = [label for label in runs if label not in baselines]
    if not models:
        return "No model has been asked.\n"
    by_case = {
        label: {line["id"]: line for line in runs[label][0] if line["score"] and line["part"] != PUBLIC}
        for label in models
    }
    last, before = models[-1], [label for label in _BEFORE if label in models[:-1]]
    common = [name for name in by_case[last] if all(name in own for own in by_case.values())]

    def rank(name: str) -> tuple[float, float]:
        """How often it was right before training, and by how much the reward fell since."""
        earlier = [by_case[label][name]["score"] for label in before]
        fell = sum(score["score"] for score in earlier) - by_case[last][name]["score"]["score"]
        return sum(score["acc_main"] for score in earlier), fell

    if not common:
        return "No case whose text is kept has been investigated by every model.\n"
    name = min(common, key=rank)
    known = by_case[last][name]["ground_truth"]
    shown = {key: known[key] for key in _TRUTH if known.get(key)}
    truth = json.dumps(shown, ensure_ascii=False, indent=1)
    parts = [f"# {name} ({by_case[last][name]['part']})", f"What is true:\n\n```json\n{truth}\n```"]
    for label in models:
        parts.append(_as_markdown(label, by_case[label][name]))
    return "\n\n".join(parts) + "\n"


def _as_markdown(label: str, line: Line) -> str:
    score = line["score"]
    parts = [f"## {label}: reward {score['score']:.2f}, {'right' if score['acc_main'] else 'not right'}"]
    for turn, text in enumerate(line["rounds"]):
        parts.append(f"**model**\n\n{_fenced(text)}")
        for call in line["tool_calls"]:
            if call["turn"] == turn:
                parts.append(f"**tool**\n\n{_fenced(call['reply'])}")
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.strip()}\n{fence}"


def _plot(result: Mapping[str, Any], labels: Sequence[str], baselines: Sequence[str], path: Path) -> None:
    """The exact set and any service with intervals over faults, a panel for each side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (3.2 * len(result) + 1.5, 0.5 * len(labels) + 1.6)
    figure, panels = plt.subplots(1, len(result), figsize=size, sharey=True, squeeze=False)
    for panel, (side, one) in zip(panels[0], result.items()):
        for name, colour, shift in (("acc_main", "tab:blue", -0.12), ("any_service", "tab:orange", 0.12)):
            for at, label in enumerate(labels):
                value = one["runs"].get(label, {}).get(name)
                if not value or value["value"] is None:
                    continue
                if value["low"] is not None:
                    panel.plot([100 * value["low"], 100 * value["high"]], [at + shift] * 2, color=colour, lw=1.5)
                mark = "s" if label in baselines else "o"
                title = _SHOWN[name] if at == 0 else None
                panel.plot(100 * value["value"], at + shift, mark, color=colour, label=title)
        panel.set_title(f"{side} ({one['cases']} cases)", fontsize=10)
        panel.set_xlabel("%")
        panel.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].invert_yaxis()
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_rewards(metrics: Path, path: Path) -> None:
    """The mean reward of each step's investigations while training."""
    from matplotlib import pyplot as plt

    curves = {}
    for file in sorted(metrics.glob("*.jsonl.gz")):
        rows = read_kept(file)
        found = [(row["step"], row["data"][_REWARD]) for row in rows if _REWARD in row["data"]]
        if found:
            curves[file.name.removesuffix(".jsonl.gz")] = found
    if not curves:
        return
    figure, panel = plt.subplots(figsize=(6, 3.5))
    for label, points in curves.items():
        steps, rewards = zip(*points)
        (drawn,) = panel.plot(steps, rewards, lw=0.7, alpha=0.35)
        # steps ask about few cases, easy and hard ones: what is learned shows over several
        means = [sum(rewards[max(0, at - _SMOOTHED) : at]) / min(at, _SMOOTHED) for at in range(1, len(rewards) + 1)]
        panel.plot(steps, means, color=drawn.get_color(), label=f"{label}, mean of {_SMOOTHED} steps")
    panel.set_xlabel("step")
    panel.set_ylabel("mean reward of the step's investigations")
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)

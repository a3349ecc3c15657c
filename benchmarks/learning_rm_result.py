"""What `learning_rm.py` has found: one JSON, and one picture of ranks, best of n, and scores over steps."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from learning import machine
from learning_table import keep_metrics, write_lines

from verl_aiops.evaluation.stats.bootstrap import intervals

__all__ = ["finish"]

KINDS = {"pairs": "ours, pairs", "groups": "ours, groups", "trl": "TRL, pairs"}
SIGNALS = {"rule": "rule", "rm": "reward model", "ensemble": "ensemble", "judge": "judge"}
# what is kept of every step of an online run
_OF_STEPS = ("reward/score", "reward/rule", "reward/rm", "reward/rm_spread", "kl/reference", "rewards/margins")
_OF_STEPS += ("pairs/used", "pairs/members_differ", "pairs/failed_rows", "timing_s/step", "timing_s/gen")


def finish(arguments: Any, runner: Any, size: dict[str, Any], own: Collection[str]) -> None:
    """Write what there is.

    Args:
        runner: that has run the jobs, for how long each took and what is not done.
        size: settings that all jobs have in common.
        own: names of the jobs whose folder is of these settings; the others' are left out.
    """
    out, work = arguments.out, arguments.work
    out.mkdir(parents=True, exist_ok=True)

    def found(name: str, file: str, key: str | None = None) -> Any:
        return _read(work / name / file, key) if name in own else None

    ranking = {
        kind: [found(f"{kind}-s{seed}", "eval/summary.json", "ranking") for seed in range(arguments.seeds)]
        for kind in KINDS
    }
    online = {by: _online(work / f"online-{by}", out / "metrics", by) for by in SIGNALS if f"online-{by}" in own}
    result: dict[str, Any] = {
        "machine": machine(arguments.device),
        "size": {**size, "name": arguments.size, "seeds": arguments.seeds},
        "incidents": Path(arguments.incidents).name if arguments.incidents else "simulated",
        "seconds": runner.seconds,
        "not_done": runner.failed,
        "ranking": {kind: of_seeds for kind, of_seeds in ranking.items() if any(of_seeds)},
        "less_trl": less_trl(work, arguments.seeds, own),
        "best_of_n": found("best-of-n", "eval/summary.json", "best_of_n"),
        "judge": found("online-judge", "judge.json"),
        "before": _held_out(work / "policy") if "policy" in own else None,
        "online": {by: one for by, one in online.items() if one},
    }
    (out / "learning_rm.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    keep_evaluations(work, out / "answers", own)
    print(table(result))
    plotted = importlib.util.find_spec("matplotlib") is not None
    if plotted:
        plot(result, out / "learning_rm.png")
    print(f"{out}: learning_rm.json{', learning_rm.png' if plotted else ''}")


def keep_evaluations(work: Path, kept: Path, own: Collection[str]) -> None:
    """Every score and answer that a figure is made of, as JOB.jsonl.gz."""
    for name in ("ranked.jsonl", "answers.jsonl", "generations.jsonl"):
        for file in sorted(file for file in work.glob(f"*/eval/{name}") if file.parent.parent.name in own):
            target = kept / f"{file.parent.parent.name}.jsonl.gz"
            write_lines(target, [file.read_bytes().replace(f"{work}/".encode(), b"")])


def less_trl(work: Path, seeds: int, own: Collection[str]) -> dict[str, Any]:
    """Pairs ranked right by ours less those by TRL's, means over the seeds, with 95 % intervals over faults."""
    right = {kind: _right(work, kind, seeds, own) for kind in KINDS}
    found: dict[str, Any] = {}
    for kind in ("pairs", "groups"):
        ours, trl = right[kind], right["trl"]
        if ours and ours.keys() == trl.keys():
            faults = sorted({fault for _, fault in ours})
            sums, counts = np.zeros(len(faults)), np.zeros(len(faults))
            for (pair, fault), value in ours.items():
                sums[faults.index(fault)] += value - trl[pair, fault]
                counts[faults.index(fault)] += 1
            low, high = intervals(partial(_means, sums, counts), len(faults), seed=0)[0]
            found[kind] = {"value": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}
    return found


def _means(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return ((weights @ sums) / (weights @ counts))[:, None]


def _right(work: Path, kind: str, seeds: int, own: Collection[str]) -> dict[tuple[str, str], float]:
    """By pair and its fault the share of seeds that rank it right."""
    shares: dict[tuple[str, str], float] = {}
    for seed in range(seeds):
        file = work / f"{kind}-s{seed}" / "eval" / "ranked.jsonl"
        if f"{kind}-s{seed}" not in own or not file.is_file():
            return {}
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            better, worse = line["scores"]
            key = line["id"], line["group"]
            shares[key] = shares.get(key, 0.0) + (0.5 if better == worse else float(better > worse)) / seeds
    return shares


def _read(path: Path, key: str | None = None) -> Any:
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found[key] if key else found


def _held_out(folder: Path) -> dict[str, Any] | None:
    """The rule's metrics of a policy's answers to held-out incidents."""
    summary = _read(folder / "eval" / "summary.json")
    return summary and {name: summary["overall"]["metrics"][name] for name in ("acc_main", "json_ok", "score")}


def _online(folder: Path, kept: Path, by: str) -> dict[str, Any] | None:
    """None where no step was done: verl's file is there from the start."""
    if not (folder / "metrics.jsonl").is_file():
        return None
    steps: dict[int, dict[str, Any]] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the run was ended while it wrote
        steps.setdefault(row["step"], {}).update(row["data"])
    rows = [{"step": step, **row} for step, row in sorted(steps.items()) if "timing_s/step" in row]
    if not rows:
        return None
    keep_metrics(folder / "metrics.jsonl", kept / f"online-{by}.jsonl.gz")
    after = rows[1:] or rows
    names = sorted({name for row in rows for name in row if name.startswith("timing_s/")})
    return {
        "steps": len(rows),
        # the first step waits for what is loaded
        "seconds": {name: sum(row.get(name, 0.0) for row in after) / len(after) for name in names},
        "of_steps": {name: [row.get(name) for row in rows] for name in _OF_STEPS if any(name in row for row in rows)},
        "held_out": _held_out(folder),
    }


def table(result: dict[str, Any]) -> str:
    lines = []
    for kind, found in result["ranking"].items():
        of_seeds = ", ".join(shown(one["accuracy"]) for one in found if one)
        lines.append(f"{KINDS[kind]:<14} pairs ranked right: {of_seeds}")
    for kind, value in result["less_trl"].items():
        lines.append(f"{KINDS[kind]} less TRL, mean of the seeds: {shown(value)}")
    if result["judge"]:
        judge = result["judge"]
        lines.append(f"{'judge':<14} pairs ranked right: {shown(judge['accuracy'])}, ties {judge['ties']:.1%}")
    for k, found in (result["best_of_n"] or {}).items():
        lines.append(
            f"best of {k}: " + ", ".join(f"{name} {found[name]['value']:.3f}" for name in ("rm", "rule", "chance"))
        )
    if result["before"]:
        lines.append(f"before online DPO, held out: both fields right {shown(result['before']['acc_main'])}")
    for by, found in result["online"].items():
        seconds = found["seconds"]["timing_s/step"]
        held = f", held out both fields right {shown(found['held_out']['acc_main'])}" if found["held_out"] else ""
        lines.append(f"online DPO by {SIGNALS[by]}: {found['steps']} steps of {seconds:.2f} s{held}")
    return "\n".join(lines)


def shown(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return "none"
    if value.get("low") is None:
        return f"{100 * value['value']:.1f} %"
    return f"{100 * value['value']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(18, 4), constrained_layout=True)
    colours = dict(zip(SIGNALS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7")))
    ranks, best, rule, own = axes
    for at, found in enumerate(result["ranking"].values()):
        for seed, one in enumerate(found):
            if one and one["accuracy"]["value"] is not None:
                value, place = one["accuracy"], at + 0.15 * (seed - 1)
                if value["low"] is not None:
                    ranks.plot([place] * 2, [100 * value["low"], 100 * value["high"]], color="#555555", lw=1)
                ranks.plot(place, 100 * value["value"], "o", color=f"C{at}")
    ranks.set_xticks(range(len(result["ranking"])), [KINDS[kind] for kind in result["ranking"]])
    ranks.set_ylabel("held-out pairs ranked right, %")
    ranks.set_title("reward models, a point a seed (95 % over faults)", fontsize=10)
    for name, colour in (("rule", colours["rule"]), ("rm", colours["rm"]), ("chance", "#888888")):
        values = [(int(k), found[name]) for k, found in (result["best_of_n"] or {}).items()]
        if values:
            best.plot([k for k, _ in values], [one["value"] for _, one in values], "o-", color=colour, label=name)
        if values and all(one["low"] is not None for _, one in values):
            low, high = ([one[end] for _, one in values] for end in ("low", "high"))
            best.fill_between([k for k, _ in values], low, high, color=colour, alpha=0.15, lw=0)
    best.set_title("rule's score of the best of n, chosen by", fontsize=10)
    best.set_xlabel("n")
    for by, found in result["online"].items():
        steps = found["of_steps"]
        draw(rule, steps.get("reward/rule") or steps.get("reward/score"), colours[by], SIGNALS[by])
        draw(own, steps.get("reward/score"), colours[by], SIGNALS[by])
    rule.set_title("online DPO: the rule's score of sampled answers", fontsize=10)
    own.set_title("online DPO: the score that ranks them", fontsize=10)
    for axis in (rule, own):
        axis.set_xlabel("step")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=9)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw(axis: Any, values: list[float | None] | None, colour: str, label: str, window: int = 8) -> None:
    """A line of means over the last steps, and the steps themselves, pale."""
    points = [(step, value) for step, value in enumerate(values or [], 1) if value is not None]
    if not points:
        return
    means = []
    for at in range(len(points)):
        part = [value for _, value in points[max(0, at + 1 - window) : at + 1]]
        means.append(sum(part) / len(part))
    axis.plot(*zip(*points), color=colour, lw=0.6, alpha=0.3)
    axis.plot([step for step, _ in points], means, color=colour, lw=1.6, label=label)

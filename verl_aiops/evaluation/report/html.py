"""A comparison as one HTML file that needs nothing else: no script, no address, pictures inside.

Models' texts are hostile. Everything that the template prints passes `wording.visible` and is escaped, but for the
pictures, which are our own elements with escaped texts (`svg.as_svg`); the page's
content security policy forbids scripts and any loading besides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.compare.flips import examples
from verl_aiops.evaluation.compare.pairing import Pairing
from verl_aiops.evaluation.report import wording
from verl_aiops.evaluation.report.plots import Plot
from verl_aiops.evaluation.run.summary import slices_shown
from verl_aiops.evaluation.stats.further_fields import asked_in, field_right
from verl_aiops.evaluation.stats.metrics import FIELDS, MAIN, METRICS, In, metrics, over_k_titles

__all__ = ["environment", "html_report", "tone"]

MAX_CHARS = 6000
_CHANGES_SHOWN = 8
_IDS_SHOWN = 100
# Settings that say which model it is and where it was asked: they differ on purpose.
_NAMES = frozenset(["model", "endpoint"])
_SLICE_TITLES = {
    "part": "Part: real, simulated, or a system that was held out from training (unseen)",
    "answerable": "How the answer can be found: read, given away (the prompt lists one alone), or remembered (the text "
    "names no candidate)",
    "source": "Source",
    "lang": "Language",
    "difficulty": "Difficulty",
}


@dataclass(frozen=True)
class _Shown:
    """One answer of an example."""

    run: str
    sample: int
    samples: int
    right: bool
    parts: list[tuple[str, str, bool | None]]
    reward: str
    turns: list[tuple[str, str, int]]


def html_report(result: Mapping[str, Any], pairing: Pairing, plots: Sequence[Plot], shown: int) -> str:
    """The page.

    Args:
        result: of `numbers.comparison_of`.
        pairing: the answers that the examples come from.
        plots: of `plots`, by name.
        shown: examples in each direction for each comparison.
    """
    from markupsafe import Markup

    labels = [run["label"] for run in result["runs"]]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            result=result,
            labels=labels,
            first=labels[0],
            pooled=any(run["pooled"] > 1 for run in result["runs"]),
            others=labels[1:],
            plots={plot.name.partition(".")[0]: Markup(plot.svg) for plot in plots},
            verdicts=[wording.verdict(result, label) for label in labels[1:]],
            settings=_settings(result),
            left_out=wording.left_out(result),
            failed=wording.failed,
            over_k=over_k_titles(),
            main=MAIN,
            main_title=METRICS[MAIN].title,
            sliced={name: metric.head for name, metric in metrics(In.HEADLINE).items()},
            tone=tone,
            slices_shown=slices_shown(result["by"]),
            slice_titles=_SLICE_TITLES,
            classes=_class_changes(result),
            examples={label: _examples(result, pairing, label, shown) for label in labels[1:]},
            ids_shown=_IDS_SHOWN,
            max_chars=MAX_CHARS,
        )
    )


def environment() -> Any:
    """The templates of this folder, with every text made visible and escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("verl_aiops.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown_as,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        value=wording.value_parts,
        change=wording.change_parts,
        p=wording.p_text,
        counted=wording.counted,
        new_seeds=wording.new_seeds_text,
    )
    return made


def _shown_as(value: Any) -> Any:
    from markupsafe import Markup

    # a macro's output, whose parts came through here one by one
    return wording.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def tone(difference: Mapping[str, Any], better: str | None = "higher") -> str:
    """``better`` or ``worse`` where the interval leaves no doubt of the direction, else nothing."""
    low, high = difference["low"], difference["high"]
    if low is None or better is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == (better == "higher") else "worse"


def _settings(result: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """``models``, ``different`` and ``same``: settings by name, with the text of each run."""
    runs = result["runs"]
    names = list(dict.fromkeys(name for run in runs for name in run["settings"]))
    found: dict[str, dict[str, list[str]]] = {"models": {}, "different": {}, "same": {}}
    for name in names:
        cells = [_text_of(run["settings"][name]) if name in run["settings"] else "–" for run in runs]
        kind = "models" if name in _NAMES else "same" if len(set(cells)) == 1 else "different"
        found[kind][name] = cells
    return found


def _text_of(setting: Any) -> str:
    text = setting if isinstance(setting, str) else json.dumps(setting, ensure_ascii=False)
    return text if len(text) <= 300 else text[:299] + "…"


def _class_changes(result: Mapping[str, Any]) -> dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]]:
    """By run and field: the classes with the most incidents gained, and lost."""
    found: dict[str, dict[str, Any]] = {}
    for run in result["runs"][1:]:
        label = run["label"]
        for field, classes in result["classes"].items():
            gained = sorted(classes, key=lambda entry: -entry["incidents"] * entry["differences"][label]["value"])
            up = [entry for entry in gained if entry["differences"][label]["value"] > 0]
            down = [entry for entry in reversed(gained) if entry["differences"][label]["value"] < 0]
            found.setdefault(label, {})[field] = {
                "up": up[:_CHANGES_SHOWN],
                "down": down[:_CHANGES_SHOWN],
                "counts": (len(up), len(down), len(classes)),
            }
    return found


def _examples(result: Mapping[str, Any], pairing: Pairing, label: str, shown: int) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for direction in ("better", "worse"):
        entries = result["flips"][label][direction][:shown]
        found[direction] = [
            {
                "entry": entry,
                "info": before,
                "truth": before["ground_truth"],
                "fields": asked_in([before]),
                "evidence": [_cut(str(text)) for text in before["ground_truth"].get("evidence") or ()],
                "answers": [
                    _answer(pairing, pairing.labels[0], entry["id"], before),
                    _answer(pairing, label, entry["id"], after),
                ],
            }
            for entry, before, after in examples(pairing, label, entries)
        ]
    return found


def _answer(pairing: Pairing, run: str, name: str, line: AnswerLine) -> _Shown:
    predicted, score = line["predicted"] or {}, line["score"]
    parts = [
        (title, _cut(str(predicted.get(key, "")), 200)[0], bool(score[right]) if predicted else None)
        for title, (key, right) in FIELDS.items()
    ]
    for field in asked_in([line]):
        said = _cut(str(predicted.get(field, "")), 200)[0]
        parts.append((field, said, bool(field_right(line, field)) if predicted else None))
    *early, last = line["rounds"]
    turns = [(f"Round {at}", *_cut(text)) for at, text in enumerate(early, 1)]
    samples = len(pairing.answers[run][pairing.ids.index(name)])
    return _Shown(
        run=run,
        sample=line["sample"],
        samples=samples,
        right=bool(score[MAIN]),
        parts=parts,
        reward=f"{score['score']:.3f}",
        turns=[*turns, ("Answer", *_cut(last))],
    )


def _cut(text: str, most: int = MAX_CHARS) -> tuple[str, int]:
    """The beginning of a text, and how many characters are not shown."""
    return text[:most], max(0, len(text) - most)

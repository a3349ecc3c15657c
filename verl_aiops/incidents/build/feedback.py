"""An operator's log of verdicts on a model's answers, made training data: a correction is a pair, an acceptance a yes,
a refusal a no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_aiops.incidents.build.known_prompts import KnownPrompts, Messages, messages_of
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.csv_rows import read_csv_rows
from verl_aiops.incidents.io.readers import read_jsonl_rows
from verl_aiops.incidents.io.writers import Columns, row_writers, sibling
from verl_aiops.incidents.prompts import json_text
from verl_aiops.inputs.json_text import lone_surrogate
from verl_aiops.inputs.shown import brief, counted, one_line
from verl_aiops.inputs.sniff import by_content, refusal
from verl_aiops.split import split_side

__all__ = ["FEEDBACK_COLUMNS", "FeedbackSummary", "build_feedback"]

FIELDS = ("id", "prompt", "answer", "verdict", "correction", "group", "weight")
VERDICTS = ("accepted", "corrected", "refused")
FEEDBACK_COLUMNS: Columns = {
    "prompt": "messages",
    "chosen": "string",
    "rejected": "string",
    "completion": "string",
    "label": "bool",
    "id": "string",
    "group": "string",
    "weight": "double",
}
_SHOWN = 5
_LOGS = {".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv"}


@dataclass
class FeedbackSummary:
    """Counts; ``str()`` of it is the printed report."""

    log: str
    files: dict[str, str]
    verdicts: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    contradicting: int = 0
    unread: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        made = {"accepted": "yes", "corrected": "pairs", "refused": "no"}
        counts = ", ".join(f"{self.verdicts[name]:,} {name} ({made[name]})" for name in VERDICTS)
        lines = [f"feedback from {self.log}: {sum(self.verdicts.values()):,} verdicts, {counts}"]
        for side, file in self.files.items():
            what = (
                f"{counted(self.rows[side], 'row')} in {file}"
                if self.rows[side]
                else "no row fell on this side; no file written"
            )
            lines.append(f"  {side}: {what}")
        if self.repeated:
            lines.append(f"  {self.repeated:,} verdicts repeat one before (each counts)")
        if self.contradicting:
            lines.append(
                f"  {self.contradicting:,} verdicts contradict one before, of the same answer to the same prompt"
            )
        if self.unread:
            lines.append(f"  columns not used: {', '.join(self.unread)}")
        if not self.verdicts["refused"] or not self.verdicts["accepted"] and not self.verdicts["corrected"]:
            lines.append("  all verdicts are of one kind: losses of yes and no (KTO) learn from the difference of both")
        return "\n".join(lines)


def build_feedback(
    log: str | Path,
    out: str | Path,
    *,
    prompts: str | Path | None = None,
    val_out: str | Path | None = None,
    val_share: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> FeedbackSummary:
    """Write `FEEDBACK_COLUMNS`, one row a verdict: ``chosen`` and ``rejected``, or ``completion`` and ``label``.

    Args:
        log: JSONL or CSV with ``verdict`` (one of `VERDICTS`), ``answer``, of corrected ones ``correction``, and
            ``prompt`` (a text, or messages, in CSV as JSON text) or ``id``; optionally ``group`` and ``weight``.
        prompts: a parquet or JSONL file with ``prompt`` by ``id``, as `build-rl` and `build-prefs` write it; for rows
            that have an ``id`` and no prompt.
        val_share, seed: of the split by ``group`` (by id or prompt where there is none), as in the other commands.

    Raises:
        IncidentError: a file or rows that cannot be used, all rows' faults in one error.
    """
    if not 0 <= val_share < 1:
        raise IncidentError(f"val share: expected a share from 0 to below 1, found {val_share}")
    if val_out is not None and val_share == 0:
        raise IncidentError(
            f"{val_out}: a validation share of 0 leaves nothing for it; raise the share or drop the name"
        )
    known = KnownPrompts(prompts) if prompts is not None else None
    files = {"train": str(out)} | ({"val": str(val_out or sibling(out, "val"))} if val_share > 0 else {})
    summary = FeedbackSummary(one_line(log), files)
    rows = _read(Path(log), known, summary)
    with row_writers(list(files.values()), FEEDBACK_COLUMNS, overwrite=overwrite) as writers:
        by_side = dict(zip(files, writers))
        for row in rows:
            side = split_side(row["group"], val_share, seed) if val_share else "train"
            by_side[side].write({name: row.get(name) for name in FEEDBACK_COLUMNS})
            summary.rows[side] += 1
        if not summary.rows["train"]:
            raise IncidentError(f"{summary.log}: all rows fell on the validation side; give a smaller --val-share")
    return summary


def _read(log: Path, known: KnownPrompts | None, summary: FeedbackSummary) -> list[dict[str, Any]]:
    name, kind = one_line(log), _LOGS.get(log.suffix.lower())
    if log.is_dir():
        raise IncidentError(f"{name}: expected a file, found a folder; name the file in it")
    if kind is None:
        raise IncidentError(f"{name}: a log is one of {', '.join(_LOGS)}{by_content(log) if log.is_file() else ''}")
    if not log.is_file():
        raise IncidentError(f"{name}: no such file")
    unfit = refusal(log, kind)
    if unfit:
        raise IncidentError(f"{name} {unfit}")
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    count = 0
    unread: dict[str, None] = {}
    said: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
    try:
        for place, values in read_jsonl_rows(log) if kind == "json" else read_csv_rows(log, fields=frozenset(FIELDS)):
            count += 1
            if isinstance(values, IncidentError):
                raise IncidentError(f"{place}: {values}")
            try:
                if not isinstance(values, dict):
                    raise IncidentError(f"expected an object, found {brief(values)}")
                unwritable = lone_surrogate(values)
                if unwritable:
                    raise IncidentError(unwritable)
                unread |= dict.fromkeys(key for key in values if key not in FIELDS)
                row, verdict = _row(values, known)
            except IncidentError as error:
                faults.append(f"{place}: {error}")
                continue
            answer = row.get("completion") or row["rejected"]
            before = said.setdefault((json_text(row["prompt"]), answer), [])
            told = (verdict, row.get("chosen"))
            summary.repeated += told in before
            # a correction refuses the answer too
            summary.contradicting += any((other == "accepted") != (verdict == "accepted") for other, _ in before)
            before.append(told)
            summary.verdicts[verdict] += 1
            rows.append(row)
    except IncidentError as error:
        raise IncidentError(f"{name}, {error}") from None
    if faults:
        more = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        shown = "".join(f"\n  {fault}" for fault in [*faults[:_SHOWN], *more])
        raise IncidentError(f"{name}: {len(faults)} of {count} rows cannot be used:{shown}")
    if not rows:
        raise IncidentError(f"{name}: expected at least one verdict, found none; is it the right file?")
    summary.unread = list(unread)
    return rows


def _row(values: Mapping[str, Any], known: KnownPrompts | None) -> tuple[dict[str, Any], str]:
    """A verdict as a row of `FEEDBACK_COLUMNS`, and which it is."""
    verdict = values.get("verdict")
    given = verdict.strip().lower() if isinstance(verdict, str) else verdict
    if given not in VERDICTS:
        raise IncidentError(f"field 'verdict': expected one of {', '.join(VERDICTS)}, found {brief(verdict)}")
    answer = _text(values, "answer")
    correction = values.get("correction")
    row: dict[str, Any] = {}
    if given == "corrected":
        correction = _text(values, "correction")
        if correction.strip() == answer.strip():
            raise IncidentError("field 'correction': is the same as the answer; an answer that is right is accepted")
        row |= {"chosen": correction, "rejected": answer}
    elif isinstance(correction, str) and correction.strip():
        raise IncidentError(f"field 'correction': there is one, but the verdict is {given}; is it corrected?")
    else:
        row |= {"completion": answer, "label": given == "accepted"}
    name = values.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int))):
        raise IncidentError(f"field 'id': expected a text or a whole number, found {brief(name)}")
    name = None if name is None else str(name)
    prompt, group = _prompt(values, name, known)
    own = values.get("group")
    if own is not None and not isinstance(own, str):
        raise IncidentError(f"field 'group': expected a text, found {brief(own)}")
    row |= {"prompt": prompt, "id": name, "group": own or group or name or json_text(prompt)}
    return {**row, "weight": _weight(values.get("weight"))}, given


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise IncidentError(f"field '{name}': expected a text, found {'nothing' if value is None else brief(value)}")
    return value


def _weight(value: Any) -> float:
    """A number, in CSV as text."""
    if value is None:
        return 1.0
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise IncidentError(f"field 'weight': expected a finite number of 0 or more, found {brief(value)}")
    return number


def _prompt(values: Mapping[str, Any], name: str | None, known: KnownPrompts | None) -> tuple[Messages, str | None]:
    """The prompt as messages, and the group that it is known to be of."""
    prompt = values.get("prompt")
    if prompt is not None:
        return messages_of(prompt), None
    if name is None:
        raise IncidentError("expected a 'prompt', or an 'id' whose prompt is in the file of --prompts; found neither")
    if known is None:
        raise IncidentError(f"id {name!r} comes without a prompt; give the file that has the prompts as --prompts")
    return known.of(name)

"""`verl-aiops eval-pairs`: held-out pairs under a model, and under the one that its training started from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verl_aiops.data.fields import in_options_of_command, keys_of_option
from verl_aiops.evaluation.errors import EvaluationError, check_out
from verl_aiops.evaluation.pairs.plot import plot_pairs
from verl_aiops.evaluation.pairs.scoring import PairScores, load_tokenizer, score_pairs
from verl_aiops.evaluation.pairs.settings import PairsAsked
from verl_aiops.evaluation.pairs.summary import summarise, table_of_pairs
from verl_aiops.files import replacing, write_atomically
from verl_aiops.inputs.shown import counted
from verl_aiops.models.folders import ModelFolder, find_model

if TYPE_CHECKING:
    from verl_aiops.data import PreferenceDataset

__all__ = ["evaluate_pairs"]

_FILES = ("pairs.jsonl", "summary.json", "table.txt")


def evaluate_pairs(
    model: str, files: list[str], out: str, asked: PairsAsked, *, before: str | None = None, overwrite: bool = False
) -> tuple[str, list[str]]:
    """Score the pairs, and write what they come to.

    Args:
        model: folder of the model, or of a checkpoint (`models.folders.find_model`).
        files: of preference pairs, in any layout that DPO reads.
        out: folder for ``pairs.jsonl`` (each pair's log-probs), ``summary.json``, ``table.txt`` and ``pairs.svg``.
        before: the model that training started from, for the change and DPO's own accuracy.
        overwrite: replace what an earlier call has left there.

    Returns:
        The table, and the names of the files in ``out``.

    Raises:
        EvaluationError, ModelFolderError, PreferenceDataError: files, models or settings that cannot be used.
    """
    asked.check()
    folder = Path(out)
    check_out(folder)
    if not overwrite and any((folder / name).exists() for name in _FILES):
        raise EvaluationError(f"--out {out} holds an earlier evaluation; name another folder, or give --overwrite")
    models = {"before": find_model(before, "--before")} if before else {}
    models["after" if before else "model"] = find_model(model, "--model")
    options = {name: "--before" if name == "before" else "--model" for name in models}
    pairs = _pairs(models, options, files, asked)
    scored = {
        name: score_pairs(
            of,
            pairs,
            option=options[name],
            scratch=folder / ".merged",
            device=asked.device,
            dtype=asked.dtype,
            batch_tokens=asked.batch_tokens,
        )
        for name, of in models.items()
    }
    items = [pairs[at] for at in range(len(pairs))]
    tokens = np.array([[int(item[f"{side}_mask"].sum()) for side in ("chosen", "rejected")] for item in items])
    groups = [item["group"] if item["group"] is not None else int(item["prompt_number"]) for item in items]
    summary = summarise(scored, tokens, groups, asked.seed)
    notes = [f"{counted(len(pairs), 'pair')} of {len(set(groups))} prompts or groups; {pairs.report}"]
    if any(item["weight"] != 1 for item in items):
        notes.append("weights of pairs are not used: each counts once")
    table = "\n".join([table_of_pairs(summary), "", *notes]) + "\n"
    _write(folder, items, [digest.tobytes().hex() for digest in pairs.row_digests()], groups, tokens, scored)
    about = {
        "models": {name: {"path": of.path, "files": of.fingerprint()} for name, of in models.items()},
        "data": files,
        "pairs": pairs.identity(),
        "read": str(pairs.report),
        "settings": {name: getattr(asked, name) for name in asked.__dataclass_fields__},
        "metrics": summary,
    }
    write_atomically(folder / "summary.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "table.txt", table)
    try:
        plot_pairs(scored, folder / "pairs.svg")
    except ImportError:
        return table + 'no plot: matplotlib is not installed (pip install "verl-aiops[plot]")\n', [*_FILES]
    return table, [*_FILES, "pairs.svg"]


def _pairs(
    models: dict[str, ModelFolder], options: dict[str, str], files: list[str], asked: PairsAsked
) -> PreferenceDataset:
    """The pairs, which must be the same tokens for both models."""
    from verl_aiops.data import PreferenceDataset

    read: list[PreferenceDataset] = []
    for name, model in models.items():
        tokenizer = load_tokenizer(model, options[name])
        with in_options_of_command(quiet=bool(read)):
            read.append(
                PreferenceDataset(
                    files,
                    tokenizer,
                    max_prompt_length=asked.max_prompt_length,
                    max_response_length=asked.max_response_length,
                    truncation=asked.truncation,
                    limit=asked.limit,
                    seed=asked.seed,
                    text_pairs=asked.text_pairs,
                    progress=not read,
                    **keys_of_option(asked.columns),
                )
            )
    if len({pairs.identity() for pairs in read}) > 1:
        raise EvaluationError(
            "--before and --model read the pairs as different tokens: their tokenizers or chat templates differ, and "
            "log-probs of different texts cannot be compared. Evaluate each by itself"
        )
    return read[-1]


def _write(
    folder: Path,
    items: list[dict],
    digests: list[str],
    groups: list[object],
    tokens: np.ndarray,
    scored: dict[str, PairScores],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "pairs.jsonl") as temporary, temporary.open("x", encoding="utf-8") as file:
        for at, item in enumerate(items):
            row = {"id": item["id"], "digest": digests[at], "group": groups[at], "tokens": tokens[at].tolist()}
            for name, scores in scored.items():
                row[name] = {"chosen": float(scores.chosen[at]), "rejected": float(scores.rejected[at])}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

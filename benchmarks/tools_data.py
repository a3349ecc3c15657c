"""The files of `learning_tools.py`: cases, the scripted investigator's conversations, what is asked.

PART.cases.jsonl   cases: `sft`, `rl`, `more` (of --cases, trained on), and a file for each side that is asked
sft.jsonl          conversations for our offline trainer
train.parquet      the same cases for baselines that learn
rl.parquet         what models investigate while training
side.parquet       what they are asked at the end, all sides in one file, each row with its side as `part`
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learning_data import options

__all__ = ["PUBLIC", "asked_sides", "build_data", "conversation", "part_name"]

Row = dict[str, Any]
PUBLIC = "public"
_TRAINED, _MORE = ("sft", "rl"), "more"


def asked_sides(folder: Path) -> list[Path]:
    """The files of a folder that models are asked about."""
    return [file for file in sorted(folder.glob("*.jsonl*")) if not _is_trained(file)]


def _is_trained(file: Path) -> bool:
    return file.name.startswith("train")


def part_name(part: str) -> str:
    """A side's name as a part of a file's name."""
    return part.replace(" ", "_")


def build_data(recipe: Mapping[str, Any], files: Sequence[Path], folder: Path, command: Callable) -> None:
    """Everything from settings of the simulator and files of cases; ``command`` runs `verl-aiops` so."""
    folder.mkdir(parents=True, exist_ok=True)
    tools = recipe["tools"]
    chars = dict.fromkeys((part for part, some in recipe["cases"].items() if part != PUBLIC and some), "answer-chars")
    for part in chars:
        with (folder / f"{part_name(part)}.cases.jsonl").open("wb") as file:
            for settings in recipe["cases"][part]:
                command("simulate", "--cases", "--out", folder / "some.jsonl", *options(settings), "--overwrite")
                file.write((folder / "some.jsonl").read_bytes())
    (folder / "some.jsonl").unlink(missing_ok=True)
    more = {_MORE: [path for path in files if _is_trained(path)], PUBLIC: [p for p in files if not _is_trained(p)]}
    for part, paths in more.items():
        lines = b"".join(map(_lines, paths)).splitlines(keepends=True)
        if lines:
            chars[part] = "public-answer-chars"
            most = min(recipe["cases"][PUBLIC], len(lines)) if part == PUBLIC else len(lines)
            chosen = sorted(random.Random(part).sample(range(len(lines)), most))
            (folder / f"{part_name(part)}.cases.jsonl").write_bytes(b"".join(lines[at] for at in chosen))

    def build(kind: str, part: str, out: str, seed: int = 0) -> Path:
        cases = folder / f"{part_name(part)}.cases.jsonl"
        shown = ("--task", "investigation", "--answer-chars", tools[chars[part]], "--val-share", 0, "--seed", seed)
        command(kind, "--cases", cases, "--out", folder / out, *shown, "--overwrite")
        return folder / out

    sft, more_rl = [build("build-sft", "sft", "sft0.jsonl")], []
    if _MORE in chars:
        # each seed of the script takes another of the authors' paths
        sft += [build("build-sft", _MORE, f"{_MORE}{seed}.jsonl", seed) for seed in range(2)]
        more_rl = [build("build-rl", _MORE, f"{_MORE}.parquet")]
    _write_conversations(sft, folder / "sft.jsonl", tools["max-calls"])
    _write_rows([build("build-rl", "sft", "sft0.parquet"), *more_rl], folder / "train.parquet")
    _write_rows([build("build-rl", "rl", "rl0.parquet"), *more_rl], folder / "rl.parquet")
    sides = [part for part in chars if part not in (*_TRAINED, _MORE)]
    _write_rows(
        [build("build-rl", part, f"{part_name(part)}.parquet") for part in sides], folder / "side.parquet", sides
    )


def _lines(path: Path) -> bytes:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.rstrip(b"\n") + b"\n"


def _write_conversations(transcripts: Sequence[Path], out: Path, most: int) -> None:
    rows = [json.loads(line) for path in transcripts for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if sum(message["role"] == "tool" for message in row["messages"]) <= most]
    told = f"{len(kept):,} of {len(rows):,} conversations have {most} calls at most; the others are left out"
    print(told, flush=True)
    with out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(conversation(row), ensure_ascii=False) + "\n" for row in kept)


def conversation(row: Row) -> Row:
    """A transcript as ``chosen``. A pair needs a rejected one too, which the loss `sft` does not look at: the same
    without a verdict."""
    first = next(at for at, message in enumerate(row["messages"]) if message["role"] == "assistant")
    prompt, chosen = row["messages"][:first], row["messages"][first:]
    rejected = [*chosen[:-1], {"role": "assistant", "content": "No verdict."}]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "id": row["id"], "group": row["group"]}


def _write_rows(files: Sequence[Path], out: Path, parts: Sequence[str] | None = None) -> None:
    """RL rows of several files as one; ``parts``: what the rows of each are called."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Row] = []
    for number, path in enumerate(files):
        for row in pq.read_table(path).to_pylist():
            row["extra_info"] |= {"index": len(rows)} | ({"part": parts[number]} if parts else {})
            rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(files[0])), out)

"""The files of `learning_tools.py`: cases, the scripted investigator's conversations, what is asked.

PART.cases.jsonl   cases: `sft`, `rl`, and a file for each side that models are asked about
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
_TRAINED = ("sft", "rl")


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
    simulated = {part: some for part, some in recipe["cases"].items() if part != PUBLIC and some}
    sides: dict[str, Path] = {}
    for part, some in simulated.items():
        target = folder / f"{part_name(part)}.cases.jsonl"
        with target.open("wb") as file:
            for settings in some:
                command("simulate", "--cases", "--out", folder / "some.jsonl", *options(settings), "--overwrite")
                file.write((folder / "some.jsonl").read_bytes())
            if part in _TRAINED:
                for path in filter(_is_trained, files):
                    file.write(_lines(path))
        if part not in _TRAINED:
            sides[part] = target
    (folder / "some.jsonl").unlink(missing_ok=True)
    public = b"".join(_lines(path) for path in files if not _is_trained(path))
    if public:
        sides[PUBLIC] = folder / f"{PUBLIC}.cases.jsonl"
        lines = public.splitlines(keepends=True)
        chosen = sorted(random.Random("public").sample(range(len(lines)), min(recipe["cases"][PUBLIC], len(lines))))
        sides[PUBLIC].write_bytes(b"".join(lines[at] for at in chosen))

    def build(kind: str, part: str, out: str) -> Path:
        cases = folder / f"{part_name(part)}.cases.jsonl"
        shown = ("--task", "investigation", "--answer-chars", recipe["tools"]["answer-chars"], "--val-share", 0)
        command(kind, "--cases", cases, "--out", folder / out, *shown, "--overwrite")
        return folder / out

    transcripts = build("build-sft", "sft", "transcripts.jsonl")
    build("build-rl", "sft", "train.parquet")
    build("build-rl", "rl", "rl.parquet")
    files_of = {part: build("build-rl", part, f"{part_name(part)}.parquet") for part in sides}
    _write_conversations(transcripts, folder / "sft.jsonl", recipe["tools"]["max-calls"])
    _write_sides(files_of, folder / "side.parquet")


def _lines(path: Path) -> bytes:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.rstrip(b"\n") + b"\n"


def _write_conversations(transcripts: Path, out: Path, most: int) -> None:
    rows = [json.loads(line) for line in transcripts.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if sum(message["role"] == "tool" for message in row["messages"]) <= most]
    print(
        f"{len(kept):,} of {len(rows):,} conversations have {most} calls at most; the others are left out", flush=True
    )
    with out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(conversation(row), ensure_ascii=False) + "\n" for row in kept)


def conversation(row: Row) -> Row:
    """A transcript as ``chosen``. A pair needs a rejected one too, which the loss `sft` does not look at: the same
    without a verdict."""
    first = next(at for at, message in enumerate(row["messages"]) if message["role"] == "assistant")
    prompt, chosen = row["messages"][:first], row["messages"][first:]
    rejected = [*chosen[:-1], {"role": "assistant", "content": "No verdict."}]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "id": row["id"], "group": row["group"]}


def _write_sides(files: Mapping[str, Path], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Row] = []
    schema = None
    for part, path in files.items():
        table = pq.read_table(path)
        schema = schema or table.schema
        for row in table.to_pylist():
            row["extra_info"] |= {"part": part, "index": len(rows)}
            rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)

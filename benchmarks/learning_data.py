"""The files of `learning.py`: what is trained on, asked while training, and asked at the end.

rl.parquet      RL rows of the training side as they are, for baselines; rl.SIDE.parquet of the others
train.parquet   RL rows that SFT sees, with other views of them, and copies under other names and in other orders
ask.parquet     RL rows that models are asked while training: a fold that SFT has not seen, or all; or other prompts of
                them, copies under other names, and incidents simulated for this alone (`data.asked`)
asked.jsonl     those incidents, asked.parquet their rows; known.parquet these and rl.parquet's, for baselines
side.parquet    RL rows of the held-out sides, one file for all
reference.parquet  the same, asked for the verdict alone after the reference analysis
sft-NAME.jsonl  the conversations of NAME.parquet for our trainer, sft-NAME.parquet the same for verl's
STAGEI.parquet  what a stage of sampled answers asks, in parts, for the processes that ask
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SPLIT = ("val-share", "test-share", "hold-out-source", "seed")

__all__ = ["SPLIT", "build_data", "make_files", "options", "part_of", "whole"]

Row = dict[str, Any]


def build_data(recipe: Mapping[str, Any], incidents: Sequence[str], folder: Path, command: Callable) -> None:
    """Everything from incident files; ``command`` runs `verl-aiops` with these arguments."""
    data = recipe["data"]
    folder.mkdir(parents=True, exist_ok=True)
    parts = [Path(path).read_text(encoding="utf-8") for path in incidents]
    simulated = data["simulate"] or []
    for settings in [simulated] if isinstance(simulated, dict) else simulated:
        command("simulate", "--out", folder / "simulated.jsonl", *options(settings), "--overwrite")
        parts.append((folder / "simulated.jsonl").read_text(encoding="utf-8"))
    (folder / "all.jsonl").write_text("".join(part.rstrip("\n") + "\n" for part in parts), encoding="utf-8")
    build, asked = data["build"], data["asked"]

    def build_rl(name: str, settings: Mapping[str, Any], *more: object) -> None:
        incidents = ["--incidents", folder / "all.jsonl", "--overwrite"]
        command("build-rl", "--out", folder / f"{name}.parquet", *incidents, *options(settings), *more)

    build_rl("rl", build)
    views = [",".join(f"{key}={value}" for key, value in view.items()) for view in data["views"]]
    build_rl("train", {**build, "view": views, "renamed": data["rename"], "shuffled": data["shuffle"]})
    # copies under names that no copy of SFT's has are the ones after these
    renamed = data["rename"] + asked["rename"] if asked["rename"] else 0
    fold = ["--folds", data["folds"], "--fold", data["folds"] - 1] if data["folds"] else []
    build_rl("ask", {**build, **asked["prompts"], "renamed": renamed}, *fold)
    if asked["simulate"]:
        command("simulate", "--out", folder / "asked.jsonl", *options(asked["simulate"]), "--overwrite")
        view = ["--incidents", folder / "asked.jsonl", *whole(build), "--overwrite"]
        command("build-rl", "--out", folder / "asked.parquet", *view)
    make_files(recipe, folder)
    (folder / "simulated.jsonl").unlink(missing_ok=True)


def make_files(recipe: Mapping[str, Any], folder: Path) -> None:
    import pyarrow.parquet as pq

    data = recipe["data"]
    train, ask = (pq.read_table(folder / f"{name}.parquet") for name in ("train", "ask"))
    rows, schema = train.to_pylist(), train.schema
    if data["asked"]["simulate"]:
        known = [row for name in ("rl", "asked") for row in pq.read_table(folder / f"{name}.parquet").to_pylist()]
        for number, row in enumerate(known):
            row["extra_info"]["index"] = number
        _write(folder / "known.parquet", known, schema)
    asked = asked_rows(data, ask.to_pylist(), folder)
    if data["folds"]:
        apart = {row["extra_info"]["group"] for row in ask.to_pylist()}
        rows = [row for row in rows if row["extra_info"]["group"] not in apart]
    for name, kept in (("train", rows), ("ask", asked)):
        for number, row in enumerate(kept):
            row["extra_info"]["index"] = number
        _write(folder / f"{name}.parquet", kept, schema)
    sides = [row for side in recipe["sides"] for row in pq.read_table(folder / f"rl.{side}.parquet").to_pylist()]
    if recipe["ask"]["limit"] is not None:
        sides = random.Random("sides").sample(sides, min(recipe["ask"]["limit"], len(sides)))
    _write(folder / "side.parquet", sides, pq.read_schema(folder / f"rl.{recipe['sides'][0]}.parquet"))
    _write(folder / "reference.parquet", list(map(after_reference, sides)), None)
    for name, stage in recipe["stages"].items():
        if stage["kind"] == "sft":
            write_conversations(folder, stage["prompts"])
        if stage["kind"] == "answers":
            chosen = pq.read_table(folder / f"{stage['prompts']}.parquet").to_pylist()
            if stage["limit"] is not None and stage["limit"] < len(chosen):
                chosen = random.Random(f"ask/{name}").sample(chosen, stage["limit"])
            for shard in range(stage["shards"]):
                _write(folder / f"{name}{shard}.parquet", chosen[shard :: stage["shards"]], schema)


def asked_rows(data: Mapping[str, Any], rows: list[Row], folder: Path) -> list[Row]:
    """The rows that models are asked while training: of the parts that a recipe names, without the copies that SFT has
    seen, and with the incidents simulated for this alone."""
    import pyarrow.parquet as pq

    asked = data["asked"]
    seen = tuple(f"#renamed{number}" for number in range(1, data["rename"] + 1))
    kept = [
        row
        for row in rows
        if row["extra_info"]["part"] in asked["parts"] and not row["extra_info"]["id"].endswith(seen)
    ]
    return kept + (pq.read_table(folder / "asked.parquet").to_pylist() if asked["simulate"] else [])


def _write(path: Path, rows: Sequence[Row], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not rows:
        raise SystemExit(f"{path}: no rows; give more incidents, or other shares")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def write_conversations(folder: Path, name: str) -> None:
    """The right conversations of a file of rows, for SFT."""
    import pyarrow.parquet as pq

    made = [conversation(row) for row in pq.read_table(folder / f"{name}.parquet").to_pylist()]
    with (folder / f"sft-{name}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    _write(folder / f"sft-{name}.parquet", [{"messages": [*row["prompt"], *row["chosen"]]} for row in made], None)


def whole(build: Mapping[str, Any]) -> list[str]:
    """The options of `data.build` for incidents of which none is held out."""
    return [*options({key: value for key, value in build.items() if key not in SPLIT}), "--val-share", "0"]


def options(settings: Mapping[str, Any]) -> list[str]:
    """A mapping as options; a list gives the option once for each value, true a flag."""
    made: list[str] = []
    for key, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            made += [f"--{key}"] if one is True else [f"--{key}", str(one)]
    return made


def conversation(row: Row) -> Row:
    """The right conversation after a row's prompt, as ``chosen``. A pair needs a rejected one too, which the loss `sft`
    does not look at: the same without a verdict."""
    answers, rounds = row["extra_info"]["answers"], row["extra_info"]["rounds"]
    chosen = [{"role": "assistant", "content": answers[0]}]
    for user, answer in zip(rounds, answers[1:]):
        chosen += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    rejected = [*chosen[:-1], {"role": "assistant", "content": "No verdict."}]
    return {
        "prompt": row["prompt"],
        "chosen": chosen,
        "rejected": rejected,
        "id": row["extra_info"]["id"],
        "group": row["extra_info"]["group"],
    }


def after_reference(row: Row) -> Row:
    """The last round alone, with the reference answers to those before it in the prompt."""
    info = row["extra_info"]
    *before, last = info["answers"]
    prompt = list(row["prompt"])
    for answer, user in zip(before, info["rounds"]):
        prompt += [{"role": "assistant", "content": answer}, {"role": "user", "content": user}]
    return {**row, "prompt": prompt, "extra_info": {**info, "rounds": [], "answers": [last]}}


def part_of(line: Mapping[str, Any]) -> str:
    """The part that an answer counts for: what its row says, else real or simulated by its source."""
    return line.get("part") or ("simulated" if (line["source"] or "").startswith("simulator/") else "real")

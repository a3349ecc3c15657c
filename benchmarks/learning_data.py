"""The files of `learning.py`: what is trained on, asked while training, and asked at the end.

train.parquet   RL rows that SFT sees, with other views of them, and copies under other names and in other orders
ask.parquet     RL rows that models are asked while training: a fold that SFT has not seen, or all; or other views,
                copies under other names, and incidents simulated for this alone (`data.asked`)
asked.jsonl     those incidents, asked.parquet their rows
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

__all__ = ["SPLIT", "build_data", "make_files", "options", "part_of", "renamed", "shuffled", "whole"]

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
    build = ["--incidents", folder / "all.jsonl", *options(data["build"]), "--overwrite"]
    command("build-rl", "--out", folder / "rl.parquet", *build)
    if data["folds"]:
        folds = ["--folds", data["folds"], "--fold", data["folds"] - 1]
        command("build-rl", "--out", folder / "fold.parquet", *folds, *build)
    for kind, views in (("view", data["views"]), ("asked", data["asked"]["views"])):
        for number, other in enumerate(views):
            view = ["--incidents", folder / "all.jsonl", *options({**data["build"], **other}), "--overwrite"]
            command("build-rl", "--out", folder / f"{kind}{number}.parquet", *view)
    if data["asked"]["simulate"]:
        command("simulate", "--out", folder / "asked.jsonl", *options(data["asked"]["simulate"]), "--overwrite")
        view = ["--incidents", folder / "asked.jsonl", *whole(data["build"]), "--overwrite"]
        command("build-rl", "--out", folder / "asked.parquet", *view)
    make_files(recipe, folder)
    (folder / "simulated.jsonl").unlink(missing_ok=True)


def make_files(recipe: Mapping[str, Any], folder: Path) -> None:
    import pyarrow.parquet as pq

    data = recipe["data"]
    table = pq.read_table(folder / "rl.parquet")
    rows = table.to_pylist()
    ask = rows
    if data["folds"]:
        ask = pq.read_table(folder / "fold.parquet").to_pylist()
        apart = {row["extra_info"]["group"] for row in ask}
        rows = [row for row in rows if row["extra_info"]["group"] not in apart]
    views = [row for number in range(len(data["views"])) for row in view_rows(folder / f"view{number}.parquet", rows)]
    copies = [renamed(row, seed) for seed in range(data["rename"]) for row in rows]
    copies += [shuffled(row, seed) for seed in range(data["shuffle"]) for row in rows]
    train = rows + views + [row for row in copies if row is not None]
    for number, row in enumerate(train):
        row["extra_info"]["index"] = number
    _write(folder / "train.parquet", train, table.schema)
    ask = asked_rows(data["asked"], ask, folder)
    _write(folder / "ask.parquet", ask, table.schema)
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
                _write(folder / f"{name}{shard}.parquet", chosen[shard :: stage["shards"]], table.schema)


def asked_rows(asked: Mapping[str, Any], rows: list[Row], folder: Path) -> list[Row]:
    """The rows that models are asked while training, in place of ``rows`` where a recipe has other views or copies."""
    import pyarrow.parquet as pq

    rows = [row for row in rows if row["extra_info"]["part"] in asked["parts"]]
    views = [row for number in range(len(asked["views"])) for row in view_rows(folder / f"asked{number}.parquet", rows)]
    # seeds that no copy of SFT's has
    copies = [renamed(row, 1000 + seed) for seed in range(asked["rename"]) for row in views or rows]
    made = views + [row for row in copies if row is not None] or rows
    if asked["simulate"]:
        made = made + pq.read_table(folder / "asked.parquet").to_pylist()
    for number, row in enumerate(made):
        row["extra_info"]["index"] = number
    return made


def view_rows(view: Path, rows: Sequence[Row]) -> list[Row]:
    """What another view shows of the same incidents, under ids of their own."""
    import pyarrow.parquet as pq

    wanted = {row["extra_info"]["id"] for row in rows}
    return [
        {**row, "extra_info": {**row["extra_info"], "id": f"{row['extra_info']['id']}#{view.stem}"}}
        for row in pq.read_table(view).to_pylist()
        if row["extra_info"]["id"] in wanted
    ]


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


def renamed(row: Row, seed: int) -> Row | None:
    """A copy whose candidate services have swapped names everywhere, so that only reading helps; None where there is
    nothing to swap, the data do not name the culprit (its new name could then only be guessed), or a name is found in
    the instruction or only within a quoted part of one."""
    from verl_aiops.evaluation.run.rename_check import pattern_of
    from verl_aiops.rewards.triage.answer import normalise_label

    truth = json.loads(row["reward_model"]["ground_truth"])
    offered = truth.get("candidates") or {}
    # "none" of both lists says that nothing has failed, which no other name does
    names = [name for name in offered.get("service") or [] if name not in (offered.get("incident_type") or [])]
    if len(names) < 2 or truth["service"] not in names:
        return None
    rng = random.Random(f"rename/{seed}/{row['extra_info']['id']}")
    order = rng.sample(names, len(names))
    swap = {normalise_label(old): new for old, new in zip(order, order[1:] + order[:1])}
    pattern = pattern_of(names)
    named = set(map(normalise_label, pattern.findall(row["extra_info"]["incident_text"])))
    if normalise_label(truth["service"]) not in named:
        return None

    def swapped(text: str) -> str:
        return pattern.sub(lambda match: swap[normalise_label(match.group())], text)

    truth["service"] = swapped(truth["service"])
    truth["candidates"]["service"] = [swap.get(normalise_label(name), name) for name in offered["service"]]
    truth["evidence"] = [swapped(text) for text in truth.get("evidence") or []]
    # other names of the old service would pay whoever remembers it
    truth["aliases"] = {**(truth.get("aliases") or {}), "service": []}
    copy = _copied(row, f"renamed{seed}", swapped, truth)
    kept = all(text in copy["extra_info"]["incident_text"] for text in truth["evidence"])
    return copy if kept and copy["extra_info"]["incident_text"] in copy["prompt"][0]["content"] else None


def shuffled(row: Row, seed: int) -> Row | None:
    """A copy whose candidate lists stand in another order; None where the prompt lists none."""
    truth = json.loads(row["reward_model"]["ground_truth"])
    rng = random.Random(f"shuffle/{seed}/{row['extra_info']['id']}")
    lists = {}
    for field, names in (truth.get("candidates") or {}).items():
        truth["candidates"][field] = rng.sample(names, len(names))
        lists[json.dumps(names, ensure_ascii=False)] = json.dumps(truth["candidates"][field], ensure_ascii=False)
    found = 0

    def reordered(text: str) -> str:
        nonlocal found
        lines = text.split("\n")
        for at, line in enumerate(lines):
            # a list stands at the end of its line, after its heading
            listed = next((old for old in lists if line.endswith((f": {old}", f"：{old}"))), None)
            if listed is not None:
                found += 1
                lines[at] = line.removesuffix(listed) + lists[listed]
        return "\n".join(lines)

    copy = _copied(row, f"shuffled{seed}", reordered, truth, last_only=True)
    return copy if found else None


def _copied(row: Row, mark: str, change: Callable[[str], str], truth: Row, last_only: bool = False) -> Row:
    info = row["extra_info"]
    *rounds, last = [*[message["content"] for message in row["prompt"]], *info["rounds"]]
    texts = [*(rounds if last_only else map(change, rounds)), change(last)]
    asked = len(row["prompt"])
    return {
        **row,
        "prompt": [{**message, "content": text} for message, text in zip(row["prompt"], texts)],
        "reward_model": {**row["reward_model"], "ground_truth": json.dumps(truth, ensure_ascii=False)},
        "extra_info": {
            **info,
            "id": f"{info['id']}#{mark}",
            "rounds": texts[asked:],
            "answers": [text if last_only else change(text) for text in info["answers"]],
            "incident_text": info["incident_text"] if last_only else change(info["incident_text"]),
        },
    }


def part_of(line: Mapping[str, Any]) -> str:
    """The part that an answer counts for: what its row says, else real or simulated by its source."""
    return line.get("part") or ("simulated" if (line["source"] or "").startswith("simulator/") else "real")

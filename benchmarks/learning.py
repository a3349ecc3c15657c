"""A table of what each stage of training brings, made again by one command: data, SFT, sampled answers, DPO on them,
online DPO, GRPO, each evaluated on held-out incidents, baselines beside them.

    python benchmarks/learning.py --recipe groups --incidents incidents.jsonl --model models/SmolLM2-135M-Instruct \\
        --gpus 0,1 --out runs/learning/groups
    python benchmarks/learning.py --recipe groups ... --set stages.sft.epochs=1 --set 'seeds=[0,1]'
    python benchmarks/learning.py --recipe groups ... --only data,baseline     # what needs no GPU, beforehand
    python benchmarks/learning.py --out runs/learning/groups --table-only      # from the kept answers alone
    python benchmarks/learning.py --recipe tiny --model TINY --device cpu --out /tmp/tiny  # every kind of stage

A recipe (benchmarks/recipes, or a YAML file of your own) names the stages and their settings; `learning_recipe.py` has
them all. Every seed goes through all stages. Jobs run side by side, `--per-gpu` on each of `--gpus`; a job that is done
is not done again while the settings of it and of what it comes from are the same, so a command that was ended goes on.
With `--minutes` it ends itself and makes the table of what there is.

    OUT/answers/LABEL/sSEED.jsonl.gz   every answer with its score (baselines: one run each)
    OUT/learning.json, table.md, learning.png, metrics/LABEL-sSEED.jsonl.gz (what the trainers logged)
    WORK (default OUT/work)            data, checkpoints, logs; may be deleted
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from learning_data import build_data
from learning_jobs import Job, Runner
from learning_recipe import read_recipe
from learning_stages import (
    collect_model,
    eval_arguments,
    keep_asked,
    pairs_arguments,
    sft_by_verl,
    train_command,
)
from learning_table import keep_answers, keep_metrics, plot, table_of, write_table

BASELINES = ("majority", "rule", "linear", "linear_values")
_FITTED = BASELINES[2:]
# Those that learn also the incidents simulated for what models are asked while training, as the stages do.
_ASKED = {f"{name}_asked": name for name in _FITTED}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="groups", help="name in benchmarks/recipes, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.KEY=VALUE", help="change the recipe")
    parser.add_argument("--incidents", nargs="*", default=[], metavar="FILE", help="incidents, JSONL")
    parser.add_argument("--model", metavar="DIR", help="folder of the model to start from")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, metavar="DIR", help="data, checkpoints and logs (default OUT/work)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpus", default="0", metavar="N,N", help="numbers of the GPUs (default %(default)s)")
    parser.add_argument("--per-gpu", type=int, default=3, metavar="N", help="jobs on each (default %(default)s)")
    parser.add_argument("--host-jobs", type=int, default=2, metavar="N", help="jobs without a device (default 2)")
    parser.add_argument("--minutes", type=float, metavar="M", help="end after so long, with the table of what there is")
    parser.add_argument("--only", metavar="J,J", help="jobs whose name begins so, with what they need: data,baseline")
    parser.add_argument("--held-to", metavar="LABEL", help="what the others are compared with (default: first stage)")
    parser.add_argument("--table-only", action="store_true", help="make the table from OUT/answers")
    arguments = parser.parse_args()
    if not arguments.table_only and not arguments.model:
        parser.error("--model DIR is needed, unless --table-only")
    return arguments


def main() -> int:
    arguments = parse()
    out = arguments.out.resolve()
    recipe = read_recipe(arguments.recipe, arguments.set)
    if arguments.table_only:
        return finish(out, recipe, arguments, None)
    work = (arguments.work or out / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("VERL_AIOPS_CACHE", str(work / "cache"))
    if not any(point.name == "verl_aiops" for point in importlib.metadata.entry_points(group="verl.plugins")):
        # a checkout on PYTHONPATH that is not installed: verl is told by name
        os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "verl_aiops.plugin")
    planned = Plan(recipe, arguments, work, out).jobs()
    jobs = chosen(planned, arguments.only.split(",")) if arguments.only else planned
    gpus = [None] if arguments.device == "cpu" else [int(gpu) for gpu in arguments.gpus.split(",")] * arguments.per_gpu
    runner = Runner(work, gpus, host=arguments.host_jobs, minutes=arguments.minutes)
    try:
        runner.run(jobs)
    finally:
        runner.end()
    runner.note_done(planned)
    for name, why in runner.failed.items():
        print(f"not done: {name}: {why.splitlines()[0]}", file=sys.stderr)
    if arguments.only and not (out / "answers").is_dir():
        return 1 if runner.failed else 0
    return finish(out, recipe, arguments, runner) or (1 if runner.failed else 0)


def chosen(jobs: list[Job], beginnings: list[str]) -> list[Job]:
    """The jobs whose names begin so, and those that they need."""
    named = {job.name: job for job in jobs}
    wanted: set[str] = set()
    left = [job.name for job in jobs if job.name.startswith(tuple(beginnings))]
    while left:
        name = left.pop()
        if name not in wanted:
            wanted.add(name)
            left += named[name].needs
    return [job for job in jobs if job.name in wanted]


class Plan:
    """The jobs of a recipe."""

    def __init__(self, recipe: Mapping[str, Any], arguments: argparse.Namespace, work: Path, out: Path):
        self.recipe, self.arguments, self.work, self.out = recipe, arguments, work, out
        self.data = work / "data"
        self.base = Path(arguments.model).resolve()

    def jobs(self) -> list[Job]:
        made = [self._data(), self._baseline()]
        for seed in self.recipe["seeds"]:
            if self.recipe["base"] and seed == self.recipe["seeds"][0]:
                made.append(self._eval("base", seed))
            for name, stage in self.recipe["stages"].items():
                if stage["kind"] == "answers":
                    made += [self._answers(name, stage, seed, shard) for shard in range(stage["shards"])]
                    continue
                if stage["kind"] == "reference":
                    made.append(self._eval(name, seed))
                    continue
                if stage["kind"] == "dpo":
                    made.append(self._pairs(name, stage, seed))
                made += [self._train(name, stage, seed), self._eval(name, seed)]
        # stage by stage, so that all seeds go on together; nothing waits for an evaluation
        order = ["data", "baseline", *self.recipe["stages"], "base"]
        return sorted(made, key=lambda job: ("/eval-" in job.name, order.index(job.name.partition("/")[0])))

    def _data(self) -> Job:
        files = [str(Path(path).resolve()) for path in self.arguments.incidents]
        kept = {key: self.recipe[key] for key in ("data", "sides")}
        shards = {name: stage for name, stage in self.recipe["stages"].items() if stage["kind"] == "answers"}
        digests = [hashlib.blake2b(Path(path).read_bytes(), digest_size=12).hexdigest() for path in files]

        def do(folder: Path, run: Callable) -> None:
            build_data(self.recipe, files, folder, partial(verl_aiops, run))

        kept["sft"] = sorted({stage["prompts"] for stage in self.recipe["stages"].values() if stage["kind"] == "sft"})
        kept |= {"shards": shards, "limit": self.recipe["ask"]["limit"], "incidents": digests}
        return Job("data", do, kept)

    def _baseline(self) -> Job:
        def do(folder: Path, run: Callable) -> None:
            methods = BASELINES if importlib.util.find_spec("sklearn") else BASELINES[:2]
            labels = {name: name for name in methods}
            asked = _ASKED if self.recipe["data"]["asked"]["simulate"] and set(_FITTED) <= set(methods) else {}
            for data, of in (("rl", labels), ("known", asked)):
                if of:
                    rows = ["--data", self.data / f"{data}.parquet", "--val", self.data / "side.parquet"]
                    verl_aiops(run, "baseline", *rows, "--out", folder / data, "--methods", ",".join(of.values()))
                for label, name in of.items():
                    kept = self.out / "answers" / label / "s0.jsonl.gz"
                    keep_answers(folder / data / name / "generations.jsonl", kept)

        return Job("baseline", do, {"methods": [*BASELINES, *_ASKED]}, ("data",))

    def _model(self, stage: str, seed: int) -> Path:
        return self.base if stage == "base" else self.work / stage / f"s{seed}" / "model"

    def _trained(self, stage: str, seed: int) -> tuple[str, ...]:
        return () if stage == "base" else (f"{stage}/s{seed}",)

    def _train(self, name: str, stage: Mapping[str, Any], seed: int) -> Job:
        needs = {"data", *self._trained(stage["from"], seed)}
        if stage["kind"] == "dpo":
            needs.add(f"{name}/pairs-s{seed}")
            file = self.work / name / f"pairs-s{seed}" / "pairs.parquet"
        elif stage["kind"] == "sft":
            file = self.data / f"sft-{stage['prompts']}.{'parquet' if stage['trainer'] == 'verl' else 'jsonl'}"
        else:
            file = self.data / f"{stage['prompts']}.parquet"
        model, device = self._model(stage["from"], seed), self.arguments.device

        def do(folder: Path, run: Callable) -> None:
            checkpoints = folder / "run"
            if stage["kind"] == "sft" and stage["trainer"] == "verl":
                env = {"MODEL": model, "TRAIN": file, "VAL": "null", "OUT": checkpoints}
                env["GPUS"] = "0" if device == "cpu" else "1"
                run(sft_by_verl(stage, seed=seed, device=device), {key: str(value) for key, value in env.items()})
            else:
                command = train_command(
                    stage, self.recipe, model=model, data=file, out=checkpoints, seed=seed, device=device
                )
                run(command, {"VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")})
            collect_model(stage["kind"], checkpoints, folder / "model")
            if (folder / "metrics.jsonl").is_file():
                keep_metrics(folder / "metrics.jsonl", self.out / "metrics" / f"{name}-s{seed}.jsonl.gz")

        settings = {**stage, "seed": seed, "ask": self.recipe["ask"]["round-tokens"], "device": device}
        if stage["from"] == "base":
            settings["model"] = self._digest()
        return Job(f"{name}/s{seed}", do, settings, tuple(sorted(needs)), on_device=True)

    def _digest(self) -> str:
        """Of the first model: its configuration, and the size of its weights."""
        weights = sorted((file.name, file.stat().st_size) for file in self.base.glob("*.safetensors"))
        return hashlib.blake2b(
            (self.base / "config.json").read_bytes() + json.dumps(weights).encode(), digest_size=12
        ).hexdigest()

    def _answers(self, name: str, stage: Mapping[str, Any], seed: int, shard: int) -> Job:
        def do(folder: Path, run: Callable) -> None:
            sampling = ("--n", stage["n"], "--temperature", stage["temperature"], "--seed", seed)
            model, data = self._model(stage["of"], seed), self.data / f"{name}{shard}.parquet"
            verl_aiops(run, *eval_arguments(self.recipe, model, data, folder / "eval", *sampling))

        settings = {**stage, "seed": seed, "shard": shard, "ask": self.recipe["ask"]["round-tokens"]}
        needs = ("data", *self._trained(stage["of"], seed))
        return Job(f"{name}/s{seed}-{shard}", do, settings, needs, on_device=True)

    def _pairs(self, name: str, stage: Mapping[str, Any], seed: int) -> Job:
        shards = range(self.recipe["stages"][stage["answers"]]["shards"])
        asked = [f"{stage['answers']}/s{seed}-{shard}" for shard in shards]

        def do(folder: Path, run: Callable) -> None:
            answers = [self.work / job / "eval" for job in asked]
            file = folder / "pairs.parquet"
            verl_aiops(run, *pairs_arguments(stage, self.recipe, answers, self.data, file))
            keep_asked(file, [self.data / f"{stage['answers']}{shard}.parquet" for shard in shards])

        settings = {key: stage[key] for key in ("form", "pairs-per-incident")}
        return Job(f"{name}/pairs-s{seed}", do, settings, ("data", *asked))

    def _eval(self, stage: str, seed: int) -> Job:
        after = self.recipe["stages"].get(stage, {}).get("kind") == "reference"
        asked = self.recipe["stages"][stage]["of"] if after else stage

        def do(folder: Path, run: Callable) -> None:
            data = self.data / ("reference.parquet" if after else "side.parquet")
            arguments = eval_arguments(self.recipe, self._model(asked, seed), data, folder / "eval", last_round=after)
            verl_aiops(run, *arguments)
            target = self.out / "answers" / stage / f"s{seed}.jsonl.gz"
            keep_answers(folder / "eval" / "generations.jsonl", target)

        settings = {"model": self._digest() if asked == "base" else "", "ask": self.recipe["ask"]["round-tokens"]}
        return Job(f"{stage}/eval-s{seed}", do, settings, ("data", *self._trained(asked, seed)), on_device=True)


def verl_aiops(run: Callable, *arguments: object) -> None:
    run([sys.executable, "-m", "verl_aiops.cli", *map(str, arguments)])


def finish(out: Path, recipe: Mapping[str, Any], arguments: argparse.Namespace, runner: Runner | None) -> int:
    """The table and the plot of the answers that there are, and what they were made with."""
    about = out / "learning.json"
    before = json.loads(about.read_text()) if about.is_file() else {}
    if arguments.table_only:
        if not before:
            raise SystemExit(f"{about}: not there; --table-only makes the table of a folder of this script again")
        recipe = before["recipe"]
    models = [name for name, stage in recipe["stages"].items() if stage["kind"] != "answers"]
    result = {
        "recipe": recipe,
        "command": before["command"] if arguments.table_only else [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": before["machine"] if arguments.table_only else machine(arguments.device),
        "seconds": runner.seconds if runner else before["seconds"],
        "not_done": runner.failed if runner else before["not_done"],
    }
    done = {
        label: [f"s{seed}.jsonl.gz" for seed in recipe["seeds"] if f"{label}/eval-s{seed}" in result["seconds"]]
        for label in [*models, "base"]
    }
    baselines = (*BASELINES, *_ASKED)
    if "baseline" in result["seconds"]:
        done |= {name: ["s0.jsonl.gz"] for name in baselines if (out / "answers" / name).is_dir()}
    result["baselines"] = [name for name in baselines if done.get(name)]
    missing = [name for name in _FITTED if name not in result["baselines"]]
    if missing:
        print(f"no {' and '.join(missing)}: scikit-learn is not installed, or --only left them out", file=sys.stderr)
    # first without the table: --table-only makes it elsewhere, should anything be missing here
    about.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    held_to = arguments.held_to or next((label for label, names in done.items() if names), "nothing")
    result["table"] = table_of(out / "answers", held_to, done)
    about.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(write_table(result, out / "table.md"))
    if importlib.util.find_spec("matplotlib"):
        plot(result, out / "learning.png")
    print(f"{out}: answers, learning.json, table.md{', learning.png' if (out / 'learning.png').exists() else ''}")
    return 0


def machine(device: str) -> dict[str, Any]:
    about: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for package in ("torch", "transformers", "verl", "verl-aiops", "scikit-learn"):
        try:
            about[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            about[package] = None
    if device == "cuda" and shutil.which("nvidia-smi"):
        import subprocess

        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        about["gpus"] = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[:-1]
    return about


if __name__ == "__main__":
    sys.exit(main())

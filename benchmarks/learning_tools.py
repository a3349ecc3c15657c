"""What training brings to investigations with tools, made again by one command from a model and the simulator alone:
cases, SFT on the scripted investigator, GRPO and online DPO with tools, each stage asked about held-out cases.

    python benchmarks/learning_tools.py --model models/SmolLM2-135M-Instruct --out runs/learning/tools
    python benchmarks/learning_tools.py --model ... --cases ~/data/public --gpus 0 --per-gpu 3 --minutes 9 --out ...
    python benchmarks/learning_tools.py --model ... --set stages.grpo.steps=200 --set stages.online_dpo=null --out ...
    python benchmarks/learning_tools.py --model ... --rollout hf --out ...    # no inference server
    python benchmarks/learning_tools.py --model ... --only data,rule,linear,base,sft --out ...    # before RL
    python benchmarks/learning_tools.py --out runs/learning/tools --table-only
    python benchmarks/learning_tools.py --recipe tiny --model TINY --device cpu --out /tmp/tiny    # a step of each

A recipe (benchmarks/recipes/tools, or a YAML file of your own) has the cases, the budgets of an investigation and the
stages, with the settings of `learning.py`. `--cases FOLDER` brings more cases (*.jsonl or *.jsonl.gz, as `verl-aiops
import` writes them): those in files named train* are trained on too, the others are a side that models are asked about.

Jobs run side by side, `--per-gpu` on each of `--gpus`; what is done is not done again, so a command that was ended, by
`--minutes` or otherwise, goes on, training from its last checkpoint.

    OUT/answers/LABEL/sSEED.jsonl.gz    every investigation: messages, calls, answers of tools, score
    OUT/learning.json, table.md, tables/SIDE.txt, learning.png, reward.png, transcript.md
    OUT/metrics/LABEL-sSEED.jsonl.gz    what the trainers logged
    WORK (default OUT/work)             cases, checkpoints, logs; may be deleted
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from learning import chosen, machine, verl_aiops
from learning_jobs import Job, Runner
from learning_recipe import RECIPES, read_recipe
from learning_stages import collect_model, train_command
from learning_table import keep_metrics
from tools_data import PUBLIC, asked_sides, build_data
from tools_report import keep_investigations, write_report

RECIPES_OF_TOOLS = RECIPES / "tools"
# Sections of a recipe beside those of `learning.py`: cases to simulate, by what they are for, and how many of another
# set are asked; the budgets of an investigation.
SECTIONS: dict[str, dict[str, Any]] = {
    "cases": {"sft": [], "rl": [], "held-out": [], "unseen topology": [], PUBLIC: 200},
    "tools": {
        "answer-chars": 400,
        "public-answer-chars": 700,
        "max-calls": 8,
        "turn-tokens": 96,
        "verdict-tokens": 320,
        "prompt-tokens": 1024,
        "response-tokens": 2048,
    },
}
RULE, LINEAR = "rule", "linear"
_PRESETS = {"grpo": "grpo_mturn", "online_dpo": "online_dpo"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smollm2", help="name in benchmarks/recipes/tools, or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.KEY=VALUE", help="change the recipe")
    parser.add_argument("--model", metavar="DIR", help="folder of the model to start from")
    parser.add_argument("--cases", type=Path, metavar="FOLDER", help="more cases, *.jsonl or *.jsonl.gz")
    parser.add_argument("--rollout", choices=("sglang", "vllm", "hf"), help="instead of the recipe's; hf on a CPU")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, metavar="DIR", help="cases, checkpoints and logs (default OUT/work)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpus", default="0", metavar="N,N", help="numbers of the GPUs (default %(default)s)")
    parser.add_argument("--per-gpu", type=int, default=3, metavar="N", help="jobs on each (default %(default)s)")
    parser.add_argument("--host-jobs", type=int, default=2, metavar="N", help="jobs without a device (default 2)")
    parser.add_argument("--minutes", type=float, metavar="M", help="end after so long, with the table of what there is")
    parser.add_argument("--only", metavar="J,J", help="jobs whose name begins so, with what they need: data,rule,sft")
    parser.add_argument("--table-only", action="store_true", help="make the report from OUT/answers")
    arguments = parser.parse_args()
    if not arguments.table_only and not arguments.model:
        parser.error("--model DIR is needed, unless --table-only")
    if arguments.cases and not asked_sides(arguments.cases):
        parser.error(f"--cases {arguments.cases}: expected *.jsonl or *.jsonl.gz that are not named train*")
    return arguments


def main() -> int:
    arguments = parse()
    out = arguments.out.resolve()
    if arguments.table_only:
        return finish(out, json.loads((out / "learning.json").read_text()))
    recipe = read_recipe(arguments.recipe, arguments.set, folder=RECIPES_OF_TOOLS, sections=SECTIONS)
    engine = "hf" if arguments.device == "cpu" else arguments.rollout
    for stage in recipe["stages"].values():
        if engine and "rollout" in stage:
            stage["rollout"] = engine
            if engine != "sglang":
                stage["overrides"] = [text for text in stage["overrides"] if "engine_kwargs.sglang" not in text]
    work = (arguments.work or out / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("VERL_AIOPS_CACHE", str(work / "cache"))
    if not any(point.name == "verl_aiops" for point in importlib.metadata.entry_points(group="verl.plugins")):
        # a checkout on PYTHONPATH that is not installed: verl is told by name
        os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "verl_aiops.plugin")
    gpus = [None] if arguments.device == "cpu" else [int(gpu) for gpu in arguments.gpus.split(",")] * arguments.per_gpu
    planned = Plan(recipe, arguments, work, out).jobs()
    runner = Runner(work, gpus, host=arguments.host_jobs, minutes=arguments.minutes)
    try:
        runner.run(chosen(planned, arguments.only.split(",")) if arguments.only else planned)
    finally:
        runner.end()
    runner.note_done(planned)
    for name, why in runner.failed.items():
        print(f"not done: {name}: {why.splitlines()[0]}", file=sys.stderr)
    result = {
        "recipe": recipe,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": machine(arguments.device),
        "seconds": runner.seconds,
        "not_done": runner.failed,
    }
    return finish(out, result) or (1 if runner.failed else 0)


def finish(out: Path, result: dict[str, Any]) -> int:
    """The report of the answers that there are."""
    out.mkdir(parents=True, exist_ok=True)
    labels = [RULE, LINEAR, "base", *result["recipe"]["stages"]]
    done = {
        label: [
            out / "answers" / label / f"s{seed}.jsonl.gz"
            for seed in result["recipe"]["seeds"]
            if (out / "answers" / label / f"s{seed}.jsonl.gz").is_file()
        ]
        for label in labels
    }
    # first without tables: --table-only makes them elsewhere, should anything be missing here
    (out / "learning.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    done = {label: files for label, files in done.items() if files}
    if not done:
        print(f"{out}: no answers yet", file=sys.stderr)
        return 1
    result["sides"], text = write_report(out, done, baselines=(RULE, LINEAR))
    (out / "learning.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}")
    return 0


class Plan:
    """The jobs of a recipe."""

    def __init__(self, recipe: Mapping[str, Any], arguments: argparse.Namespace, work: Path, out: Path):
        self.recipe, self.arguments, self.work, self.out = recipe, arguments, work, out
        self.data = work / "data"
        self.base = Path(arguments.model).resolve()
        self.tools = recipe["tools"]

    def jobs(self) -> list[Job]:
        made = [self._data(), *self._baselines()]
        for seed in self.recipe["seeds"]:
            for name, stage in self.recipe["stages"].items():
                made += [self._train(name, stage, seed), self._eval(name, seed)]
        if self.recipe["base"]:
            made.append(self._eval("base", self.recipe["seeds"][0]))
        # nothing waits for an evaluation
        return sorted(made, key=lambda job: "/eval-" in job.name)

    def _data(self) -> Job:
        files = [] if self.arguments.cases is None else sorted(self.arguments.cases.resolve().glob("*.jsonl*"))
        digests = {file.name: hashlib.blake2b(file.read_bytes(), digest_size=12).hexdigest() for file in files}

        def do(folder: Path, run: Callable) -> None:
            build_data(self.recipe, files, folder, lambda *one: verl_aiops(run, *one))

        budgets = {key: self.tools[key] for key in ("answer-chars", "public-answer-chars", "max-calls")}
        return Job("data", do, {"cases": self.recipe["cases"], "files": digests, **budgets})

    def _baselines(self) -> list[Job]:
        def do(folder: Path, run: Callable, label: str) -> None:
            rows = ("--data", self.data / "train.parquet", "--val", self.data / "side.parquet", "--methods", label)
            verl_aiops(run, "baseline", *rows, "--out", folder / "eval", "--overwrite")
            file = folder / "eval" / label / "generations.jsonl"
            keep_investigations(file, self.out / "answers" / label / "s0.jsonl.gz")

        labels = [RULE, *([LINEAR] if importlib.util.find_spec("sklearn") else [])]
        return [Job(label, partial(do, label=label), {}, ("data",)) for label in labels]

    def _model(self, stage: str, seed: int) -> Path:
        return self.base if stage == "base" else self.work / stage / f"s{seed}" / "model"

    def _needs(self, stage: str, seed: int) -> tuple[str, ...]:
        return ("data",) if stage == "base" else ("data", f"{stage}/s{seed}")

    def _train(self, name: str, stage: Mapping[str, Any], seed: int) -> Job:
        rl = stage["kind"] in _PRESETS
        model, device = self._model(stage["from"], seed), self.arguments.device
        command = tools_command(
            stage,
            self.recipe,
            model=model,
            data=self.data / ("rl.parquet" if rl else "sft.jsonl"),
            out=self.work / name / f"s{seed}" / "run",
            seed=seed,
            device=device,
        )

        def do(folder: Path, run: Callable) -> None:
            run(command, {"VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")})
            collect_model(stage["kind"], folder / "run", folder / "model")
            keep_metrics(folder / "metrics.jsonl", self.out / "metrics" / f"{name}-s{seed}.jsonl.gz")

        settings = {**stage, "tools": self.tools, "seed": seed, "device": device, "model": self._digest()}
        return Job(f"{name}/s{seed}", do, settings, self._needs(stage["from"], seed), on_device=True)

    def _digest(self) -> str:
        """Of the first model: its configuration, and the size of its weights."""
        weights = sorted((file.name, file.stat().st_size) for file in self.base.glob("*.safetensors"))
        text = (self.base / "config.json").read_bytes() + json.dumps(weights).encode()
        return hashlib.blake2b(text, digest_size=12).hexdigest()

    def _eval(self, stage: str, seed: int) -> Job:
        budgets = {key: self.tools[key] for key in ("max-calls", "turn-tokens", "verdict-tokens")}
        asked = [
            *("--data", self.data / "side.parquet", "--concurrency", self.recipe["ask"]["concurrency"]),
            *("--tools", ",".join(f"{key.replace('-', '_')}={value}" for key, value in budgets.items())),
            *("--max-response-length", self.tools["response-tokens"]),
        ]

        def do(folder: Path, run: Callable) -> None:
            verl_aiops(run, "eval", "--model", self._model(stage, seed), *asked, "--out", folder / "eval")
            target = self.out / "answers" / stage / f"s{seed}.jsonl.gz"
            keep_investigations(folder / "eval" / "generations.jsonl", target)

        settings = {"tools": self.tools, "model": self._digest()}
        return Job(f"{stage}/eval-s{seed}", do, settings, self._needs(stage, seed), on_device=True)


def tools_command(
    stage: Mapping[str, Any], recipe: Mapping[str, Any], *, model: Path, data: Path, out: Path, seed: int, device: str
) -> list[str]:
    """`main_ppo` for a stage, as `learning_stages.train_command` makes it, with the loop and the budgets of tools."""
    tools, section = recipe["tools"], "actor_rollout_ref.rollout.custom.aiops_tools"
    more = [
        f"data.max_prompt_length={tools['prompt-tokens']}",
        f"data.max_response_length={tools['response-tokens']}",
    ]
    if stage["kind"] in _PRESETS:
        more += [
            f"{section}.{key.replace('-', '_')}={tools[key]}" for key in ("max-calls", "turn-tokens", "verdict-tokens")
        ]
        more.append("actor_rollout_ref.rollout.multi_turn.format=hermes")
    settings = {**stage, "overrides": [*more, *stage["overrides"]]}
    command = train_command(settings, recipe, model=model, data=data, out=out, seed=seed, device=device)
    if stage["kind"] in _PRESETS:
        presets = [_PRESETS[stage["kind"]], "tools", *(["cpu"] if device == "cpu" else [])]
        at = next(at for at, text in enumerate(command) if text.startswith("+verl_aiops="))
        command[at] = f"+verl_aiops=[{','.join(presets)}]"
    return command


if __name__ == "__main__":
    sys.exit(main())

"""Whole GRPO steps on triage through `main_ppo`, verl's own engine against ours: generation, scoring, update, weights.

    python benchmarks/bench_rl_steps.py --model models/SmolLM2-135M-Instruct --prompts 4 --n 4 --out ...
    python benchmarks/bench_rl_steps.py --device cuda --model MODEL --architecture 1.5b --out ... \\
        --overrides KEY=VALUE .. --stock KEY=VALUE ..

Both are the preset `grpo_mturn` on the same incidents, and differ in `algorithm.logprob_backend` (and in what `--stock`
and `--ours` give one of them). They take turns, `--rounds` times, a run of `--steps` steps each; the first step of a
run is not counted. Random weights (`--architecture`, or `same` for the model's own) never end an answer, so that all
answers have the lengths of `--round-tokens` in both. Writes OUT.json after every run, goes on from there when called
again, and the plots OUT.png and OUT.svg.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_dpo import machine
from dpo_runs import make_model
from rl_plots import COLOURS, plot_parts

BACKENDS = {"verl": "stock", "ours": "shared_prompt"}
PARTS = tuple(COLOURS)[:-1]
SAID = "verl-aiops: "
KEPT = ("perf/max_memory_allocated_gb", "perf/throughput", "prompt_length/mean", "response_length/mean")


def random_like(folder: Path, model: str) -> Path:
    """Random weights of a model's own architecture, with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def make_data(folder: Path, arguments) -> None:
    start = "import sys; from verl_aiops.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = ["-c", start, "build-rl", "--out", str(folder / "rl.parquet")]
    command += ["--num-incidents", str(arguments.incidents), "--seed", "0", *arguments.data]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def overrides(engine: str, arguments, model: str, data: Path, out: Path) -> list[str]:
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    rounds = [int(tokens) for tokens in arguments.round_tokens.split(",")]
    return [
        "+verl_aiops=[grpo_mturn,cpu]" if arguments.device == "cpu" else "+verl_aiops=grpo_mturn",
        f"++algorithm.logprob_backend={BACKENDS[engine]}",
        f"data.train_files={data / 'rl.parquet'}",
        f"data.val_files={data / 'rl.val.parquet'}",
        f"data.train_batch_size={arguments.prompts}",
        "data.max_prompt_length=1536",
        f"data.max_response_length={sum(rounds) + arguments.instruction_tokens}",
        "data.shuffle=False",
        f"actor_rollout_ref.model.path={model}",
        f"{actor}.ppo_micro_batch_size_per_gpu={arguments.micro_rows}",
        f"{rollout}.log_prob_micro_batch_size_per_gpu={arguments.micro_rows}",
        f"{rollout}.n={arguments.n}",
        f"{rollout}.custom.aiops_mturn.round_tokens=[{','.join(map(str, rounds))}]",
        f"trainer.n_gpus_per_node={arguments.gpus}",
        f"trainer.total_training_steps={arguments.steps}",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.logger=[console,file]",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={out}",
        *arguments.overrides,
        *(arguments.stock if engine == "verl" else arguments.ours),
    ]


def run(engine: str, arguments, model: str, data: Path, folder: Path) -> dict:
    """Metrics of each step of a run; what it wrote goes to run.log beside them, and is shown where it fails."""
    out = folder / "out"
    out.mkdir(parents=True)
    metrics, log = folder / "metrics.jsonl", folder / "run.log"
    started = time.time()
    with log.open("w") as to:
        done = subprocess.run(
            [sys.executable, "-m", "verl.trainer.main_ppo", *overrides(engine, arguments, model, data, out)],
            cwd=folder,
            env={**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics), "HYDRA_FULL_ERROR": "1"},
            stdout=to,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise SystemExit(f"{engine}: main_ppo ended with {done.returncode}\n{log.read_text(errors='replace')[-6000:]}")
    steps: dict[int, dict] = {}
    for line in metrics.read_text().splitlines():
        entry = json.loads(line)
        steps.setdefault(entry["step"], {}).update(entry["data"])
    rows = [row for row in steps.values() if "timing_s/step" in row]
    said = [line[line.index(SAID) :] for line in log.read_text(errors="replace").splitlines() if SAID in line]
    kept = [{k: v for k, v in row.items() if k.startswith(("timing_s/", "perf/")) or k in KEPT} for row in rows]
    return {"steps": kept, "total_s": time.time() - started, "said": list(dict.fromkeys(said))}


def _mean_seconds(rows: list[dict], part: str) -> float:
    """0 where a run has no such part."""
    return statistics.mean(row.get(f"timing_s/{part}", 0.0) for row in rows)


def summarise(runs: list[dict]) -> dict:
    """Seconds of each part of a step, over all turns and their steps after the first."""
    found: dict[str, dict] = {}
    for engine in BACKENDS:
        timed = [row for one in runs if one["engine"] == engine for row in one["steps"][1:]]
        if not timed:
            continue
        seconds = {part: _mean_seconds(timed, part) for part in PARTS}
        step = _mean_seconds(timed, "step")
        seconds["other"] = max(0.0, step - sum(seconds.values()))
        means = {key: statistics.mean(row[key] for row in timed) for key in KEPT if key in timed[0]}
        turns = [statistics.mean(r["timing_s/step"] for r in o["steps"][1:]) for o in runs if o["engine"] == engine]
        peak = max((row.get("perf/max_memory_allocated_gb", 0.0) for row in timed), default=0.0)
        found[engine] = {"seconds": seconds, "step": step, "of_turns": turns, "timed_steps": len(timed)}
        found[engine] |= {"peak_gib": peak or None, "means": means}
    if len(found) == 2:
        scored = {e: sum(f["seconds"][p] for p in ("old_log_prob", "ref", "update_actor")) for e, f in found.items()}
        found["ours"]["ratio_step"] = found["verl"]["step"] / found["ours"]["step"]
        found["ours"]["ratio_passes"] = scored["verl"] / scored["ours"]
    return found


def show(found: dict) -> list[str]:
    lines = []
    for engine, one in found.items():
        parts = ", ".join(f"{part} {value:.2f}" for part, value in one["seconds"].items())
        peak = f", peak {one['peak_gib']:.1f} GiB" if one["peak_gib"] else ""
        lines.append(f"{engine}: {one['step']:.2f} s a step of {one['timed_steps']} ({parts}){peak}")
    if "ratio_step" in found.get("ours", {}):
        ours = found["ours"]
        lines.append(f"verl / ours: step {ours['ratio_step']:.2f}, scoring and update {ours['ratio_passes']:.2f}")
    return lines


def arguments_of(argv: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--architecture", choices=("1.5b", "same"), help="random weights, tokenizer of --model")
    parser.add_argument("--prompts", type=int, default=16, help="of a step (default %(default)s)")
    parser.add_argument("--n", type=int, default=8, help="answers to each (default %(default)s)")
    parser.add_argument("--micro-rows", type=int, default=8, help="rows of a micro-batch (default %(default)s)")
    parser.add_argument("--round-tokens", default="150,50", help="of the two rounds (default %(default)s)")
    parser.add_argument("--instruction-tokens", type=int, default=128, help="at most, between them (default 128)")
    parser.add_argument("--incidents", type=int, default=300, help="simulated (default %(default)s)")
    parser.add_argument("--data", nargs="*", default=[], help="more arguments of build-rl, as lang=zh max-chars=0")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="of a run (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of both (default %(default)s)")
    parser.add_argument("--engines", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    for name, text in (("overrides", "both"), ("stock", "verl"), ("ours", "ours")):
        parser.add_argument(f"--{name}", nargs="*", default=[], help=f"more settings of main_ppo for {text}")
    parser.add_argument("--out", required=True, help="OUT.json, OUT.png and OUT.svg are written")
    arguments = parser.parse_args(argv)
    arguments.data = [f"--{word}" for word in arguments.data]
    if arguments.steps < 2:
        parser.error(f"--steps {arguments.steps}: 2 at least, as the first is not timed")
    return arguments


def main() -> int:
    arguments = arguments_of(sys.argv[1:])
    # a name may have a dot in it
    out, picture = (Path(f"{arguments.out}{ending}") for ending in (".json", ".png"))
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": shlex.join(["python", "benchmarks/bench_rl_steps.py", *sys.argv[1:]]),
        "machine": machine(arguments.device),
        "gpus": arguments.gpus,
        "versions": {p: importlib.metadata.version(p) for p in ("verl", "torch", "transformers")},
        "model": {"1.5b": "1.5b"}.get(arguments.architecture, Path(arguments.model).name),
        "runs": [],
    }
    if out.exists():
        before = json.loads(out.read_text())
        for key in ("machine", "gpus", "versions", "model"):
            if before[key] != record[key]:
                raise SystemExit(f"{out} is of {key} {before[key]}, this of {record[key]}: take another --out")
        record["runs"] = before["runs"]
    with tempfile.TemporaryDirectory(prefix="steps-") as name:
        folder = Path(name)
        model = str(Path(arguments.model).resolve())
        if arguments.architecture == "same":
            model = str(random_like(folder / "model", model))
        elif arguments.architecture:
            model = str(make_model(folder / "model", model, arguments.architecture))
        make_data(folder, arguments)
        for turn in range(arguments.rounds):
            for engine in arguments.engines:
                if any(one["engine"] == engine and one["turn"] == turn for one in record["runs"]):
                    continue
                found = run(engine, arguments, model, folder, folder / f"{engine}-{turn}")
                record["runs"].append({"engine": engine, "turn": turn, **found})
                record["summary"] = summarise(record["runs"])
                out.write_text(json.dumps(record, indent=1) + "\n")
                times = ", ".join(f"{row['timing_s/step']:.2f}" for row in found["steps"])
                print(f"turn {turn + 1}, {engine}: steps of {times} s, {found['total_s']:.0f} s in all", flush=True)
    record["summary"] = summarise(record["runs"])
    print("\n".join(show(record["summary"])), flush=True)
    plot_parts({"base": {"runs": record["summary"]}}, picture)
    print(f"{out}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

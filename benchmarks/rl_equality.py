"""GRPO on triage by verl's own engine and by ours, step by step on the same answers: are they the same run?

    python benchmarks/rl_equality.py --model models/SmolLM2-135M-Instruct --out benchmarks/results/rl_equality

Runs of `python -m verl.trainer.main_ppo +verl_aiops=[grpo_mturn,cpu]` in float32 on the CPU, from the same
weights and seeds. The first is stock verl's (`algorithm.logprob_backend=stock`); the answers of its steps are recorded
by verl's own `skip.rollout_tq`. The second is ours (`shared_prompt`: prompts once, rows in another order, old log-probs
those of the update) and trains on those records, so that no draw that falls otherwise leads them apart; with --again
stock verl trains on them once more, which shows what its own arithmetic repeats. Steps pass through everything that
training has: rewards, advantages, reference, KL loss, gradient clipping, AdamW.

Compared are the loss and its parts, the norm of the gradient and the entropy of every step, and the weights after the
last one, whose difference is set against how far training moved them. A model that is not trained never answers right,
so the reward also counts letters; a KL coefficient of 0.1 makes the reference count. Writes OUT.json and OUT.png; ends
with 1 if a step's loss differs by more than --tolerance (relative, or absolute below 1).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_dpo import machine

RUNS = {"verl": "stock", "ours": "shared_prompt", "verl again": "stock"}
COMPARED = ("actor/loss", "actor/pg_loss", "actor/kl_loss", "actor/grad_norm", "actor/entropy")
REWARD = """
from verl_aiops.rewards.aiops_mturn import compute_score as real

def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    parts = real(data_source, solution_str, ground_truth, extra_info)
    letters = sum(text.count("e") for text in extra_info["turns"])
    return {**parts, "score": parts["score"] + min(1.0, letters / 40)}
"""


def prepare(work: Path, arguments) -> None:
    """Incidents and reward."""
    from verl_aiops.cli.main import main as command

    (work / "reward.py").write_text(REWARD)
    size = ["--num-incidents", str(3 * arguments.prompts * 10), "--max-chars", "150", "--max-candidates", "3"]
    if command(["build-rl", "--out", str(work / "rl.parquet"), "--lang", "mix", "--seed", str(arguments.seed), *size]):
        raise SystemExit("no data")


def runs(arguments) -> list[str]:
    return list(RUNS) if arguments.again else list(RUNS)[:2]


def run(work: Path, model: str, name: str, arguments) -> dict[int, dict]:
    """Metrics by step."""
    out = work / name.replace(" ", "_")
    out.mkdir()
    steps = arguments.steps
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo", "+verl_aiops=[grpo_mturn,cpu]"),
        f"++algorithm.logprob_backend={RUNS[name]}",
        f"data.train_files={work / 'rl.parquet'}",
        f"data.val_files={work / 'rl.val.parquet'}",
        f"data.train_batch_size={arguments.prompts}",
        "data.max_response_length=420",
        f"data.seed={arguments.seed}",
        f"actor_rollout_ref.model.path={model}",
        f"actor_rollout_ref.actor.optim.lr={arguments.lr}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={arguments.n}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={arguments.n}",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={arguments.n}",
        "actor_rollout_ref.actor.kl_loss_coef=0.1",
        f"actor_rollout_ref.rollout.n={arguments.n}",
        "actor_rollout_ref.rollout.calculate_log_probs=False",
        "+actor_rollout_ref.rollout.custom.aiops_mturn.round_tokens=[24,16]",
        f"reward.custom_reward_function.path={work / 'reward.py'}",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=1000",
        f"trainer.save_freq={steps}",
        "trainer.test_freq=-1",
        "trainer.val_before_train=False",
        "trainer.logger=[file]",
        f"trainer.default_local_dir={out}",
        "skip.rollout_tq.enable=True",
        f"skip.rollout_tq.dump_dir={work / 'answers'}",
        f"skip.rollout_tq.steps={list(range(1, steps + 1))}".replace(" ", ""),
        *arguments.override,
    ]
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl"), "RAY_DEDUP_LOGS": "0"}
    with open(out / "train.log", "w") as log:
        done = subprocess.run(command, env=environment, cwd=out, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{name}: " + (out / "train.log").read_text()[-4000:])
    found: dict[int, dict] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(entry["step"], {}).update(entry["data"])
    return {step: found[step] for step in range(1, steps + 1)}


def weights(work: Path, name: str, steps: int) -> dict[str, torch.Tensor]:
    folder = work / name.replace(" ", "_") / f"global_step_{steps}" / "actor"
    state = torch.load(folder / "model_world_size_1_rank_0.pt", weights_only=False)
    return {key: value.to_local() if hasattr(value, "to_local") else value for key, value in state.items()}


def moved(work: Path, model: str, names: list[str], steps: int) -> dict[str, float]:
    """Norms over all weights: how far stock verl's run moved them, and how far from its end the others ended."""
    from transformers import AutoModelForCausalLM

    begun = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32).state_dict()
    ended = {name: weights(work, name, steps) for name in names}
    keys = [key for key in ended["verl"] if key in begun]

    def distance(one, other) -> float:
        return float(np.sqrt(sum(float((one[key].double() - other[key].double()).pow(2).sum()) for key in keys)))

    return {
        "by training": distance(begun, ended["verl"]),
        **{f"{name} from verl": distance(ended[name], ended["verl"]) for name in names if name != "verl"},
    }


def differences(metrics: dict[str, dict[int, dict]], name: str, other: str) -> list[float]:
    """Of each step, relative to verl's number where that is above 1."""
    pairs = ((metrics["verl"][step][name], metrics[other][step][name]) for step in metrics["verl"])
    return [abs(theirs - ours) / max(1.0, abs(theirs)) for theirs, ours in pairs]


def plot(record: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8))
    steps = range(1, record["steps"] + 1)
    for axis, name in zip(axes, ("actor/loss", "actor/kl_loss")):
        for run_name, style in (("verl", {"lw": 3, "alpha": 0.4}), ("ours", {"lw": 1})):
            axis.plot(steps, record["metrics"][run_name][name], label=run_name, **style)
        axis.set_title(name, fontsize=10)
        axis.legend(frameon=False, fontsize=8)
    colours = dict(zip(COMPARED, ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00")))
    for name, colour in colours.items():
        for other, style in zip(record["differences"], ("-", ":")):
            values = np.maximum(record["differences"][other][name], 1e-12)
            axes[2].plot(steps, values, style, color=colour, lw=1, label=name if other == "ours" else None)
    axes[2].axhline(record["tolerance"], color="0.5", lw=0.8)
    axes[2].set_yscale("log")
    axes[2].set_title(
        "difference from verl's run" + " (dotted: verl again)" * (len(record["differences"]) > 1), fontsize=10
    )
    axes[2].legend(frameon=False, fontsize=7)
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model that chats")
    parser.add_argument("--steps", type=int, default=50, help="default %(default)s")
    parser.add_argument("--prompts", type=int, default=4, help="of a step (default %(default)s)")
    parser.add_argument("--n", type=int, default=4, help="answers to each (default %(default)s)")
    parser.add_argument("--lr", default="1e-4", help="learning rate (default %(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of a step's losses (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="stock verl once more on the same answers")
    parser.add_argument("--override", action="append", default=[], help="one more of verl's, for all runs")
    parser.add_argument("--work", help="folder for runs and recorded answers, kept (default: one that is not)")
    parser.add_argument("--out", required=True, help="OUT.json and OUT.png are written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).resolve()
        work.mkdir(parents=True, exist_ok=True)
        prepare(work, arguments)
        model = str(Path(arguments.model).resolve())
        metrics = {name: run(work, model, name, arguments) for name in runs(arguments)}
        distances = moved(work, model, list(metrics), arguments.steps)
    others = [name for name in metrics if name != "verl"]
    found = {other: {name: differences(metrics, name, other) for name in COMPARED} for other in others}
    kept = (*COMPARED, "critic/score/mean", "perf/shared_tokens_ratio")
    record = {
        "machine": machine("cpu"),
        "versions": {p: importlib.metadata.version(p) for p in ("verl", "torch", "transformers")},
        "model": Path(arguments.model).resolve().name,
        **{key: getattr(arguments, key) for key in ("steps", "prompts", "n", "lr", "seed", "tolerance", "override")},
        "weights moved": distances,
        "differences": found,
        "metrics": {
            name: {key: [step[key] for step in steps.values()] for key in kept if key in steps[1]}
            for name, steps in metrics.items()
        },
    }
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    plot(record, out.with_suffix(".png"))
    for other, by_name in found.items():
        print(f"{other}, largest difference of {arguments.steps} steps:")
        print("\n".join(f"  {name:18} {max(values):.2e}" for name, values in by_name.items()))
    print("norms over all weights: " + ", ".join(f"{name} {value:.3g}" for name, value in distances.items()))
    print(f"{out.with_suffix('.json')}, {out.with_suffix('.png')}")
    return int(
        max(max(values) for name, values in found["ours"].items() if name.endswith("loss")) > arguments.tolerance
    )


if __name__ == "__main__":
    sys.exit(main())

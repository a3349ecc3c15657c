"""What oneDNN's linear layers and kept memory are worth to a DPO step on this CPU.

    python benchmarks/bench_cpu.py --model models/SmolLM2-135M-Instruct --out benchmarks/results/cpu_step.json

Each variant is a process of its own: the step (forward, backward, optimizer; cached reference, shared prompt) of verl's
training worker with our engine on random pairs, outside Ray. Variants take turns; a ratio compares two of one round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
from pathlib import Path

from bench_dpo import machine
from bench_scaling import run_points

VARIANTS = {
    "PyTorch's linear layers, memory handed back": {"onednn": False, "keep_memory": False},
    "oneDNN, memory handed back": {"onednn": True, "keep_memory": False},
    "oneDNN, memory kept (ours)": {"onednn": True, "keep_memory": True},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=315)
    parser.add_argument("--answer", type=int, default=31)
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step (default 4)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a variant in a round (default 8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", required=True, help="JSON file to write")
    arguments = parser.parse_args()
    from transformers import AutoConfig

    from verl_aiops.kernels.cpu_linear import onednn_is_faster

    vocabulary = AutoConfig.from_pretrained(arguments.model).vocab_size
    point = {"prompt": arguments.prompt, "answer": arguments.answer, "pairs": arguments.pairs, "vocabulary": vocabulary}
    runs: dict[str, list[dict]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, how in VARIANTS.items():
            how = {**how, "repeats": arguments.steps, "one_unit": False}
            runs[name] += run_points(arguments.model, "cpu", 1, "shared_prompt", [point], how)
    seconds = {name: [statistics.mean(run["seconds"]) for run in done] for name, done in runs.items()}
    base = seconds[list(VARIANTS)[-1]]
    record = {"arguments": vars(arguments), "machine": machine("cpu"), "runs": runs, "slower_than_ours": {}}
    record["versions"] = {p: importlib.metadata.version(p) for p in ("verl", "torch", "transformers")}
    print(record["machine"])
    for name, values in seconds.items():
        ratios = [value / ours for value, ours in zip(values, base)]
        record["slower_than_ours"][name] = ratios
        print(
            f"{name:<44} {statistics.mean(values):6.2f} s a step, {statistics.mean(ratios):.2f} times "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    if not onednn_is_faster():
        print("This processor computes with PyTorch's linear layers in all three.")
    Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

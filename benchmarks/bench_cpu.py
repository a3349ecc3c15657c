"""What oneDNN's linear layers and kept memory are worth to a DPO step on this CPU.

    python benchmarks/bench_cpu.py --model models/SmolLM2-135M-Instruct --out benchmarks/results/cpu_step.json

Each variant is a process of its own: the step (forward, backward, optimizer; cached reference, shared prompt) of verl's
training worker with our engine on random pairs, outside Ray. Variants take turns; a ratio compares two of one round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

from bench_dpo import machine

# name: oneDNN where it is faster, memory kept
VARIANTS = {
    "PyTorch's linear layers, memory handed back": (False, False),
    "oneDNN, memory handed back": (True, False),
    "oneDNN, memory kept (ours)": (True, True),
}


def steps(model: str, point: dict, number: int, onednn: bool, keep: bool, results) -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": "29513", "VERL_PLATFORM": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    sys.stdout = sys.stderr = open(os.devnull, "w")
    import torch
    import verl  # noqa: F401  (loads the plug-in)
    from bench_scaling import batch, build_worker
    from verl.utils import tensordict_utils as tu

    from verl_aiops.platform import cpu_linear, memory
    from verl_aiops.platform.cpu import cpu_device_module

    torch.set_num_threads(os.cpu_count() or 1)
    if not onednn:
        cpu_linear.onednn_is_faster = lambda: False
    if keep:
        memory.keep_memory()
    worker = build_worker(model, "cpu", point["pairs"], one_unit=False)
    seconds, losses = [], []
    for _ in range(number + 1):
        part = worker.as_one_mini_batch(batch(point, "shared_prompt", 1, 0))
        began = time.perf_counter()
        output = worker.train_batch(part)
        seconds.append(time.perf_counter() - began)
        losses.append(float(tu.get(output, "metrics")["loss"]))
    peak = cpu_device_module.max_memory_allocated() / 2**30
    results.put({"seconds": seconds[1:], "losses": losses, "onednn": cpu_linear.onednn_is_faster(), "peak_gib": peak})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=315)
    parser.add_argument("--answer", type=int, default=31)
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step (default 4)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a variant in a round (default 5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", required=True, help="JSON file to write")
    arguments = parser.parse_args()
    from transformers import AutoConfig

    vocabulary = AutoConfig.from_pretrained(arguments.model).vocab_size
    point = {"prompt": arguments.prompt, "answer": arguments.answer, "pairs": arguments.pairs, "vocabulary": vocabulary}
    context = multiprocessing.get_context("spawn")
    runs: dict[str, list[dict]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, how in VARIANTS.items():
            results = context.Queue()
            process = context.Process(target=steps, args=(arguments.model, point, arguments.steps, *how, results))
            process.start()
            runs[name].append(results.get(timeout=1800))
            process.join()
    medians = {name: [statistics.median(run["seconds"]) for run in done] for name, done in runs.items()}
    base = medians[list(VARIANTS)[-1]]
    record = {"arguments": vars(arguments), "machine": machine("cpu"), "runs": runs, "slower_than_ours": {}}
    record["versions"] = {p: importlib.metadata.version(p) for p in ("verl", "torch", "transformers")}
    print(record["machine"])
    for name, values in medians.items():
        ratios = [value / ours for value, ours in zip(values, base)]
        record["slower_than_ours"][name] = ratios
        print(
            f"{name:<44} {statistics.median(values):6.2f} s a step, {statistics.median(ratios):.2f} times "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    if not runs[list(VARIANTS)[-1]][0]["onednn"]:
        print("This processor computes with PyTorch's linear layers in all three.")
    Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where a DPO step's time goes on a GPU: kernels by what they do, and how long the GPU waits for Python.

    python benchmarks/profile_step.py --size 1.5b --out benchmarks/results/profile_h200_1.5b.json
    python benchmarks/profile_step.py --size 1.5b --variants ours liger --pairs 4 --prompt 1024 --answer 64 --out p.json

A step is that of `bench_scaling.py` (verl's training worker with our engine, outside Ray, cached reference), first
timed over `--repeats` steps without a profiler, then two more under PyTorch's. `liger` is the same with
`model.use_liger=True`. `matmuls alone` is the time of the step's matrix products by themselves, one after another, in
bfloat16: what no arrangement of the rest can go below.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.multiprocessing as mp
from bench_dpo import machine
from dpo_worker import SIZES, batch, build_worker, make_model, step_seconds
from local_ports import free_port

# By the names of kernels; the first that is found counts.
KINDS = {
    "attention": r"flash|fmha|attention|mha_",
    "matrix products": r"gemm|cutlass|nvjet|cublas|splitK|matmul",
    "optimizer": r"adam|fused_adam",
    "norm of the gradients": r"lpnorm|LpNorm|foreach_norm",
    "norms": r"rms_?norm|layer_?norm",
    "softmax and loss": r"soft_?max|logsumexp|nll|cross_entropy",
    "SwiGLU": r"silu|swiglu",
    "copies and casts": r"copy|Memcpy|Memset|fill|cat_array|CatArray",
    "sums": r"reduce|sum",
    "element by element": r"elementwise|vectorized|multi_tensor|foreach|pointwise",
}


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def matmuls_alone(size: str, tokens: int, labelled: int, repeats: int = 8) -> float:
    """Seconds of all matrix products of a step, forward and twice backward, on so many tokens in the trunk."""
    hidden, inner, layers, heads, kv_heads, vocabulary = SIZES[size]
    head = hidden // heads
    shapes = [(hidden, heads * head), (hidden, kv_heads * head), (hidden, kv_heads * head), (heads * head, hidden)]
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    products = [(tokens, *shape, layers) for shape in shapes] + [(labelled, hidden, vocabulary, 1)]
    total = 0.0
    for rows, a, b, times in products:
        x = torch.randn(rows, a, device="cuda", dtype=torch.bfloat16)
        y = torch.randn(rows, b, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(a, b, device="cuda", dtype=torch.bfloat16)
        for timed in (False, True):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(repeats * times if timed else 4):
                x @ w, y @ w.T, x.T @ y
            torch.cuda.synchronize()
        total += (time.perf_counter() - started) / repeats
    return total


def busy_seconds(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans in microseconds, in seconds."""
    total, end = 0.0, -1.0
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e6


def profiled(worker, parts: list) -> dict:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step_seconds(worker, "cuda", parts)
    # what Python calls by a name (a module's forward, the optimizer's step) stands among the kernels too
    named = {e.name for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CPU}
    events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA and e.name not in named]
    spans = [(e.time_range.start, e.time_range.end) for e in events]
    kinds: dict[str, float] = {}
    slowest: dict[str, list[float]] = {}
    for event in events:
        seconds = (event.time_range.end - event.time_range.start) / 1e6 / len(parts)
        kinds[kind_of(event.name)] = kinds.get(kind_of(event.name), 0.0) + seconds
        slowest.setdefault(event.name[:120], []).append(seconds)
    ranked = sorted(slowest.items(), key=lambda item: -sum(item[1]))[:40]
    return {
        "kernels": len(events) / len(parts),
        "busy": busy_seconds(spans) / len(parts),
        "span": (max(s[1] for s in spans) - min(s[0] for s in spans)) / 1e6 / len(parts),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "slowest": [{"name": name, "calls": len(times) / len(parts), "seconds": sum(times)} for name, times in ranked],
    }


def measure(port: int, results, model: str, point: dict, variant: str, repeats: int) -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    # what goes wrong comes back through the queue
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        import verl  # noqa: F401  (loads the plug-in)

        from verl_aiops.kernels.memory import keep_memory

        keep_memory()
        of_model = {"use_liger": True} if variant == "liger" else {}
        worker = build_worker(model, "cuda", point["pairs"], True, **of_model)
        parts = [batch(point, "shared_prompt", 1, 0) for _ in range(repeats + 4)]
        # the first warms up
        seconds = step_seconds(worker, "cuda", parts[: repeats + 1])[1:]
        found = {"seconds": seconds, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}
        step_seconds(worker, "cuda", parts[-1:])
        results.put(("ok", found | profiled(worker, parts[-3:-1])))
    except BaseException:
        results.put(("error", traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def run(model: str, point: dict, variant: str, repeats: int) -> dict:
    port = free_port()
    context = mp.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(port, results, model, point, variant, repeats))
    process.start()
    try:
        state, answer = results.get(timeout=600)
    finally:
        process.join(timeout=30)
        process.kill()
    if state != "ok":
        raise SystemExit(answer)
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.5b", help="architecture of the random model")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens (default %(default)s)")
    parser.add_argument("--answer", type=int, default=64, help="tokens (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=4, help="of a step (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps (default %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=("ours", "liger"), default=["ours"])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here; a CPU's step is measured by bench_cpu.py")
    vocabulary = SIZES[arguments.size][-1]
    point = {key: getattr(arguments, key) for key in ("prompt", "answer", "pairs")} | {"vocabulary": vocabulary}
    tokens = arguments.pairs * (arguments.prompt + 2 * arguments.answer)
    alone = matmuls_alone(arguments.size, tokens, 2 * arguments.pairs * arguments.answer)
    record = {"machine": machine("cuda"), "size": arguments.size, "point": point, "matmuls_alone": alone}
    print(f"matmuls alone: {alone:.4f} s")
    with tempfile.TemporaryDirectory() as scratch:
        model, _, _ = make_model(Path(scratch), arguments.size, vocabulary)
        for variant in arguments.variants:
            record[variant] = found = run(str(model), point, variant, arguments.repeats)
            step, busy = statistics.mean(found["seconds"]), found["busy"]
            print(f"{variant}: {step:.4f} s a step; GPU busy {busy:.4f} s in {found['kernels']:.0f} kernels")
            for kind, seconds in found["kinds"].items():
                print(f"  {seconds * 1e3:6.1f} ms  {kind}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

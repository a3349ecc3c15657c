"""How a DPO step scales with prompt, answer, vocabulary, pairs and workers, in both log-prob backends.

    python benchmarks/bench_scaling.py --out benchmarks/results/scaling_cpu
    python benchmarks/bench_scaling.py --device cuda --size 1.5b --out benchmarks/results/scaling_gpu
    python benchmarks/bench_scaling.py --device cuda --size 7b --lora-rank 32 --backends shared_prompt --pairs 8 \
      --dimensions workers --out benchmarks/results/scaling_7b_lora

Each point is a step (forward, backward, optimizer; cached reference) of verl's training worker with our engine on
random pairs, outside Ray, so that the two backends are compared and nothing else. One dimension varies at a time; a
point is the time of `--repeats` steps over their number. Writes OUT.json and OUT.png: measured pairs/s, peak memory
(GPU), and what the FLOP law says, fitted through the base point of `rows`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import statistics
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch.multiprocessing as mp
from bench_dpo import machine
from dpo_worker import SIZES, batch, build_worker, make_model, step_seconds
from local_ports import free_port

BACKENDS = ("shared_prompt", "rows")
RANGES = {
    "cpu": {
        "prompt": [32, 64, 128, 256, 512, 1024],
        "answer": [8, 16, 32, 64, 128, 256],
        "vocabulary": [4_000, 16_000, 32_000, 64_000, 128_000],
        "pairs": [1, 2, 4, 8, 16],
        "workers": [1, 2],
    },
    "cuda": {
        "prompt": [64, 256, 1024, 2048, 4096],
        "answer": [16, 64, 256, 1024],
        "vocabulary": [16_000, 64_000, 151_936],
        "pairs": [1, 4, 8, 16],
        "workers": [1, 2, 4],
    },
}


def mean(seconds: list[float]) -> float:
    """Of all timed steps, NaN where the point did not fit into memory. Not their median: a device that is given steps
    ahead ends one early and the next late."""
    return statistics.mean(seconds) if seconds else math.nan


def needed(body: int, head: int, prompt: int, answer: int, backend: str) -> float:
    """FLOPs of a pair's training step without attention."""
    return 6 * body * ((1 if backend == "shared_prompt" else 2) * prompt + 2 * answer) + 6 * head * 2 * answer


def measure(rank: int, port: int, results, model: str, device: str, world: int, backend: str, points, how: dict):
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank if device == "cuda" else 0),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if device == "cpu":
        os.environ |= {"VERL_PLATFORM": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    # what goes wrong comes back through the queue
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        import verl  # noqa: F401  (loads the plug-in)

        from verl_aiops.kernels import cpu_linear
        from verl_aiops.kernels.memory import keep_memory

        if not how.get("onednn", True):
            cpu_linear.onednn_is_faster = lambda: False
        if how.get("keep_memory", True):
            keep_memory()
        worker = build_worker(
            model,
            device,
            points[0]["pairs"] // world,
            how["one_unit"],
            {"strategy": how["strategy"]} if how["strategy"] else None,
            **({"lora_rank": how["lora_rank"], "lora_alpha": 2 * how["lora_rank"]} if how["lora_rank"] else {}),
        )
        measured = []
        for point in points:
            peak = None
            try:
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                # the first warms up
                parts = [batch(point, backend, world, rank) for _ in range(how["repeats"] + 1)]
                seconds = step_seconds(worker, device, parts)[1:]
                if device == "cuda":
                    peak = torch.cuda.max_memory_allocated() / 2**30
            except torch.OutOfMemoryError:
                # a point without seconds, and a worker in the middle of a step: the next point gets another
                measured.append({"seconds": [], "peak_gib": None})
                break
            measured.append({"seconds": seconds, "peak_gib": peak})
        results.put((rank, "ok", measured))
    except BaseException:
        results.put((rank, "error", traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def run_points(model: str, device: str, world: int, backend: str, points: list[dict], how: dict) -> list[dict]:
    """What rank 0 measured at each point; the slowest rank sets everybody's pace."""
    measured: list[dict] = []
    while len(measured) < len(points):
        measured += run_until_full(model, device, world, backend, points[len(measured) :], how)
    return measured


def run_until_full(model: str, device: str, world: int, backend: str, points: list[dict], how: dict) -> list[dict]:
    """The same up to the first point that does not fit into memory."""
    port = free_port()
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=measure, args=(rank, port, results, model, device, world, backend, points, how))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        answers = sorted((results.get(timeout=3000) for _ in processes), key=lambda a: a[0])
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    for rank, state, answer in answers:
        if state != "ok":
            raise SystemExit(f"rank {rank}:\n{answer}")
    return answers[0][2]


def plot(record: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dimensions = list(record["points"])
    memory = record["device"] == "cuda"
    figure, axes = pyplot.subplots(
        1 + memory, len(dimensions), figsize=(3.4 * len(dimensions), 3.2 * (1 + memory)), squeeze=False
    )
    styles = {"shared_prompt": ("#0072B2", "o"), "rows": ("#D55E00", "s")}
    labels = {"prompt": "prompt tokens", "answer": "answer tokens", "vocabulary": "vocabulary", "pairs": "pairs a step"}
    for column, dimension in enumerate(dimensions):
        points = record["points"][dimension]
        at = [p[dimension] for p in points]
        for name in record["backends"]:
            colour, marker = styles[name]
            rates = [p["pairs"] / mean(p[name]["seconds"]) for p in points]
            axes[0][column].plot(at, rates, color=colour, marker=marker, label=name)
            law = [p["law"][name] for p in points]
            axes[0][column].plot(at, law, color=colour, linestyle=":", linewidth=1, label=f"{name}, FLOP law")
            if memory:
                axes[1][column].plot(at, [p[name]["peak_gib"] or math.nan for p in points], color=colour, marker=marker)
        for row in axes[: 1 + memory, column]:
            row.set_xscale("log", base=2)
            row.set_xticks(at, [f"{a:,}" for a in at], rotation=45)
            row.minorticks_off()
            row.margins(y=0.1)
            row.set_ylim(bottom=0)
            row.grid(alpha=0.3)
            row.set_xlabel(labels.get(dimension, dimension))
    axes[0][0].set_ylabel("pairs/s")
    if memory:
        axes[1][0].set_ylabel("peak memory, GiB")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncol=min(4, 2 * len(dimensions) - 1), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93 if len(dimensions) > 1 else 0.86))
    figure.savefig(path, dpi=120)


def points_of(arguments, base: dict) -> dict[str, list[dict]]:
    """The points of each dimension: the base point with another value of it."""
    gpu, points = arguments.device == "cuda", {}
    for dimension in arguments.dimensions:
        values = RANGES[arguments.device][dimension]
        if dimension == "workers":
            there = torch.cuda.device_count() if gpu else os.cpu_count() or 1
            values = [value for value in arguments.workers or values if value <= there]
        points[dimension] = [base | {dimension: value} for value in values]
        if gpu and dimension == "workers":
            # a GPU more is there for more pairs; CPU workers share the cores
            for point in points[dimension]:
                point["pairs"] *= point["workers"]
    return points


def tell(dimension: str, points: list[dict], backends: list[str]) -> None:
    """A line of each point: pairs a second of the backends, and their ratio beside the law's."""
    for point in points:
        times = {b: mean(point[b]["seconds"]) for b in backends}
        rates = [
            f"{b} does not fit into memory" if math.isnan(t) else f"{b} {point['pairs'] / t:.2f} pairs/s"
            for b, t in times.items()
        ]
        if len(backends) == 2:
            ratio = times["rows"] / times["shared_prompt"]
            rates += [] if math.isnan(ratio) else [f"ratio {ratio:.2f}"]
            rates.append(f"FLOP law {point['flops']['rows'] / point['flops']['shared_prompt']:.2f}")
        print(f"{dimension} {point[dimension]:>7,}: {', '.join(rates)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small", help="architecture of the random model")
    parser.add_argument("--prompt", type=int, help="base point (default 256; GPU 1024)")
    parser.add_argument("--answer", type=int, help="base point (default 32; GPU 64)")
    parser.add_argument("--pairs", type=int, default=4, help="base point (default 4; GPU: of each worker)")
    parser.add_argument("--repeats", type=int, default=8, help="timed steps of each backend and point (default 8)")
    parser.add_argument(
        "--one-unit", action="store_true", help="FSDP1: the whole model as one unit (what a lone GPU does anyway)"
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--strategy", choices=("fsdp", "fsdp2"), help="default fsdp, on CPUs fsdp2")
    parser.add_argument(
        "--lora-rank", type=int, default=0, metavar="R", help="adapters of this rank instead of all weights"
    )
    parser.add_argument("--workers", nargs="+", type=int, metavar="N", help="of the dimension workers (default all)")
    parser.add_argument("--dimensions", nargs="+", choices=RANGES["cpu"], default=list(RANGES["cpu"]))
    parser.add_argument("--out", required=True, help="OUT.json and OUT.png are written")
    arguments = parser.parse_args()
    gpu = arguments.device == "cuda"
    base = {
        "prompt": arguments.prompt or (1024 if gpu else 256),
        "answer": arguments.answer or (64 if gpu else 32),
        "vocabulary": SIZES[arguments.size][-1],
        "pairs": arguments.pairs,
        "workers": 1,
    }
    out = Path(arguments.out)
    versions = {p: importlib.metadata.version(p) for p in ("verl", "torch", "transformers")}
    record = {"machine": machine(arguments.device), "device": arguments.device, "versions": versions, "base": base}
    how = {
        "repeats": arguments.repeats,
        "one_unit": arguments.one_unit,
        "strategy": arguments.strategy,
        "lora_rank": arguments.lora_rank,
    }
    backends = arguments.backends
    record |= {"size": arguments.size, **how, "backends": backends, "points": points_of(arguments, base)}
    with tempfile.TemporaryDirectory() as scratch:
        groups: dict[tuple[int, int], list[dict]] = {}
        for points in record["points"].values():
            for point in points:
                groups.setdefault((point["vocabulary"], point["workers"]), []).append(point)
        for (vocabulary, workers), points in groups.items():
            # one start of the processes for all points that share a model, but one a backend: memory is measured
            folder, body, head = make_model(Path(scratch) / str(vocabulary), arguments.size, vocabulary)
            points.sort(key=lambda p: p["pairs"] * (p["prompt"] + p["answer"]))
            for name in backends:
                measured = run_points(str(folder), arguments.device, workers, name, points, how)
                for point, values in zip(points, measured, strict=True):
                    point[name] = values
            for point in points:
                point["flops"] = {b: needed(body, head, point["prompt"], point["answer"], b) for b in backends}
        for dimension, points in record["points"].items():
            tell(dimension, points, backends)
            # one rate of FLOP/s for all points, that of the rows (or of the one backend) at the base point
            at_base = min(points, key=lambda p: abs(p[dimension] - base[dimension]))
            fitted = "rows" if "rows" in backends else backends[0]
            rate = at_base["flops"][fitted] * at_base["pairs"] / mean(at_base[fitted]["seconds"])
            for point in points:
                scale = point["workers"] / at_base["workers"] if gpu else 1
                point["law"] = {b: scale * rate / point["flops"][b] for b in backends}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    plot(record, out.with_suffix(".png"))
    print(f"{out.with_suffix('.json')}, {out.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The three passes of a GRPO step in the training workers, verl's own engine against ours on the same rows.

    python benchmarks/bench_rl.py --model models/SmolLM2-135M-Instruct --prompts 4 --n 4 --prompt 300 --answer 60 \\
        --out benchmarks/results/rl_cpu
    python benchmarks/bench_rl.py --device cuda --size 1.5b --out benchmarks/results/rl_gpu
    python benchmarks/bench_rl.py --device cuda --size 1.5b --vary n=2,4,8,16 --vary prompt=256,1024,4096 --out ...

A step scores its answers with the policy (old log-probs, with entropies), scores them with the reference, and updates
the policy once, as `main_ppo` with `use_kl_loss=True` does: `prompts` prompts with `n` answers each, of random tokens,
answers between half and one and a half times `--answer` long. verl's engine is measured at each of `--micro-rows` and
the fastest counts; ours under `--budget` tokens. Both take turns, a process each, `--rounds` times; seconds are means
of `--repeats` steps after the first. With one update on its answers our trainer needs no old log-probs (those of the
update are the same numbers): `as trained` leaves that pass of ours out. Writes OUT.json and OUT.png.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from bench_dpo import machine
from bench_scaling import SIZES, make_model

PARTS = ("old_log_prob", "ref", "update_actor")
ENGINES = {"verl": "language_model", "ours": "shared_prompt_language_model"}


def rows(point: dict, step: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prompt, answer) of a step, the answers of a prompt side by side."""
    rng = np.random.default_rng([point["seed"], step])
    made = []
    for _ in range(point["prompts"]):
        prompt = rng.integers(2, point["vocabulary"], point["prompt"])
        for _ in range(point["n"]):
            length = int(rng.integers(point["answer"] // 2, 3 * point["answer"] // 2 + 1))
            made.append((prompt, rng.integers(2, point["vocabulary"], length)))
    return made


def batch(point: dict, step: int, **entries):
    """As verl's trainer sends it."""
    from verl.utils import tensordict_utils as tu

    made = rows(point, step)
    generator = torch.Generator().manual_seed(step)

    def nested(columns):
        return torch.nested.as_nested_tensor([torch.as_tensor(column) for column in columns], layout=torch.jagged)

    whole = [np.concatenate(row) for row in made]
    ones = [torch.ones(len(answer)) for _, answer in made]
    data = tu.get_tensordict(
        {
            "input_ids": nested(whole),
            "position_ids": nested([np.arange(len(row)) for row in whole]),
            "prompts": nested([prompt for prompt, _ in made]),
            "responses": nested([answer for _, answer in made]),
            "response_mask": nested(ones),
            "loss_mask": nested(ones),
            "advantages": nested([torch.randn(()).expand(len(answer)).clone() for _, answer in made]),
            "old_log_probs": nested([torch.randn(len(answer), generator=generator) - 11 for _, answer in made]),
            "ref_log_prob": nested([torch.randn(len(answer), generator=generator) - 11 for _, answer in made]),
        }
    )
    tu.assign_non_tensor(data, temperature=1.0, global_batch_size=len(made), global_token_num=None, **entries)
    return data


def build(model: str, point: dict, engine: str, *, reference: bool):
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    gpu = point["device"] == "cuda"
    dtype = "bf16" if gpu else "fp32"
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type=ENGINES[engine],
            model_config=HFModelConfig(
                path=model,
                use_remove_padding=False,
                enable_gradient_checkpointing=point["checkpointing"][engine],
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp" if gpu else "fsdp2",
                use_torch_compile=False,
                # on a CPU verl's offloading of such an engine wants pinned memory
                forward_only=reference and gpu,
                mixed_precision={"param_dtype": dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-6, clip_grad=1.0, total_training_steps=1000),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    return worker


def actor_config():
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass

    actor = "actor_rollout_ref.actor"
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer", overrides=[f"{actor}.ppo_micro_batch_size_per_gpu=1", f"{actor}.use_kl_loss=True"]
        )
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def measure(port: int, results, model: str, engine: str, limits: dict, point: dict) -> None:
    """Seconds of each part and step, the first step left out; peak memory; tokens seen over tokens of the rows."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    gpu = point["device"] == "cuda"
    if not gpu:
        os.environ |= {"VERL_PLATFORM": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    # what goes wrong comes back through the queue
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        import verl  # noqa: F401  (loads the plug-in)
        from verl.workers.utils.losses import ppo_loss

        actor = build(model, point, engine, reference=False)
        reference = build(model, point, engine, reference=True)
        actor.set_loss_fn(functools.partial(ppo_loss, config=actor_config()))
        seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        ratio = 1.0
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        for step in range(point["repeats"] + 1):
            size = point["prompts"] * point["n"]
            work = {
                "old_log_prob": lambda data: actor.infer_batch(data),
                "ref": lambda data: reference.infer_batch(data),
                "update_actor": lambda data: actor.train_mini_batch(data),
            }
            for part, run in work.items():
                entries = {"calculate_entropy": part == "old_log_prob", "compute_loss": False, **limits}
                if part == "update_actor":
                    entries |= {"mini_batch_size": size, "epochs": 1, "seed": 0}
                    entries |= {"dataloader_kwargs": {"shuffle": False}, "compute_loss": True}
                data = batch(point, step, **entries)
                before = time.perf_counter()
                output = run(data)
                if gpu:
                    torch.cuda.synchronize()
                seconds[part].append(time.perf_counter() - before)
                if part == "update_actor":
                    found = output["metrics"].get("shared_tokens_ratio")
                    ratio = ratio if found is None else float(np.mean(found))
        peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
        parts = {part: values[1:] for part, values in seconds.items()}
        results.put(("ok", {"seconds": parts, "peak_gib": peak, "tokens_ratio": ratio}))
    except torch.OutOfMemoryError:
        results.put(("ok", None))
    except BaseException:
        results.put(("error", traceback.format_exc()))


def run(model: str, engine: str, limits: dict, point: dict) -> dict | None:
    """In a process of its own; None where it does not fit into memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(port, results, model, engine, limits, point))
    process.start()
    try:
        state, answer = results.get(timeout=3000)
    finally:
        process.join(timeout=30)
        process.kill()
    if state != "ok":
        raise SystemExit(answer)
    return answer


def total(measured: dict, parts=PARTS) -> float:
    """Seconds of a step."""
    return sum(statistics.mean(measured["seconds"][part]) for part in parts)


def law(point: dict, body: int, head: int) -> dict[str, float]:
    """FLOPs of a step without attention: two forward passes and one with its backward pass. verl's engine has logits at
    every token of every row; ours at the answers', and each prompt once."""
    answers, prompts = point["prompts"] * point["n"] * point["answer"], point["prompts"] * point["prompt"]
    seen = {"verl": point["n"] * prompts + answers, "ours": prompts + answers}
    labels = {"verl": seen["verl"], "ours": answers}
    return {engine: 10 * (body * seen[engine] + head * labels[engine]) for engine in ENGINES}


def compare(model: str, point: dict, micro_rows: list[int], budget: int, rounds: int) -> dict:
    """Both engines in turns; verl's at its fastest micro-batch."""
    tried = {}
    for number in micro_rows:
        limits = {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": number}
        found = run(model, "verl", limits, {**point, "repeats": 1}) if len(micro_rows) > 1 else {"seconds": None}
        tried[number] = math.inf if found is None else (total(found) if found["seconds"] else 0.0)
    best = min(tried, key=tried.get)
    limits = {
        "verl": {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": best},
        "ours": {"use_dynamic_bsz": True, "max_token_len_per_gpu": budget},
    }
    found: dict = {"micro_rows": best, "verl": [], "ours": []}
    for _ in range(rounds):
        for engine in ENGINES:
            found[engine].append(run(model, engine, limits[engine], point))
    return found


def show(name: str, point: dict, found: dict, flops: dict) -> list[str]:
    lines = [f"{name}: {point['prompts']} prompts of {point['prompt']} x {point['n']} answers of {point['answer']}"]
    fits = {engine: [one for one in found[engine] if one is not None] for engine in ENGINES}
    for engine, measured in fits.items():
        if not measured:
            lines.append(f"  {engine}: does not fit into memory")
            continue
        parts = {p: statistics.mean(statistics.mean(one["seconds"][p]) for one in measured) for p in PARTS}
        text = ", ".join(f"{part} {value:.3f}" for part, value in parts.items())
        peak = f", peak {max(one['peak_gib'] for one in measured):.1f} GiB" if measured[0]["peak_gib"] else ""
        seen = f", {measured[0]['tokens_ratio']:.2f} of the tokens seen" if engine == "ours" else ""
        lines.append(f"  {engine}: {text}, together {sum(parts.values()):.3f} s{peak}{seen}")
    if all(fits.values()):
        pairs = list(zip(fits["verl"], fits["ours"]))
        whole = [total(stock) / total(ours) for stock, ours in pairs]
        trained = [total(stock) / total(ours, PARTS[1:]) for stock, ours in pairs]
        of_law = flops["verl"] / flops["ours"]
        lines.append(
            f"  verl / ours: {', '.join(f'{r:.2f}' for r in whole)} in each round; as trained "
            f"{', '.join(f'{r:.2f}' for r in trained)} (FLOP law of all three passes {of_law:.2f})"
        )
    return lines


def plot(record: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = record["points"]
    figure, axis = pyplot.subplots(figsize=(1.6 + 1.8 * len(points), 3.8))
    colours = {"old_log_prob": "#0072B2", "ref": "#009E73", "update_actor": "#D55E00"}
    for at, entry in enumerate(points):
        for side, engine in enumerate(ENGINES):
            measured = [one for one in entry["measured"][engine] if one is not None]
            bottom = 0.0
            for part, colour in colours.items():
                if not measured:
                    continue
                height = statistics.mean(statistics.mean(one["seconds"][part]) for one in measured)
                label = part if at == side == 0 else None
                axis.bar(at + 0.4 * side, height, 0.36, bottom=bottom, color=colour, label=label)
                bottom += height
            axis.annotate(
                f"{engine}\n{bottom:.2f}" if measured else f"{engine}\ntoo large",
                (at + 0.4 * side, bottom),
                ha="center",
                va="bottom",
                fontsize=8,
            )
    axis.set_xticks([at + 0.2 for at in range(len(points))], [entry["name"] for entry in points])
    axis.set_ylabel("seconds a step")
    axis.margins(y=0.18)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="folder of a model (default: a random one of --size)")
    parser.add_argument("--size", choices=SIZES, default="small", help="architecture of the random model")
    parser.add_argument("--prompts", type=int, default=16, help="of a step (default %(default)s)")
    parser.add_argument("--n", type=int, default=8, help="answers to each (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=950, help="tokens of a prompt (default %(default)s)")
    parser.add_argument("--answer", type=int, default=230, help="tokens of an answer, mean (default %(default)s)")
    parser.add_argument("--micro-rows", type=int, nargs="+", default=[8], help="verl's micro-batches (default 8)")
    parser.add_argument(
        "--budget", type=int, default=16_384, help="tokens that ours sees at once (default %(default)s)"
    )
    parser.add_argument(
        "--checkpointing", choices=("verl", "ours", "both", "none"), default="none", help="of gradients"
    )
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=V,V,..", help="n, prompt, answer, prompts")
    parser.add_argument("--repeats", type=int, default=8, help="timed steps (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of both engines (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="OUT.json and OUT.png are written")
    arguments = parser.parse_args()
    base = {key: getattr(arguments, key) for key in ("device", "prompts", "n", "prompt", "answer", "repeats", "seed")}
    base["checkpointing"] = {engine: arguments.checkpointing in (engine, "both") for engine in ENGINES}
    named = [("base", base)]
    for text in arguments.vary:
        name, _, values = text.partition("=")
        named += [(f"{name} {value}", {**base, name: int(value)}) for value in values.split(",")]
    record = {
        "machine": machine(arguments.device),
        "versions": {p: importlib.metadata.version(p) for p in ("verl", "torch", "transformers")},
        "model": Path(arguments.model).name if arguments.model else arguments.size,
        "budget": arguments.budget,
        "points": [],
    }
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model:
            from transformers import AutoConfig

            model, config = arguments.model, AutoConfig.from_pretrained(arguments.model)
            vocabulary = config.vocab_size
            head = vocabulary * config.hidden_size
            body = sum(math.prod(shape) for shape in _shapes(model)) - head
        else:
            vocabulary = SIZES[arguments.size][-1]
            folder, body, head = make_model(Path(scratch) / "model", arguments.size, vocabulary)
            model = str(folder)
        for name, point in named:
            point["vocabulary"] = vocabulary
            found = compare(model, point, arguments.micro_rows, arguments.budget, arguments.rounds)
            flops = law(point, body, head)
            record["points"].append({"name": name, **point, "measured": found, "flops": flops})
            print("\n".join(show(name, point, found, flops)), flush=True)
            out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    plot(record, out.with_suffix(".png"))
    print(f"{out.with_suffix('.json')}, {out.with_suffix('.png')}")
    return 0


def _shapes(model: str):
    """Shapes of a folder's weights, tied ones once."""
    from safetensors import safe_open

    for file in Path(model).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            yield from (weights.get_slice(name).get_shape() for name in weights.keys())


if __name__ == "__main__":
    sys.exit(main())

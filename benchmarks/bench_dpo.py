"""Our offline DPO trainer, in both log-prob backends, against TRL's DPOTrainer: same pairs, model, dtype and optimizer.

    python benchmarks/bench_dpo.py --model models/SmolLM2-135M-Instruct         # prompts of 315, answers of 31 tokens
    python benchmarks/bench_dpo.py --model MODEL --pairs pairs.jsonl --batch 4 --steps 12 --out result.json
    python benchmarks/bench_dpo.py --device cuda --model MODEL --prompt 1024 --answer 64 --batch 16 --steps 24
    python benchmarks/bench_dpo.py --model MODEL --completions 4 --batch 1  # four ranked answers, six pairs a prompt

A step has --batch prompts, in all variants, and all pairs of each prompt's answers. Of more than two answers ours reads
groups with ranks and compares all (`algorithm.dpo.comparisons=all`); TRL, which takes pairs alone, reads those pairs.

Every run is a process of its own; the variants take turns for `--rounds` rounds, so that what else the machine does
falls on all of them. Prints seconds a step (the time of all steps after a run's first over their number, eight at
least; mean of the rounds), peak memory of the training process, and how much slower each variant is than `ours`, with
the lowest and highest ratio of any round. Exits 1 if the first losses differ by more than 1e-4 (bf16: 5e-3). Needs the
extra `trl`, and for the variant with Liger's kernels `liger-kernel` and a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from dpo_plots import plot_steps
from dpo_runs import GPU_ONLY, NOT_BY_DEFAULT, VARIANTS, in_turns, make_data, make_model, pairs_of, run, step_seconds


def machine(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.split(': ', 1)[1]}"
    return f"{os.cpu_count()} cores of {platform.machine()}"


def needed_flops(model: str, prompt: int, answer: int, completions: int = 2) -> dict[str, float]:
    """FLOPs per prompt and step, with all pairs of its answers: 2 per parameter and token forward, 4 backward. Ours
    takes a prompt once, `rows` once an answer, both the head where a label is; TRL two rows a pair and every logit.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    import torch

    with torch.device("meta"):
        total = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    head = config.vocab_size * config.hidden_size
    body = total - head * (1 if config.tie_word_embeddings else 2)
    answers = completions * answer
    shared, each = prompt + answers, completions * prompt + answers
    of_pairs = 2 * pairs_of(completions) * (prompt + answer)
    ours = 6 * body * shared + 6 * head * answers
    return {
        "ours": ours,
        "ours, compiled": ours,
        "ours, a unit a layer": ours,
        "ours, live reference": 8 * body * shared + 8 * head * answers,
        "rows": 6 * body * each + 6 * head * answers,
        "rows, live reference": 8 * body * each + 8 * head * answers,
        "TRL": 8 * (body + head) * of_pairs,
        "TRL, cached reference": 6 * (body + head) * of_pairs,
        "TRL, cached reference, Liger": 6 * (body + head) * of_pairs,
    }


def matmul_ceiling() -> float:
    """bfloat16 FLOP/s of large matrix products on this GPU."""
    import time

    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--architecture", choices=("1.5b",), help="random weights of this size, tokenizer of --model")
    parser.add_argument("--pairs", help="preference JSONL (default: random words of the lengths below)")
    parser.add_argument("--prompt", type=int, default=315, help="tokens of a made prompt (default 315)")
    parser.add_argument("--answer", type=int, default=31, help="tokens of each made answer (default 31)")
    parser.add_argument("--completions", type=int, default=2, help="made answers to a prompt, ranked (default 2)")
    parser.add_argument("--batch", type=int, default=4, help="prompts per optimizer step; pairs of --pairs (default 4)")
    parser.add_argument("--micro-batch", type=int, help="prompts per forward pass (default: --batch)")
    parser.add_argument("--trl-micro-batch", type=int, help="pairs per forward pass of TRL (default: as ours)")
    parser.add_argument("--steps", type=int, default=9, help="optimizer steps, the least and the default 9")
    parser.add_argument("--rounds", type=int, default=1, help="times each variant is run (default 1)")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        metavar="VARIANT",
        help=f"of {'; '.join(VARIANTS)} (default all but {', '.join(NOT_BY_DEFAULT)}; on a CPU without Liger's)",
    )
    parser.add_argument("--max-length", type=int, default=1024, help="most tokens of a prompt, and of an answer")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--trl-attention", default="sdpa", help="attn_implementation of TRL's model (default sdpa)")
    parser.add_argument("--overrides", nargs="*", default=[], help="more settings for main_ppo")
    parser.add_argument("--verbose", action="store_true", help="show what main_ppo writes to stderr")
    parser.add_argument("--out", help="write the numbers as JSON")
    parser.add_argument("--plot", help="draw seconds a step beside the law, as PNG and SVG")
    arguments = parser.parse_args()
    if arguments.steps < 9:
        parser.error(f"--steps {arguments.steps}: 9 at least, as the first is not timed and a speed needs eight")
    if arguments.completions < 2 or (arguments.pairs and arguments.completions > 2):
        parser.error(f"--completions {arguments.completions}: 2 at least, and 2 with --pairs, whose rows are pairs")
    if arguments.trl_micro_batch and arguments.batch * pairs_of(arguments.completions) % arguments.trl_micro_batch:
        parser.error(f"--trl-micro-batch {arguments.trl_micro_batch} does not divide the pairs of a step")
    left_out = {*NOT_BY_DEFAULT, *(GPU_ONLY if arguments.device == "cpu" else ())}
    arguments.variants = arguments.variants or [name for name in VARIANTS if name not in left_out]
    asked = dict(vars(arguments))
    arguments.model = str(Path(arguments.model).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.architecture:
            arguments.model = str(make_model(folder / "model", arguments.model, arguments.architecture))
        made = arguments.pairs is None
        if made:
            from transformers import AutoTokenizer

            arguments.pairs, arguments.groups = make_data(
                folder,
                AutoTokenizer.from_pretrained(arguments.model),
                prompts=arguments.batch * arguments.steps,
                prompt=arguments.prompt,
                answer=arguments.answer,
                completions=arguments.completions,
            )
        else:
            arguments.groups = arguments.pairs
        arguments.pairs, arguments.groups = (str(Path(p).resolve()) for p in (arguments.pairs, arguments.groups))
        results = in_turns(arguments, folder, run)
        sizes = (arguments.model, arguments.prompt, arguments.answer, arguments.completions)
        flops = needed_flops(*sizes) if made else None
    return report(arguments, asked, results, flops)


def report(arguments, asked, results, flops) -> int:
    versions = {p: importlib.metadata.version(p) for p in ("verl", "trl", "torch", "transformers")}
    ceiling = matmul_ceiling() if arguments.device == "cuda" and flops else None
    print(f"{machine(arguments.device)}; {', '.join(f'{k} {v}' for k, v in versions.items())}")
    base = arguments.variants[0]
    columns = ("s/step", "pairs/s", "peak GiB", f"/ {base}", "range", "FLOP law", "tokens seen", "MFU")
    widths = (8, 8, 9, 8, 15, 9, 12, 6)
    print(" ".join([" " * 22, *(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))]))
    summary = {}
    for variant, runs in results.items():
        of_rounds = [step_seconds(r["seconds"]) for r in runs]
        seconds = statistics.mean(of_rounds)
        ratios = [one / step_seconds(b["seconds"]) for one, b in zip(of_rounds, results[base], strict=True)]
        peak = max(r["peak_gib"] for r in runs)
        law = flops[variant] / flops[base] if flops else None
        # useful work: what the result needs, whatever the variant really computes
        mfu = flops["ours"] * arguments.batch / seconds / ceiling if ceiling else None
        ratio, lowest, highest = statistics.mean(ratios), min(ratios), max(ratios)
        summary[variant] = {"s_per_step": seconds, "ratio": ratio, "ratio_range": [lowest, highest]}
        summary[variant] |= {"peak_gib": peak, "flop_law": law, "useful_mfu": mfu}
        # of the tokens of all rows, two a pair; TRL sees them all
        seen = statistics.mean(part for r in runs for part in r.get("seen", [1.0]))
        summary[variant]["tokens_seen"] = seen
        cells = (
            f"{seconds:.3f}",
            f"{arguments.batch * pairs_of(arguments.completions) / seconds:.3f}",
            f"{peak:.2f}",
            f"{ratio:.2f}",
            f"{lowest:.2f} to {highest:.2f}",
            "" if law is None else f"{law:.2f}",
            f"{seen:.3f}",
            "" if mfu is None else f"{mfu:.1%}",
        )
        print(" ".join([f"{variant:<22}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))]))
    first = [r["losses"][0] for runs in results.values() for r in runs]
    steps = min(len(r["losses"]) for runs in results.values() for r in runs)
    at = [[r["losses"][i] for runs in results.values() for r in runs] for i in range(steps)]
    gap = max(max(losses) - min(losses) for losses in at)
    print(f"first losses {min(first):.6f} to {max(first):.6f}; widest gap between losses of a step {gap:.1e}")
    if arguments.out:
        record = {"arguments": asked, "machine": machine(arguments.device), "versions": versions}
        record |= {"matmul_flops": ceiling, "summary": summary, "runs": results}
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n")
    if arguments.plot:
        plot_steps(summary, Path(arguments.plot))
    allowed = 1e-4 if arguments.device == "cpu" else 5e-3
    if max(first) - min(first) > allowed:
        print(f"the first losses do not agree to {allowed}: the trainers did not do the same work", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

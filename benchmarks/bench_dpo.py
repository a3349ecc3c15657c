"""Our offline DPO trainer against TRL's DPOTrainer: same pairs, model, dtype, batch, optimizer; one process each.

    python benchmarks/bench_dpo.py --model models/SmolLM2-135M-Instruct
    python benchmarks/bench_dpo.py --model MODEL --pairs pairs.jsonl --batch 4 --steps 6 --out result.json

Prints pairs/s, tokens/s and peak memory of the training process for ours (through verl's main_ppo, reference cached),
TRL as it comes (live reference) and TRL with precomputed reference log-probs, the ratios, and the largest gap between
their losses; exits 1 if the first losses differ by more than 1e-4. The first step of each is not timed. Needs the extra
`trl`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAIRS = Path(__file__).resolve().parents[1] / "tests" / "data" / "trl_run" / "pairs.jsonl"
AGREE = 1e-4


def run_ours(arguments, folder: Path) -> dict:
    """One run of main_ppo; times are those of whole steps, the Ray round trip included."""
    metrics = folder / "ours.jsonl"
    started = time.time()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "verl.trainer.main_ppo",
            "+verl_aiops=[dpo,cpu]" if arguments.device == "cpu" else "+verl_aiops=dpo",
            f"data.train_files={arguments.pairs}",
            "data.shuffle=False",
            f"data.train_batch_size={arguments.batch}",
            f"data.max_prompt_length={arguments.max_length}",
            f"data.max_response_length={arguments.max_length}",
            f"actor_rollout_ref.model.path={arguments.model}",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={arguments.batch}",
            "actor_rollout_ref.model.enable_gradient_checkpointing=False",
            "trainer.n_gpus_per_node=1",
            f"trainer.total_training_steps={arguments.steps}",
            "trainer.logger=[file]",
            "trainer.resume_mode=disable",
            f"trainer.default_local_dir={folder / 'ours'}",
            "algorithm.dpo.export_model=False",
        ],
        check=True,
        cwd=folder,
        env={**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics), "VERL_AIOPS_CACHE": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
    )
    rows = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "actor/loss" in row]
    return {
        "losses": [row["actor/loss"] for row in rows],
        "seconds": [row["timing_s/step"] for row in rows],
        "tokens": [row["perf/total_num_tokens"] for row in rows],
        "peak_gib": max(row["perf/max_memory_allocated_gb"] for row in rows),
        "total_s": time.time() - started,
    }


def run_trl(arguments, *, cached: bool) -> dict:
    """The same steps by TRL, in a process of its own (this function is what the child runs)."""
    import torch
    from datasets import load_dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class InFileOrder(DPOTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):
        seconds: list[float] = []

        def on_step_begin(self, *args, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            self.seconds.append(time.perf_counter() - self.started)

    on_cpu = arguments.device == "cpu"
    if on_cpu:
        torch.set_num_threads(os.cpu_count() or 1)
    started = time.time()
    dtype = torch.float32
    trainer = InFileOrder(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, attn_implementation="sdpa"),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=arguments.batch,
            max_steps=arguments.steps,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_length=2 * arguments.max_length,
            beta=0.1,
            precompute_ref_log_probs=cached,
            gradient_checkpointing=False,
            bf16=not on_cpu,
            use_cpu=on_cpu,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=load_dataset("json", data_files=str(arguments.pairs), split="train"),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        callbacks=[Clock()],
    )
    trainer.train()
    if on_cpu:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    else:
        peak = torch.cuda.max_memory_allocated() / 2**30
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": Clock.seconds,
        "peak_gib": peak,
        "total_s": time.time() - started,
    }


def _child(arguments, cached: bool, folder: Path) -> dict:
    out = folder / f"trl-{cached}.json"
    command = [sys.executable, __file__, "--model", arguments.model, "--pairs", str(arguments.pairs)]
    command += ["--batch", str(arguments.batch), "--steps", str(arguments.steps), "--device", arguments.device]
    command += ["--max-length", str(arguments.max_length), "--trl-child", "cached" if cached else "live"]
    subprocess.run([*command, "--out", str(out)], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--pairs", default=str(PAIRS), help="preference JSONL (default: the 32 pairs of the tests)")
    parser.add_argument("--batch", type=int, default=4, help="pairs per optimizer step (default 4)")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps; the first is not timed (default 5)")
    parser.add_argument("--max-length", type=int, default=1024, help="most tokens of a prompt, and of an answer")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", help="write the numbers as JSON")
    parser.add_argument("--trl-child", choices=("live", "cached"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.model, arguments.pairs = (str(Path(p).resolve()) for p in (arguments.model, arguments.pairs))
    if arguments.trl_child:
        Path(arguments.out).write_text(json.dumps(run_trl(arguments, cached=arguments.trl_child == "cached")))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {"ours": run_ours(arguments, folder)}
        results["TRL default"] = _child(arguments, False, folder)
        results["TRL cached"] = _child(arguments, True, folder)
    versions = {p: importlib.metadata.version(p) for p in ("verl", "trl", "torch", "transformers")}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.device}; {versions}")
    tokens = results["ours"]["tokens"]
    ours = statistics.median(results["ours"]["seconds"][1:])
    print(f"{'':<12} {'s/step':>8} {'pairs/s':>8} {'tokens/s':>9} {'peak GiB':>9} {'ours is':>9}")
    for label, result in results.items():
        seconds = statistics.median(result["seconds"][1:])
        rate = statistics.median(t / s for t, s in zip(tokens[1:], result["seconds"][1:], strict=True))
        ratio = "" if label == "ours" else f"{seconds / ours:8.2f}x"
        speed = f"{seconds:8.2f} {arguments.batch / seconds:8.3f} {rate:9.0f}"
        print(f"{label:<12} {speed} {result['peak_gib']:9.2f} {ratio:>9}")
    gaps = {
        label: max(abs(a - b) for a, b in zip(results["ours"]["losses"], result["losses"], strict=True))
        for label, result in results.items()
        if label != "ours"
    }
    print(f"largest gap between losses of a step: {', '.join(f'{k} {v:.1e}' for k, v in gaps.items())}")
    if arguments.out:
        record = {"arguments": vars(arguments), "versions": versions, "cores": os.cpu_count(), **results}
        Path(arguments.out).write_text(json.dumps(record, indent=1))
    first = [result["losses"][0] for result in results.values()]
    print(f"first losses: {', '.join(f'{loss:.6f}' for loss in first)}")
    if max(first) - min(first) > AGREE:
        print(f"the first losses do not agree to {AGREE}: the trainers did not do the same work", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Seconds a step of a reward model's training: verl's main_ppo with our engine, and TRL's RewardTrainer, in turns.

    python benchmarks/bench_rm.py --model models/SmolLM2-135M-Instruct --out benchmarks/results/rm_cpu.json
    python benchmarks/bench_rm.py --model M --architecture 1.5b --device cuda --prompt 1024 --answer 64 --batch 4 \
      --trl-attention flash_attention_2

Both start from the same classifier and see the same conversations in the same order, without LoRA and without gradient
checkpointing; the first losses are compared. A step's time is the trainer's own, from the end of one to the end of the
next; the first is not timed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_dpo import machine
from dpo_runs import make_data, make_model, step_seconds

VARIANTS = {"ours": "shared_prompt", "rows": "rows", "TRL": "trl"}


def classifier(folder: Path, model: str) -> Path:
    """The model with a score head drawn from a seed, as a folder."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    made = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def ours(backend: str, arguments, folder: Path) -> dict:
    metrics = folder / "metrics.jsonl"
    actor = "actor_rollout_ref.actor"
    command = [sys.executable, "-m", "verl.trainer.main_ppo"]
    command += ["+verl_aiops=[rm,cpu]" if arguments.device == "cpu" else "+verl_aiops=rm"]
    command += [f"data.train_files={arguments.pairs}", "data.shuffle=False", f"data.train_batch_size={arguments.batch}"]
    command += [f"data.max_prompt_length={arguments.prompt + 64}", f"data.max_response_length={arguments.answer + 64}"]
    command += [f"actor_rollout_ref.model.path={arguments.classifier}", f"algorithm.rm.logprob_backend={backend}"]
    command += [f"{actor}.ppo_micro_batch_size_per_gpu={arguments.batch}", "algorithm.rm.center_rewards=0.01"]
    command += ["actor_rollout_ref.model.enable_gradient_checkpointing=False", "trainer.n_gpus_per_node=1"]
    command += [f"trainer.total_training_steps={arguments.steps}", "trainer.logger=[file]"]
    command += ["trainer.resume_mode=disable", f"trainer.default_local_dir={folder / 'out'}"]
    command += ["algorithm.rm.export_model=False", f"{actor}.checkpoint.save_contents=[extra]", *arguments.overrides]
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics), "VERL_AIOPS_CACHE": str(folder / "cache")}
    quiet = None if arguments.verbose else subprocess.DEVNULL
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=quiet)
    rows = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "actor/loss" in row]
    return {
        "losses": [row["actor/loss"] for row in rows],
        "seconds": [row["timing_s/step"] for row in rows],
        "seen": [row["perf/shared_tokens_ratio"] for row in rows],
        "peak_gib": max(row["perf/max_memory_allocated_gb"] for row in rows),
    }


def by_trl(request: dict) -> dict:
    """The same steps by TRL; this is what the child process runs."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    from verl_aiops.trl.reward_data import read_reward_pairs

    class InFileOrder(RewardTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):
        seconds: list[float] = []

        def on_train_begin(self, *args, **kwargs):
            self.before = time.perf_counter()

        def on_step_end(self, _, state, *args, **kwargs):
            if not on_cpu and state.global_step in (1, request["steps"]):
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.seconds.append(now - self.before)
            self.before = now

    on_cpu = request["device"] == "cpu"
    if on_cpu:
        torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = AutoTokenizer.from_pretrained(request["classifier"])
    pairs = read_reward_pairs([request["pairs"]], tokenizer, 1 << 20)
    model = AutoModelForSequenceClassification.from_pretrained(
        request["classifier"], dtype=torch.float32, attn_implementation=request["trl_attention"]
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = InFileOrder(
        model=model,
        args=RewardConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=request["batch"],
            max_steps=request["steps"],
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_length=None,
            center_rewards_coefficient=0.01,
            gradient_checkpointing=False,
            bf16=not on_cpu,
            use_cpu=on_cpu,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"chosen_ids": pairs.chosen_ids, "rejected_ids": pairs.rejected_ids}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    peak = 0.0 if on_cpu else torch.cuda.max_memory_allocated() / 2**30
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "seconds": Clock.seconds, "seen": [1.0], "peak_gib": peak}


def run(variant: str, arguments, folder: Path) -> dict:
    folder.mkdir(parents=True)
    if VARIANTS[variant] != "trl":
        return ours(VARIANTS[variant], arguments, folder)
    request = {**vars(arguments), "out": str(folder / "result.json")}
    quiet = None if arguments.verbose else subprocess.DEVNULL
    command = [sys.executable, __file__, "--child", json.dumps(request)]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=quiet)
    return json.loads((folder / "result.json").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--architecture", choices=("1.5b",), help="random weights of this size, tokenizer of --model")
    parser.add_argument("--prompt", type=int, default=315, help="tokens of a made prompt (default 315)")
    parser.add_argument("--answer", type=int, default=31, help="tokens of each made answer (default 31)")
    parser.add_argument("--batch", type=int, default=4, help="pairs a step, all in one forward pass (default 4)")
    parser.add_argument("--steps", type=int, default=9, help="optimizer steps (default 9)")
    parser.add_argument("--rounds", type=int, default=1, help="times each variant is run (default 1)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--trl-attention", default="sdpa", help="attn_implementation of TRL's model (default sdpa)")
    parser.add_argument("--overrides", nargs="*", default=[], help="more settings for main_ppo")
    parser.add_argument("--verbose", action="store_true", help="show what the trainers write to stderr")
    parser.add_argument("--out", help="write the numbers as JSON")
    arguments = parser.parse_args()
    asked = dict(vars(arguments))
    results: dict[str, list[dict]] = {name: [] for name in arguments.variants}
    with tempfile.TemporaryDirectory() as name:
        from transformers import AutoTokenizer

        folder, model = Path(name), str(Path(arguments.model).resolve())
        if arguments.architecture:
            model = str(make_model(folder / "model", model, arguments.architecture))
        arguments.classifier = str(classifier(folder / "classifier", model))
        lengths = {"prompt": arguments.prompt, "answer": arguments.answer}
        tokenizer = AutoTokenizer.from_pretrained(model)
        arguments.pairs = str(make_data(folder, tokenizer, prompts=arguments.batch * arguments.steps, **lengths)[0])
        for number in range(arguments.rounds):
            turn = arguments.variants[number % len(arguments.variants) :] + arguments.variants
            for variant in dict.fromkeys(turn):
                result = run(variant, arguments, folder / f"{number}-{arguments.variants.index(variant)}")
                results[variant].append(result)
                seconds = step_seconds(result["seconds"])
                print(f"round {number + 1}, {variant}: {seconds:.3f} s a step", file=sys.stderr, flush=True)
    return report(arguments, asked, results)


def report(arguments, asked: dict, results: dict[str, list[dict]]) -> int:
    versions = {p: importlib.metadata.version(p) for p in ("verl", "trl", "torch", "transformers")}
    print(f"{machine(arguments.device)}; {', '.join(f'{k} {v}' for k, v in versions.items())}")
    base = [step_seconds(r["seconds"]) for r in results[arguments.variants[0]]]
    summary = {}
    for variant, runs in results.items():
        seconds = [step_seconds(r["seconds"]) for r in runs]
        ratios = [one / first for one, first in zip(seconds, base, strict=True)]
        seen = statistics.mean(part for r in runs for part in r["seen"])
        peak = max(r["peak_gib"] for r in runs)
        summary[variant] = {"s_per_step": statistics.mean(seconds), "ratio": statistics.mean(ratios)}
        summary[variant] |= {"ratio_range": [min(ratios), max(ratios)], "tokens_seen": seen, "peak_gib": peak}
        print(
            f"{variant:<6} {statistics.mean(seconds):7.3f} s a step, {statistics.mean(ratios):5.2f} times "
            f"{arguments.variants[0]} ({min(ratios):.2f} to {max(ratios):.2f}), tokens seen {seen:.3f}, {peak:.2f} GiB"
        )
    first = [r["losses"][0] for runs in results.values() for r in runs]
    print(f"first losses {min(first):.6f} to {max(first):.6f}")
    if arguments.out:
        record = {"arguments": asked, "machine": machine(arguments.device), "versions": versions}
        Path(arguments.out).write_text(json.dumps({**record, "summary": summary, "runs": results}, indent=1) + "\n")
    allowed = 1e-4 if arguments.device == "cpu" else 2e-2
    if max(first) - min(first) > allowed:
        print(f"the first losses do not agree to {allowed}: the trainers did not do the same work", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        wanted = json.loads(sys.argv[2])
        Path(wanted["out"]).write_text(json.dumps(by_trl(wanted)))
    else:
        sys.exit(main())

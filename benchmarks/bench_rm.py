"""Seconds a step of a reward model's training: verl's main_ppo with our engine, and TRL's RewardTrainer, in turns.

    python benchmarks/bench_rm.py --model models/SmolLM2-135M-Instruct --out benchmarks/results/rm_cpu.json
    python benchmarks/bench_rm.py --model MODEL --completions 2 4 8 --batch 1     # pairs, and groups of four and eight
    python benchmarks/bench_rm.py --model M --architecture 1.5b --device cuda --prompt 1024 --answer 64 --batch 4 \
      --completions 2 4 8 --trl-pairs 8 --variants ours TRL --out benchmarks/results/rm_h200.json

A step has --batch prompts and all pairs of each prompt's answers; of more than two answers ours reads groups with ranks
(`algorithm.rm.comparisons=all`), TRL, which takes pairs alone, those pairs. Both start from the same classifier and see
the same conversations in the same order, without LoRA and without gradient checkpointing; on a GPU both compute in
bfloat16 from float32 weights. TRL has `--trl-attention` and its own collator, which pads a batch to its longest row
(1.16 has none without padding for reward models, and rows of one length need none). A step's time is the trainer's own,
from the end of one to the end of the next; the first is not timed. Exits 1 if the first losses differ by more than 1e-4
(bfloat16: 2e-2).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_dpo import machine
from dpo_runs import by_main_ppo, in_turns, make_data, make_model, pairs_of, step_seconds
from trl_runs import clock, common_settings, in_file_order, peak_gib, prepare

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
    batch = arguments.batch * pairs_of(arguments.answers)
    of_rm = (
        f"data.train_files={arguments.groups}",
        f"data.train_batch_size={batch}",
        f"data.max_prompt_length={arguments.prompt + 64}",
        f"data.max_response_length={arguments.answer + 64}",
        f"actor_rollout_ref.model.path={arguments.classifier}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={batch}",
        f"algorithm.rm.logprob_backend={backend}",
        "algorithm.rm.center_rewards=0.01",
    )
    return by_main_ppo("rm", of_rm, arguments, folder)


def a_pass(pairs: int, most: int | None) -> int:
    """Pairs of a forward pass: all those of a step, or the largest part of equal size that is not above ``most``."""
    return max(size for size in range(1, pairs + 1) if pairs % size == 0 and size <= (most or pairs))


def by_trl(request: dict) -> dict:
    """The same steps by TRL; this is what the child process runs."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from verl_aiops.trl.reward_data import read_reward_pairs

    on_cpu = request["device"] == "cpu"
    prepare(on_cpu)
    timed = clock(on_cpu, request["steps"])
    step = request["batch"] * pairs_of(request["answers"])
    size = a_pass(step, request["trl_pairs"])
    tokenizer = AutoTokenizer.from_pretrained(request["classifier"])
    pairs = read_reward_pairs([request["pairs"]], tokenizer, 1 << 20)
    model = AutoModelForSequenceClassification.from_pretrained(
        request["classifier"], dtype=torch.float32, attn_implementation=request["trl_attention"]
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = in_file_order(RewardTrainer)(
        model=model,
        args=RewardConfig(
            **common_settings(on_cpu, request["steps"]),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=step // size,
            learning_rate=1e-5,
            max_length=None,
            center_rewards_coefficient=0.01,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"chosen_ids": pairs.chosen_ids, "rejected_ids": pairs.rejected_ids}),
        processing_class=tokenizer,
        callbacks=[timed],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "seconds": timed.seconds, "seen": [1.0], "peak_gib": peak_gib(on_cpu)}


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
    parser.add_argument(
        "--completions", type=int, nargs="+", default=[2], help="made answers to a prompt; several are measured in turn"
    )
    parser.add_argument("--batch", type=int, default=4, help="prompts a step, in one forward pass of ours (default 4)")
    parser.add_argument("--trl-pairs", type=int, help="pairs of a forward pass of TRL at most (default: as ours)")
    parser.add_argument("--steps", type=int, default=9, help="optimizer steps, the least and the default 9")
    parser.add_argument("--rounds", type=int, default=1, help="times each variant is run (default 1)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--trl-attention", default="sdpa", help="attn_implementation of TRL's model (default sdpa)")
    parser.add_argument("--overrides", nargs="*", default=[], help="more settings for main_ppo")
    parser.add_argument("--verbose", action="store_true", help="show what the trainers write to stderr")
    parser.add_argument("--out", help="write the numbers as JSON")
    arguments = parser.parse_args()
    if arguments.steps < 9:
        parser.error(f"--steps {arguments.steps}: 9 at least, as the first is not timed and a speed needs eight")
    if min(arguments.completions) < 2:
        parser.error(f"--completions {min(arguments.completions)}: 2 at least")
    asked = dict(vars(arguments))
    about = {"arguments": asked, "machine": machine(arguments.device)}
    about |= {"versions": {p: importlib.metadata.version(p) for p in ("verl", "trl", "torch", "transformers")}}
    print(f"{about['machine']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}")
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), str(Path(arguments.model).resolve())
        if arguments.architecture:
            model = str(make_model(folder / "model", model, arguments.architecture))
        arguments.classifier = str(classifier(folder / "classifier", model))
        for answers in arguments.completions:
            arguments.answers = answers
            row, fault = measured(arguments, folder / str(answers))
            rows.append({"completions": answers, "pairs_a_step": arguments.batch * pairs_of(answers), **row})
            faults += fault
            if arguments.out:  # what was measured is kept, whatever comes of the next one
                Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
                Path(arguments.out).write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def measured(arguments, folder: Path) -> tuple[dict, list[str]]:
    """What all variants take for a step with so many answers to a prompt, and where they did not do the same work."""
    from transformers import AutoTokenizer

    folder.mkdir()
    sizes = {"prompts": arguments.batch * arguments.steps, "completions": arguments.answers}
    lengths = {"prompt": arguments.prompt, "answer": arguments.answer}
    made = make_data(folder, AutoTokenizer.from_pretrained(arguments.classifier), **sizes, **lengths)
    arguments.pairs, arguments.groups = map(str, made)
    return report(arguments, in_turns(arguments, folder, run, f"{arguments.answers} answers, "))


def report(arguments, results: dict[str, list[dict]]) -> tuple[dict, list[str]]:
    base = [step_seconds(r["seconds"]) for r in results[arguments.variants[0]]]
    summary = {}
    print(f"{arguments.answers} answers to a prompt, {arguments.batch * pairs_of(arguments.answers)} pairs a step:")
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
    print(f"first losses {min(first):.6f} to {max(first):.6f}", flush=True)
    allowed = 1e-4 if arguments.device == "cpu" else 2e-2
    apart = max(first) - min(first) > allowed
    said = f"{arguments.answers} answers: the first losses do not agree to {allowed}: not the same work was done"
    return {"summary": summary, "runs": results}, [said] * apart


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        wanted = json.loads(sys.argv[2])
        Path(wanted["out"]).write_text(json.dumps(by_trl(wanted)))
    else:
        sys.exit(main())

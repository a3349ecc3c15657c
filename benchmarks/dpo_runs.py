"""One run of each DPO trainer on the same comparisons, for the benchmarks: what it is given, and what is measured."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trl_runs import clock, common_settings, in_file_order, peak_gib, prepare

__all__ = [
    "GPU_ONLY",
    "NOT_BY_DEFAULT",
    "VARIANTS",
    "by_main_ppo",
    "make_data",
    "make_model",
    "pairs_of",
    "run",
    "step_seconds",
]

COMPILE = "actor_rollout_ref.actor.fsdp_config.use_torch_compile=True"

UNIT_A_LAYER = "+actor_rollout_ref.actor.fsdp_config.wrap_policy.disable=false"
LIGER = "use_liger_kernel"

# name in tables: (trainer, how the reference's log-probs come about, settings beyond the defaults)
VARIANTS = {
    "ours": ("shared_prompt", "cached"),
    "ours, compiled": ("shared_prompt", "cached", COMPILE),
    "ours, a unit a layer": ("shared_prompt", "cached", UNIT_A_LAYER),
    "ours, live reference": ("shared_prompt", "live"),
    "rows": ("rows", "cached"),
    "rows, live reference": ("rows", "live"),
    "TRL": ("trl", "live"),
    "TRL, cached reference": ("trl", "cached"),
    "TRL, cached reference, Liger": ("trl", "cached", LIGER),
}
# Liger's kernels are Triton's; a CPU worker has no units
GPU_ONLY = ("ours, a unit a layer", "TRL, cached reference, Liger")
# asked for by name
NOT_BY_DEFAULT = ("ours, compiled", "ours, a unit a layer")


def pairs_of(completions: int) -> int:
    """Pairs that can be made of so many answers to a prompt, no two of which are tied."""
    return completions * (completions - 1) // 2


def make_data(
    folder: Path, tokenizer, *, prompts: int, prompt: int, answer: int, completions: int = 2, seed: int = 0
) -> tuple[Path, Path]:
    """Chats of random words whose prompts and answers have exactly so many tokens, template and end included.

    Returns:
        a file of pairs, all those of a prompt's answers one after another, and a file of the same answers as groups
        with ranks, the best first. With two answers both are the file of pairs.
    """
    from verl_aiops.data import PreferenceDataset

    rng = random.Random(seed)
    vocabulary = tokenizer.get_vocab()
    words = sorted(
        word
        for word in (tokenizer.convert_tokens_to_string([token]) for token in vocabulary)
        if word.startswith(" ") and word[1:].isascii() and word[1:].isalpha() and word[1:].islower()
    )
    words = [word for word in words if len(tokenizer.encode("a" + word * 2, add_special_tokens=False)) == 3]

    def message(role, tokens):
        return [{"role": role, "content": "a" + "".join(rng.choice(words) for _ in range(tokens - 1))}]

    def chat(prompt_words, answer_words):
        return message("user", prompt_words), [message("assistant", answer_words) for _ in range(completions)]

    def written(name, rows):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        lengths = PreferenceDataset(
            str(path), tokenizer, max_prompt_length=None, max_response_length=None, progress=False
        ).lengths
        return path, lengths

    def pairs(chats):
        return [
            {"prompt": asked, "chosen": better, "rejected": worse}
            for asked, answers in chats
            for better, worse in itertools.combinations(answers, 2)
        ]

    def groups(chats):
        return [
            {
                "prompt": asked,
                "completions": [{"messages": given, "rank": rank} for rank, given in enumerate(answers, 1)],
            }
            for asked, answers in chats
        ]

    (of_prompt, of_answer, _) = written("pairs", pairs([chat(10, 10)]))[1][0] - 10
    chats = [chat(prompt - of_prompt, answer - of_answer) for _ in range(prompts)]
    made = [written("pairs", pairs(chats))]
    made.append(written("groups", groups(chats)) if completions > 2 else made[0])
    for path, lengths in made:
        if len(lengths) != prompts * pairs_of(completions) or (lengths != [prompt, answer, answer]).any():
            raise ValueError(
                f"{path.name}: the words do not tokenise one by one, or pairs are missing: {len(lengths)} of "
                f"{prompts * pairs_of(completions)}, lengths {lengths[:3].tolist()} for {prompt}, {answer}"
            )
    return made[0][0], made[1][0]


def make_model(folder: Path, tokenizer_of: str, architecture: str) -> Path:
    """A random model of a known architecture, with the tokenizer of another folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    sizes = {
        # Qwen2.5-1.5B's config.json
        "1.5b": {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        }
    }
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    config = Qwen2Config(**sizes[architecture], eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def step_seconds(seconds: list[float]) -> float:
    """Seconds a step: the time of all steps but the first, which warms up, over their number. Never a median: where
    steps run into each other, a short one stands beside a long one."""
    return sum(seconds[1:]) / len(seconds[1:])


def in_turns(arguments, folder: Path, run: Callable[..., dict], called: str = "") -> dict[str, list[dict]]:
    """The runs of every variant, round by round, each round beginning with another one: what the machine does beside
    them meets all alike."""
    results: dict[str, list[dict]] = {name: [] for name in arguments.variants}
    for number in range(arguments.rounds):
        turn = arguments.variants[number % len(arguments.variants) :] + arguments.variants
        for variant in dict.fromkeys(turn):
            result = run(variant, arguments, folder / f"{number}-{arguments.variants.index(variant)}")
            results[variant].append(result)
            seconds = step_seconds(result["seconds"])
            print(f"{called}round {number + 1}, {variant}: {seconds:.3f} s a step", file=sys.stderr, flush=True)
    return results


def run(variant: str, arguments, folder: Path) -> dict:
    """Losses, seconds of every step, peak memory (GiB) and total seconds of one run in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer, reference, *overrides = VARIANTS[variant]
    if trainer == "trl":
        out = folder / "result.json"
        request = {**vars(arguments), "cached": reference == "cached", "liger": LIGER in overrides, "out": str(out)}
        batch, micro = _sizes(arguments)
        request |= {"batch": batch, "micro_batch": arguments.trl_micro_batch or micro}
        command = [sys.executable, __file__, json.dumps(request)]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())
    return _ours(trainer, reference, arguments, folder, *overrides)


def _sizes(arguments) -> tuple[int, int]:
    """Pairs of a step, and of a forward pass."""
    pairs = pairs_of(arguments.completions)
    return arguments.batch * pairs, (arguments.micro_batch or arguments.batch) * pairs


def _ours(backend: str, reference: str, arguments, folder: Path, *overrides: str) -> dict:
    batch, micro = _sizes(arguments)
    of_dpo = (
        f"data.train_files={arguments.groups}",
        f"data.train_batch_size={batch}",
        f"data.max_prompt_length={arguments.max_length}",
        f"data.max_response_length={arguments.max_length}",
        f"actor_rollout_ref.model.path={arguments.model}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
        f"algorithm.dpo.logprob_backend={backend}",
        f"algorithm.dpo.reference={reference}",
        *overrides,
    )
    return by_main_ppo("dpo", of_dpo, arguments, folder)


def by_main_ppo(section: str, settings: Sequence[str], arguments, folder: Path) -> dict:
    """A run of main_ppo that saves no model; times are the worker's, from the end of one step to the end of the next.

    Args:
        section: ``dpo`` or ``rm``, the preset and the section of ``algorithm``.
    """
    metrics = folder / "metrics.jsonl"
    started = time.time()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "verl.trainer.main_ppo",
            f"+verl_aiops=[{section},cpu]" if arguments.device == "cpu" else f"+verl_aiops={section}",
            "data.shuffle=False",
            "actor_rollout_ref.model.enable_gradient_checkpointing=False",
            "trainer.n_gpus_per_node=1",
            f"trainer.total_training_steps={arguments.steps}",
            "trainer.logger=[file]",
            "trainer.resume_mode=disable",
            f"trainer.default_local_dir={folder / 'out'}",
            f"algorithm.{section}.export_model=False",
            "actor_rollout_ref.actor.checkpoint.save_contents=[extra]",
            f"algorithm.{section}.comparisons=all",
            *settings,
            *arguments.overrides,
        ],
        check=True,
        cwd=folder,
        env={**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics), "VERL_AIOPS_CACHE": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=None if arguments.verbose else subprocess.DEVNULL,
    )
    rows = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "actor/loss" in row]
    return {
        "losses": [row["actor/loss"] for row in rows],
        "seconds": [row["timing_s/step"] for row in rows],
        "tokens": [row["perf/total_num_tokens"] for row in rows],
        "seen": [row["perf/shared_tokens_ratio"] for row in rows],
        "peak_gib": max(row["perf/max_memory_allocated_gb"] for row in rows),
        "total_s": time.time() - started,
    }


def _trl(request: dict) -> dict:
    """The same steps by TRL; this is what the child process runs."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    on_cpu = request["device"] == "cpu"
    prepare(on_cpu)
    timed = clock(on_cpu, request["steps"])
    started = time.time()
    batch, micro = request["batch"], request["micro_batch"]
    trainer = in_file_order(DPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(
            request["model"], dtype=torch.float32, attn_implementation=request["trl_attention"]
        ),
        args=DPOConfig(
            **common_settings(on_cpu, request["steps"]),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=batch // micro,
            learning_rate=1e-6,
            max_length=2 * request["max_length"],
            beta=0.1,
            precompute_ref_log_probs=request["cached"],
            use_liger_kernel=request["liger"],
            gradient_checkpointing=False,
        ),
        train_dataset=load_dataset("json", data_files=str(request["pairs"]), split="train"),
        processing_class=AutoTokenizer.from_pretrained(request["model"]),
        callbacks=[timed],
    )
    trainer.train()
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": timed.seconds,
        "peak_gib": peak_gib(on_cpu),
        "total_s": time.time() - started,
    }


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    Path(wanted["out"]).write_text(json.dumps(_trl(wanted)))

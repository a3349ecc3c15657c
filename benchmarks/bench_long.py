"""Long contexts on one GPU: DPO with prompts of 16,384 and 32,768 tokens, with the settings that save memory, and TRL.

    python benchmarks/bench_long.py --out benchmarks/results/long_h200
    python benchmarks/bench_long.py --cases full "full, checkpointing" --prompt 8192 --out long_8k
    python benchmarks/bench_long.py --device cpu --tiny --out /tmp/long

A step (forward, backward, optimizer; cached reference) is that of verl's training worker with our engine, outside Ray,
on random pairs; TRL's is its DPOTrainer's, from the end of one to the end of the next, with a reference computed
before. Models have random weights of Qwen2's shapes, made on the device; each case is a process of its own, and all
processes import while none is timed. A case's time is that of all steps after its first over their number.

MFU: what the result needs (each prompt once, the head where a label is, causal attention; of LoRA's frozen weights no
gradient; nothing twice for checkpointing) over the rate of large matrix products of this GPU. Cases that have not begun
when `--seconds` are over are left out and named. Writes OUT/long.json and OUT/long.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.multiprocessing as mp
from bench_dpo import machine, matmul_ceiling
from dpo_runs import step_seconds as seconds_a_step
from dpo_worker import SIZES, batch, build_worker, qwen2_config, step_seconds
from local_ports import free_port
from trl_runs import clock, common_settings, in_file_order, peak_gib, prepare

CHECKPOINTS = {"enable_gradient_checkpointing": True}
OFFLOADS = CHECKPOINTS | {"enable_activation_offload": True}
ADAPTERS = {"lora_rank": 32, "lora_alpha": 64, "enable_gradient_checkpointing": True}


@dataclass(frozen=True)
class Case:
    """What one row of the table is: ``settings`` are those of ``actor_rollout_ref.model``; TRL has its own."""

    size: str
    prompt: int
    pairs: int
    settings: dict
    trainer: str = "ours"
    strategy: str = "fsdp"
    answer: int = 256
    a_unit_a_layer: bool = False
    tiled: int = 0


CASES = {
    "full, checkpointing": Case("1.5b", 16384, 2, CHECKPOINTS),
    "LoRA": Case("7b", 32768, 1, ADAPTERS, strategy="fsdp2"),
    "full": Case("1.5b", 16384, 2, {}),
    "TRL, full, checkpointing, Liger": Case("1.5b", 16384, 2, CHECKPOINTS, trainer="trl, liger"),
    "full, checkpointing, activations on the host": Case("1.5b", 16384, 2, OFFLOADS, a_unit_a_layer=True),
    "LoRA, MLPs in 8 parts": Case("7b", 32768, 1, ADAPTERS, strategy="fsdp2", tiled=8),
    "LoRA, activations on the host": Case(
        "7b", 32768, 1, ADAPTERS | {"enable_activation_offload": True}, strategy="fsdp2"
    ),
    "TRL, full, checkpointing": Case("1.5b", 16384, 2, CHECKPOINTS, trainer="trl"),
    "TRL, LoRA, Liger": Case("7b", 32768, 1, ADAPTERS, trainer="trl, liger"),
}
BY_DEFAULT = 5
WORDS = 2000


def shape_of(case: Case, tiny: bool):
    shape = (64, 96, 3, 4, 2, 2048) if tiny else SIZES[case.size]
    return qwen2_config(shape, tie_word_embeddings=case.size == "1.5b", max_position_embeddings=2 * case.prompt)


def needed_flops(case: Case, tiny: bool = False) -> float:
    """Of a step's pairs. A gradient to frozen weights is not needed, one to what comes before them is."""
    from transformers import AutoModelForCausalLM

    config = shape_of(case, tiny)
    with torch.device("meta"):
        total = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    head = config.vocab_size * config.hidden_size
    body = total - head * (1 if config.tie_word_embeddings else 2)
    tokens, answers = case.prompt + 2 * case.answer, 2 * case.answer
    seen = case.prompt**2 / 2 + 2 * (case.answer * case.prompt + case.answer**2 / 2)
    # two products of queries and keys or values forward, twice as many backward
    attention = 3 * 4 * seen * config.hidden_size * config.num_hidden_layers
    weights = 4 if case.settings.get("lora_rank") else 6
    return case.pairs * (weights * (body * tokens + head * answers) + attention)


def model_folder(folder: Path, config) -> Path:
    """Configuration and a tokenizer of words, without weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    words = {"a": 0, "</s>": 1, **{f"w{number}": number for number in range(2, WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    return folder


def random_weights(device: str) -> None:
    """Whoever loads a language model in this process gets one of random weights, made on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def made(pretrained_model_name_or_path, *args, config=None, dtype=None, torch_dtype=None, **kwargs):
        config = config or AutoConfig.from_pretrained(pretrained_model_name_or_path)
        torch.manual_seed(0)
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype or torch_dtype)

    AutoModelForCausalLM.from_pretrained = made


def ours(case: Case, folder: str, device: str, steps: int, vocabulary: int) -> dict:
    from verl_aiops.kernels.memory import keep_memory

    keep_memory()
    if case.tiled:
        from verl.models.transformers.tiled_mlp import apply_tiled_mlp_monkey_patch

        apply_tiled_mlp_monkey_patch(num_shards=case.tiled, model_type="qwen2")
    # what a lone GPU does by itself is one unit for small models; offloading needs layers
    units = {"wrap_policy": {"disable": False}} if case.a_unit_a_layer else {}
    strategy = case.strategy if device == "cuda" else "fsdp2"
    worker = build_worker(folder, device, case.pairs, False, of_engine={"strategy": strategy, **units}, **case.settings)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    point = {"prompt": case.prompt, "answer": case.answer, "pairs": case.pairs, "vocabulary": vocabulary}
    parts = [batch(point, "shared_prompt", 1, 0) for _ in range(steps)]
    seconds = step_seconds(worker, device, parts)
    return {"seconds": seconds, "peak_gib": peak_gib(device == "cpu")}


def by_trl(case: Case, folder: str, device: str, steps: int) -> dict:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    on_cpu = device == "cpu"
    prepare(on_cpu)
    rng = random.Random(0)

    def words(number: int) -> str:
        return " ".join(f"w{rng.randrange(2, WORDS)}" for _ in range(number))

    # TRL ends an answer by itself
    rows = [
        {"prompt": words(case.prompt), **{side: f" {words(case.answer - 1)}" for side in ("chosen", "rejected")}}
        for _ in range(case.pairs * steps)
    ]
    adapters = None
    if case.settings.get("lora_rank"):
        from peft import LoraConfig

        adapters = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    timed = clock(on_cpu, steps)
    trainer = in_file_order(DPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=DPOConfig(
            **common_settings(on_cpu, steps),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=case.pairs,
            learning_rate=1e-6,
            max_length=None,
            beta=0.1,
            precompute_ref_log_probs=True,
            use_liger_kernel="liger" in case.trainer and not on_cpu,
            gradient_checkpointing="enable_gradient_checkpointing" in case.settings,
        ),
        train_dataset=Dataset.from_list(rows),
        # AutoTokenizer takes the model's own class, which splits words otherwise
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
        peft_config=adapters,
        callbacks=[timed],
    )
    trainer.train()
    seen = max(entry.get("num_tokens", 0) for entry in trainer.state.log_history)
    meant = 2 * case.pairs * steps * (case.prompt + case.answer)
    if seen < 0.99 * meant:
        raise ValueError(f"TRL saw {seen:,.0f} tokens of {meant:,}")
    return {"seconds": timed.seconds, "peak_gib": peak_gib(on_cpu)}


def child(name: str, case: Case, folder: str, device: str, steps: int, vocabulary: int, turn, results) -> None:
    """Imports, waits for its turn, and measures. ``turn``: events that it is ready, and that it may go."""
    os.environ["MASTER_PORT"] = str(free_port())
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if device == "cpu":
        os.environ |= {"VERL_PLATFORM": "cpu", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    # what goes wrong comes back through the queue
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        if case.trainer == "ours":
            # else TRL would take part in a group of processes
            os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
            import verl  # noqa: F401  (loads the plug-in)
            import verl.workers.engine_workers  # noqa: F401
        else:
            import trl.trainer.dpo_trainer  # noqa: F401
        random_weights(device)
        ready, go = turn
        ready.set()
        go.wait()
        began = time.perf_counter()
        given = (case, folder, device, steps)
        found = ours(*given, vocabulary) if case.trainer == "ours" else by_trl(*given)
        results.put((name, {**found, "total_s": time.perf_counter() - began}))
    except BaseException as error:
        told = "does not fit" if isinstance(error, torch.OutOfMemoryError) else f"{type(error).__name__}: {error}"
        results.put((name, {"fault": told.splitlines()[0][:300], "trace": traceback.format_exc()[-2000:]}))
    finally:
        turn[0].set()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def run_all(cases: dict[str, Case], arguments, scratch: Path) -> dict[str, dict]:
    """What each case measured, or why it has nothing. One after another; a hung one ends with the time there is."""
    context, until = mp.get_context("spawn"), time.monotonic() + arguments.seconds
    started = {}
    for number, (name, case) in enumerate(cases.items()):
        config = shape_of(case, arguments.tiny)
        folder = str(model_folder(scratch / str(number), config))
        turn, results = (context.Event(), context.Event()), context.Queue()
        given = (name, case, folder, arguments.device, arguments.steps, WORDS, turn, results)
        process = context.Process(target=child, args=given, daemon=True)
        process.start()
        started[name] = process, turn, results
    for _, (ready, _), _ in started.values():
        ready.wait(timeout=60)
    found: dict[str, dict] = {}
    for name, (process, (_, go), results) in started.items():
        left = until - time.monotonic()
        found[name] = {"fault": "not begun: the time was over"}
        if left > 0:
            go.set()
            try:
                found[name] = results.get(timeout=left)[1]
            except Exception:
                found[name] = {"fault": f"not done in the {left:.0f} s that were left"}
        process.join(timeout=10 if "seconds" in found[name] else 0.1)
        process.kill()
        process.join()
        said = found[name].get("fault") or f"{seconds_a_step(found[name]['seconds']):.3f} s a step"
        print(f"{name}: {said}", file=sys.stderr, flush=True)
    return found


def table(record: dict) -> str:
    head = "| | model | pairs x prompt + answers | s a step | GiB | MFU |\n| --- | --- | --- | ---: | ---: | ---: |\n"
    lines = []
    for name, row in record["rows"].items():
        case = row["case"]
        what = f"| {name} | {case['size']} | {case['pairs']} x {case['prompt']:,} + 2 x {case['answer']:,} |"
        if "fault" in row:
            lines.append(f"{what} {row['fault'].replace('|', '/')} | | |")
            continue
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else ""
        lines.append(f"{what} {row['s_per_step']:.3f} | {row['peak_gib']:.1f} | {mfu} |")
    return head + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = list(CASES)[:BY_DEFAULT]
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=default, metavar="CASE", help=f"of {'; '.join(CASES)}"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--prompt", type=int, help="tokens of each prompt, in place of the cases' own")
    parser.add_argument("--pairs", type=int, help="of a step, in place of the cases' own")
    parser.add_argument("--steps", type=int, default=9, help="optimizer steps; the first is not timed (default 9)")
    parser.add_argument("--seconds", type=float, default=230, help="of all cases together (default 230)")
    parser.add_argument("--tiny", action="store_true", help="three narrow layers and prompts of 96 tokens, to try it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.steps < 9:
        parser.error(f"--steps {arguments.steps}: 9 at least, as the first is not timed and a speed needs eight")
    changes = {"prompt": 96, "answer": 16} if arguments.tiny else {}
    changes |= {key: value for key in ("prompt", "pairs") if (value := getattr(arguments, key))}
    cases = {name: replace(CASES[name], **changes) for name in arguments.cases}
    with tempfile.TemporaryDirectory() as scratch:
        found = run_all(cases, arguments, Path(scratch))
    ceiling = matmul_ceiling() if arguments.device == "cuda" else None
    rows = {}
    for name, case in cases.items():
        rows[name] = row = {"case": asdict(case), **found[name]}
        if "seconds" in row:
            row["s_per_step"] = seconds_a_step(row["seconds"])
            flops = needed_flops(case, arguments.tiny)
            row["mfu"] = flops / row["s_per_step"] / ceiling if ceiling else None
    versions = {p: importlib.metadata.version(p) for p in ("verl", "trl", "torch", "transformers")}
    record = {"machine": machine(arguments.device), "versions": versions, "matmul_flops": ceiling, "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "long.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "long.md").write_text(table(record))
    print(f"{record['machine']}\n\n{table(record)}")
    return 0 if any("seconds" in row for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

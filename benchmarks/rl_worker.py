"""The three passes of a GRPO step in a training worker of its own process, for bench_rl.py: rows, settings, seconds."""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import sys
import time
import traceback
from collections.abc import Iterator

import numpy as np
import torch
from local_ports import free_port

__all__ = ["ENGINES", "PARTS", "jobs_in_one_process", "parse_setting", "rows"]

PARTS = ("old_log_prob", "ref", "update_actor")
ENGINES = {"verl": "language_model", "ours": "shared_prompt_language_model"}


def parse_setting(text: str) -> tuple[dict, dict]:
    """What a worker is built with, and the limits of its micro-batches: ``rows=8``, ``tokens=16384``, with
    ``checkpointing`` (of gradients), ``packed`` (`use_remove_padding`) and ``fused=torch`` or ``fused=triton``
    (`use_fused_kernels`) after commas.

    Raises:
        ValueError: anything else.
    """
    words = dict(word.partition("=")[::2] for word in text.split(","))
    build = {
        "checkpointing": words.pop("checkpointing", None) == "",
        "packed": words.pop("packed", None) == "",
        "fused": words.pop("fused", None),
    }
    if len(words) != 1 or (name := next(iter(words))) not in ("rows", "tokens") or not words[name].isdigit():
        raise ValueError(f"{text!r}: rows=NUMBER or tokens=NUMBER, then checkpointing, packed, fused=torch|triton")
    if build["fused"] not in (None, "torch", "triton"):
        raise ValueError(f"{text!r}: fused=torch or fused=triton")
    number = int(words[name])
    if name == "rows":
        return build, {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": number}
    return build, {"use_dynamic_bsz": True, "max_token_len_per_gpu": number}


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


def batch(point: dict, step: int, *, old: bool, **entries):
    """As verl's trainer sends it; ``old``: with the log-probs of the pass before the update."""
    from verl.utils import tensordict_utils as tu

    made = rows(point, step)
    generator = torch.Generator().manual_seed(step)

    def nested(columns):
        return torch.nested.as_nested_tensor([torch.as_tensor(column) for column in columns], layout=torch.jagged)

    def log_probs():
        return nested([torch.randn(len(answer), generator=generator) - 11 for _, answer in made])

    # one number an answer, on each of its tokens
    advantages = [torch.randn((), generator=generator).expand(len(answer)).clone() for _, answer in made]
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
            "advantages": nested(advantages),
            "ref_log_prob": log_probs(),
            **({"old_log_probs": log_probs()} if old else {}),
        }
    )
    tu.assign_non_tensor(data, temperature=1.0, global_batch_size=len(made), global_token_num=None, **entries)
    return data


def build_worker(model: str, device: str, engine: str, build: dict, *, reference: bool):
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    gpu = device == "cuda"
    dtype = "bf16" if gpu else "fp32"
    fused = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": build["fused"]}}
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type=ENGINES[engine],
            model_config=HFModelConfig(
                path=model,
                use_remove_padding=build["packed"],
                enable_gradient_checkpointing=build["checkpointing"],
                override_config={"attn_implementation": "sdpa"},
                **(fused if build["fused"] else {}),
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


def steps(actor, reference, job: dict, gpu: bool) -> dict:
    """Seconds of each pass in each step after the first; peak memory with the optimizer's state in it."""
    seconds: dict[str, list[float]] = {part: [] for part in job["parts"]}
    ratio, work = 1.0, {"old_log_prob": actor.infer_batch, "ref": reference.infer_batch}
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for step in range(job["repeats"] + 1):
        point = job["point"] if step else {**job["point"], "prompts": job["warm_prompts"]}
        size = point["prompts"] * point["n"]
        for part in job["parts"]:
            # verl's limit of rows divides the rows
            limits = dict(job["limits"])
            if "micro_batch_size_per_gpu" in limits:
                limits["micro_batch_size_per_gpu"] = min(size, limits["micro_batch_size_per_gpu"])
            entries = {"calculate_entropy": part == "old_log_prob", "compute_loss": False, **limits}
            if part == "update_actor":
                # the trainer logs entropies of the policy's first pass
                entries["calculate_entropy"] = "old_log_prob" not in job["parts"]
                entries |= {"mini_batch_size": size, "epochs": 1, "seed": 0}
                entries |= {"dataloader_kwargs": {"shuffle": False}, "compute_loss": True}
            data = batch(point, step, old="old_log_prob" in job["parts"], **entries)
            before = time.perf_counter()
            output = work.get(part, actor.train_mini_batch)(data)
            if gpu:
                torch.cuda.synchronize()
            seconds[part].append(time.perf_counter() - before)
            if part == "update_actor":
                found = output["metrics"].get("shared_tokens_ratio")
                ratio = ratio if found is None else float(np.mean(found))
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
    return {"seconds": {p: values[1:] for p, values in seconds.items()}, "peak_gib": peak, "tokens_ratio": ratio}


def serve(port: int, results, model: str, device: str, engine: str, build: dict, jobs: list[dict]) -> None:
    """Put the answer to each job as it is done; the last is None, or after None for what did not fit into memory."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    gpu = device == "cuda"
    if not gpu:
        os.environ |= {"VERL_PLATFORM": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    # what goes wrong comes back through the queue
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        import verl  # noqa: F401  (loads the plug-in)
        from verl.workers.utils.losses import ppo_loss

        actor = build_worker(model, device, engine, build, reference=False)
        reference = build_worker(model, device, engine, build, reference=True)
        actor.set_loss_fn(functools.partial(ppo_loss, config=actor_config()))
        for job in jobs:
            results.put(("ok", steps(actor, reference, job, gpu)))
    except torch.OutOfMemoryError:
        results.put(("full", None))
    except BaseException:
        results.put(("error", traceback.format_exc()))


def jobs_in_one_process(model: str, device: str, engine: str, build: dict, jobs: list[dict]) -> Iterator[dict | None]:
    """The answer to each job, as soon as there is one: a worker is built once, and anew after a job that did not fit
    into memory, whose answer is None. A job that fails otherwise has ``{"error": ...}`` and ends its worker as well."""
    done = 0
    while done < len(jobs):
        port = free_port()
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=serve, args=(port, results, model, device, engine, build, jobs[done:]))
        process.start()
        state = "ok"
        try:
            while state == "ok" and done < len(jobs):
                state, answer = _next(results, process)
                done += 1
                yield {"error": answer} if state == "error" else answer
        finally:
            process.join(timeout=5 if state == "ok" else 1)
            process.kill()
            process.join()


def _next(results, process) -> tuple[str, object]:
    while True:
        try:
            return results.get(timeout=5)
        except queue.Empty:
            if not process.is_alive():
                # a process that the system ended, for its memory as a rule
                return "error", f"the worker's process ended with {process.exitcode}"

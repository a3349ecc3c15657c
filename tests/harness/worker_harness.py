"""verl's TrainingWorker with the preference engine in plain processes over gloo: everything but Ray."""

import os
import socket
import traceback

import torch
import torch.multiprocessing as mp

WORKER_DEFAULTS = {
    "strategy": "fsdp2",
    "param_dtype": "fp32",
    "lora_rank": 0,
    "gradient_checkpointing": False,
    "micro_pairs": 2,
    "dynamic_tokens": None,
    "lr": 1e-3,
    "compile": False,
    "clip_grad": 1e9,
}


def build_worker(model_dir, **options):
    options = WORKER_DEFAULTS | options
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig

    from verl_aiops.trainers.config import PREFERENCE_MODEL_TYPE
    from verl_aiops.trainers.worker.run_ahead import PairTrainingWorker

    dtype = options["param_dtype"]
    worker = PairTrainingWorker(
        TrainingWorkerConfig(
            model_type=PREFERENCE_MODEL_TYPE,
            model_config=HFModelConfig(
                path=str(model_dir),
                use_remove_padding=False,
                enable_gradient_checkpointing=options["gradient_checkpointing"],
                override_config={"attn_implementation": "sdpa"},
                lora_rank=options["lora_rank"],
            ),
            engine_config=FSDPEngineConfig(
                strategy=options["strategy"],
                use_torch_compile=options["compile"],
                mixed_precision={"param_dtype": dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
                use_dynamic_bsz=options["dynamic_tokens"] is not None,
                micro_batch_size_per_gpu=options["micro_pairs"],
                max_token_len_per_gpu=options["dynamic_tokens"] or 0,
                infer_micro_batch_size_per_gpu=options["micro_pairs"],
                infer_max_token_len_per_gpu=options["dynamic_tokens"] or 0,
            ),
            optimizer_config=FSDPOptimizerConfig(
                lr=options["lr"],
                weight_decay=0.0,
                clip_grad=options["clip_grad"],
                total_training_steps=100,
                override_optimizer_config={"fused": True},
            ),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    return worker


def _rank_main(rank, world, port, model_dir, options, function, arguments, results):
    # logical ranks share two cores; one thread each keeps them from fighting
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "VERL_PLATFORM": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    try:
        import verl  # noqa: F401  (loads the plug-in)

        worker = build_worker(model_dir, **options)
        results.put((rank, "ok", function(worker, *arguments)))
    except BaseException:
        results.put((rank, "error", traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def run_workers(model_dir, world, function, *arguments, **options):
    """``[function(worker, *arguments) on rank 0, on rank 1, ...]``; function must be importable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(
            target=_rank_main, args=(rank, world, port, model_dir, options, function, arguments, results), daemon=True
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        answers = sorted(results.get(timeout=240) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    for rank, state, answer in answers:
        assert state == "ok", f"rank {rank}:\n{answer}"
    return [answer for _, _, answer in answers]

"""verl's TrainingWorker with the preference engine in plain processes over gloo: everything but Ray."""

import os
import traceback
from contextlib import contextmanager

import torch
import torch.multiprocessing as mp
from ports import free_port

WORKER_DEFAULTS = {
    "strategy": "fsdp2",
    "param_dtype": "fp32",
    "lora_rank": 0,
    # of the adapters' base: "nf4" for four bits
    "base_format": None,
    # folder of an adapter that training starts from
    "adapter": None,
    "model_dtype": "fp32",
    "gradient_checkpointing": False,
    "micro_pairs": 2,
    "dynamic_tokens": None,
    "lr": 1e-3,
    "compile": False,
    "clip_grad": 1e9,
    # workers that have a sequence together
    "ulysses": 1,
    "activation_offload": False,
    # of the engine registry; None for the preference engine
    "model_type": None,
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
            model_type=options["model_type"] or PREFERENCE_MODEL_TYPE,
            model_config=HFModelConfig(
                path=str(model_dir),
                # verl's engine wants it with sequence parallelism
                use_remove_padding=options["ulysses"] > 1,
                enable_gradient_checkpointing=options["gradient_checkpointing"],
                enable_activation_offload=options["activation_offload"],
                override_config={"attn_implementation": "sdpa"},
                lora_rank=options["lora_rank"],
                lora={"base_format": options["base_format"]},
                lora_adapter_path=options["adapter"],
            ),
            engine_config=FSDPEngineConfig(
                strategy=options["strategy"],
                model_dtype=options["model_dtype"],
                use_torch_compile=options["compile"],
                ulysses_sequence_parallel_size=options["ulysses"],
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


def _rank_main(rank, variables, function, arguments, results):
    try:
        os.environ |= variables
        import verl  # noqa: F401  (loads the plug-in)

        results.put((rank, "ok", function(*arguments)))
    except BaseException:
        results.put((rank, "error", traceback.format_exc()))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextmanager
def _environment(**variables):
    """What a process that is started within inherits, also the one that others are forked from. verl takes its
    platform from it as soon as it is imported, which a child does while it reads what it is to run: on a machine with a
    GPU it would be CUDA by then."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _context(platform):
    """On a CPU processes are forked from one that has imported verl, once for all tests of this one, which takes
    longer than most of them compute. What verl has imported for a GPU cannot be forked."""
    if platform != "cpu":
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["verl", "verl.trainer.config", "verl_aiops.trainers.worker.run_ahead"])
    return context


def run_ranks(world, function, *arguments, platform="cpu"):
    """``[function(*arguments) on rank 0, on rank 1, ...]``, a process each; function must be importable.

    ``platform``: what verl is to run on; all ranks have the first device.
    """
    port = free_port()
    context = _context(platform)
    results = context.Queue()
    processes = []
    for rank in range(world):
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "VERL_PLATFORM": platform,
            "GLOO_SOCKET_IFNAME": "lo",
            # logical ranks share two cores; one thread each keeps them from fighting
            "OMP_NUM_THREADS": "1",
        }
        main = (rank, variables, function, arguments, results)
        processes.append(context.Process(target=_rank_main, args=main, daemon=True))
        with _environment(**variables):
            processes[-1].start()
    try:
        answers = sorted(results.get(timeout=240) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    for rank, state, answer in answers:
        assert state == "ok", f"rank {rank}:\n{answer}"
    return [answer for _, _, answer in answers]


def _with_worker(model_dir, options, function, arguments):
    return function(build_worker(model_dir, **options), *arguments)


def run_workers(model_dir, world, function, *arguments, **options):
    """``[function(worker, *arguments) on rank 0, on rank 1, ...]``; function must be importable."""
    return run_ranks(world, _with_worker, model_dir, options, function, arguments)

"""Rows of GRPO and PPO in plain worker processes: verl's engines and ours on the same batch."""

import numpy as np
import torch
from torch.distributed.tensor import DTensor

VOCABULARY = 500
ENGINE = {"strategy": "fsdp2", "param_dtype": "fp32", "lora_rank": 0, "gradient_checkpointing": False}
ENGINE |= {"forward_only": False, "model_dtype": "fp32"}


def rows_of(seed=0, prompts=3, n=4, first=3, second=2):
    """Two-round rows: the group's prompt, a first answer that two rows of a group have in common, the second round's
    instruction, an answer. In every group one row is another's copy, and prompts begin alike."""
    rng = np.random.default_rng(seed)

    def ids(length):
        return rng.integers(5, VOCABULARY, length)

    start, rows = ids(12), []
    for _ in range(prompts):
        prompt, instruction, group = np.concatenate([start, ids(int(rng.integers(5, 20)))]), ids(6), []
        for at in range(n):
            opening = group[-1][0] if at % 2 else ids(first + int(rng.integers(0, 9)))
            group.append((opening, ids(second + int(rng.integers(0, 4)))))
        group[-1] = group[0]
        for opening, answer in group:
            mask = [1.0] * len(opening) + [0.0] * len(instruction) + [1.0] * len(answer)
            rows.append((prompt, np.concatenate([opening, instruction, answer]), np.array(mask)))
    return rows


def batch_of(rows, seed=0, **entries):
    """A batch as verl's trainer sends it to its workers."""
    from verl.utils import tensordict_utils as tu

    generator = torch.Generator().manual_seed(seed)

    def nested(columns):
        return torch.nested.as_nested_tensor([torch.as_tensor(column) for column in columns], layout=torch.jagged)

    def random(scale, shift=0.0):
        return nested([torch.randn(len(answer), generator=generator) * scale + shift for _, answer, _ in rows])

    both = [np.concatenate([prompt, answer]) for prompt, answer, _ in rows]
    data = tu.get_tensordict(
        {
            "input_ids": nested(both),
            "position_ids": nested([np.arange(len(row)) for row in both]),
            "prompts": nested([prompt for prompt, _, _ in rows]),
            "responses": nested([answer for _, answer, _ in rows]),
            "response_mask": nested([mask.astype(np.float32) for _, _, mask in rows]),
            "loss_mask": nested([mask.astype(np.float32) for _, _, mask in rows]),
            "old_log_probs": random(0.5, -6.0),
            "ref_log_prob": random(0.5, -6.0),
            "advantages": random(1.0),
            "rollout_is_weights": nested([torch.rand(len(a), generator=generator) + 0.5 for _, a, _ in rows]),
            "values": random(0.5),
            "returns": random(1.0),
        }
    )
    settings = {"temperature": 1.0, "use_dynamic_bsz": False, "micro_batch_size_per_gpu": len(rows)}
    settings |= {"global_batch_size": len(rows), "use_remove_padding": False, "max_token_len_per_gpu": 100_000}
    tu.assign_non_tensor(data, **(settings | entries))
    return data


def _config(*overrides):
    from hydra import compose, initialize_config_module

    size = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[size, "critic.ppo_micro_batch_size_per_gpu=1", *overrides])


def actor_config(*overrides):
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(_config(*overrides).actor_rollout_ref.actor)


def critic_config(model_dir):
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(_config(f"critic.model.path={model_dir}").critic)


def engine_of(model_dir, model_type, **options):
    """verl's TrainingWorker with an engine of that type."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    options = ENGINE | options
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type=model_type,
            model_config=HFModelConfig(
                path=str(model_dir),
                use_remove_padding=False,
                enable_gradient_checkpointing=options["gradient_checkpointing"],
                override_config={"attn_implementation": "sdpa"},
                lora_rank=options["lora_rank"],
            ),
            engine_config=FSDPEngineConfig(
                strategy=options["strategy"],
                forward_only=options["forward_only"],
                model_dtype=options["model_dtype"],
                mixed_precision={"param_dtype": options["param_dtype"], "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, weight_decay=0.0, total_training_steps=100),
            checkpoint_config=CheckpointConfig(),
        )
    )
    torch.manual_seed(0)  # adapters begin at random
    worker.reset()
    return worker


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def loss_and_gradients(worker, data, loss_function):
    """Loss of all workers together, every gradient, and metrics of this one."""
    engine = worker.engine
    with engine.train_mode():
        engine.optimizer_zero_grad()
        output = engine.forward_backward_batch(data, loss_function, forward_only=False)
        gradients = {
            name.replace("_fsdp_wrapped_module.", ""): _whole(p.grad).clone().cpu().numpy()
            for name, p in engine.module.named_parameters()
            if p.grad is not None
        }
    loss = torch.tensor(float(np.sum(output["loss"])))
    torch.distributed.all_reduce(loss)
    return float(loss) / torch.distributed.get_world_size(), gradients, output["metrics"]


def outputs(worker, data):
    """What scoring gives, as verl's trainer reads it: per row over the answer's tokens."""
    from verl.workers.utils.padding import response_from_nested

    engine = worker.engine
    with engine.eval_mode():
        found = engine.infer_batch(data, loss_function=None)["model_output"]
    return {
        name: [row.cpu().numpy() for row in response_from_nested(value, data["response_mask"]).unbind()]
        for name, value in found.items()
    }

"""Rows of GRPO and PPO in plain worker processes: verl's engines and ours on the same batch."""

import numpy as np
import torch
from prepared import composed
from torch.distributed.tensor import DTensor

VOCABULARY = 500
ENGINE = {"strategy": "fsdp2", "param_dtype": "fp32", "lora_rank": 0, "gradient_checkpointing": False}
ENGINE |= {"forward_only": False, "model_dtype": "fp32"}
# steps in proportion to gradients: Adam makes a whole step of the round-off of one that is 0
ENGINE |= {"optimizer": "SGD", "compile": False, "ulysses": 1}


def rows_of(seed=0, prompts=3, n=4, first=3):
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
            group.append((opening, ids(2 + int(rng.integers(0, 4)))))
        group[-1] = group[0]
        for opening, answer in group:
            mask = [1.0] * len(opening) + [0.0] * len(instruction) + [1.0] * len(answer)
            rows.append((prompt, np.concatenate([opening, instruction, answer]), np.array(mask)))
    return rows


def row_of(prompt, answer, mask=1.0):
    """A row of ids, all of whose answer's tokens have a label, or none."""
    return np.asarray(prompt, np.int64), np.asarray(answer, np.int64), np.full(len(answer), mask)


def padding_rows(count):
    """What verl adds to a batch that its workers cannot divide (`trainer/ppo/padding_utils.py`): 127 tokens and one,
    which has no label."""
    return [row_of([2] * 127, [2], 0.0)] * count


def batch_of(rows, seed=0, leave_out=(), **entries):
    """A batch as verl's trainer sends it to its workers.

    Args:
        rows: (prompt, answer, mask) each.
        seed: of what would have been computed from the rows before.
        leave_out: columns that it has not.
        entries: what else the batch says, or says otherwise. Tensors have a row each, and so have lists.
    """
    from verl.utils import tensordict_utils as tu

    generator = torch.Generator().manual_seed(seed)

    def nested(columns):
        return torch.nested.as_nested_tensor([torch.as_tensor(column) for column in columns], layout=torch.jagged)

    def random(scale, shift=0.0):
        return nested([torch.randn(len(answer), generator=generator) * scale + shift for _, answer, _ in rows])

    both = [np.concatenate([prompt, answer]) for prompt, answer, _ in rows]
    each_row = {name: entry for name, entry in entries.items() if isinstance(entry, list | torch.Tensor)}
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
            **each_row,
        }
    ).exclude(*leave_out)
    settings = {"temperature": 1.0, "use_dynamic_bsz": False, "micro_batch_size_per_gpu": len(rows)}
    settings |= {"global_batch_size": len(rows), "use_remove_padding": False, "max_token_len_per_gpu": 100_000}
    settings |= entries
    tu.assign_non_tensor(data, **{name: entry for name, entry in settings.items() if name not in each_row})
    return data


def _config(*overrides):
    size = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"
    return composed(size, "critic.ppo_micro_batch_size_per_gpu=1", *overrides)


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
                # verl's engine wants it with sequence parallelism
                use_remove_padding=options["ulysses"] > 1,
                enable_gradient_checkpointing=options["gradient_checkpointing"],
                override_config={"attn_implementation": "sdpa"},
                lora_rank=options["lora_rank"],
            ),
            engine_config=FSDPEngineConfig(
                strategy=options["strategy"],
                use_torch_compile=options["compile"],
                ulysses_sequence_parallel_size=options["ulysses"],
                mixed_precision={"param_dtype": options["param_dtype"], "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
                forward_only=options["forward_only"],
                model_dtype=options["model_dtype"],
            ),
            optimizer_config=FSDPOptimizerConfig(
                optimizer=options["optimizer"], lr=0.1, clip_grad=100.0, weight_decay=0.0, total_training_steps=100
            ),
            checkpoint_config=CheckpointConfig(),
        )
    )
    torch.manual_seed(0)  # adapters begin at random
    worker.reset()
    return worker


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def by_name(worker, of=lambda parameter: parameter):
    """{name: array}: the weights of a worker's model, or what `of` gives for each, without those where it is None."""
    found = {n.replace("_fsdp_wrapped_module.", ""): of(p) for n, p in worker.engine.module.named_parameters()}
    return {n: _whole(t.detach()).clone().cpu().numpy() for n, t in found.items() if t is not None}


def loss_and_gradients(worker, data, loss_function):
    """Loss of all workers together, every gradient, and metrics of this one."""
    from verl.utils.device import get_device_name

    engine = worker.engine
    with engine.train_mode():
        engine.optimizer_zero_grad()
        output = engine.forward_backward_batch(data, loss_function, forward_only=False)
        gradients = by_name(worker, lambda parameter: parameter.grad)
    loss = torch.tensor(float(np.sum(output["loss"])), device=get_device_name())
    torch.distributed.all_reduce(loss)
    return float(loss) / torch.distributed.get_world_size(), gradients, output["metrics"]


def outputs(worker, data, without_adapters=False):
    """What scoring gives, as verl's trainer reads it: per row over the answer's tokens. None of a worker that has a
    sequence together with another, which gives it."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_from_nested

    tu.assign_non_tensor(data, compute_loss=False, global_token_num=None, no_lora_adapter=without_adapters)
    found = worker.infer_batch(data)
    if found is None:
        return None
    return {
        name: [row.numpy() for row in response_from_nested(value, data["response_mask"]).unbind()]
        for name, value in found.items()
        if isinstance(value, torch.Tensor)
    }


def train(worker, data, loss_function, *, mini_batch_size, epochs):
    """An update as verl's trainer asks for it, several optimizer steps.

    Returns:
        how much every weight has changed, and the metrics.
    """
    from verl.utils import tensordict_utils as tu

    def weights():
        return {n: _whole(t).detach().clone().cpu().numpy() for n, t in worker.engine.module.state_dict().items()}

    worker.set_loss_fn(loss_function)
    before = weights()
    tu.assign_non_tensor(data, mini_batch_size=mini_batch_size, global_batch_size=mini_batch_size, epochs=epochs)
    tu.assign_non_tensor(data, seed=1, dataloader_kwargs={"shuffle": True})
    metrics = tu.get(worker.train_mini_batch(data), "metrics")
    after = weights()
    return {name: after[name] - held for name, held in before.items()}, metrics

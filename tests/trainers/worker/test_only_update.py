"""The only update on a batch: its own log-probs are the old ones, and come back to the trainer."""

import functools

import numpy as np
import pytest
from rl_parts import actor_config, batch_of, engine_of, loss_and_gradients, outputs, rows_of
from worker_harness import run_ranks

ROWS = rows_of(prompts=4)


def _updated(model_dir, temperatures):
    """On this worker's share: log-probs before; loss and gradients with these as old ones, and with none; what an
    update brings back."""
    import torch
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss

    from verl_aiops.trainers.batch import ROWS_LOG_PROBS

    torch.set_num_threads(1)
    worker = engine_of(model_dir, "shared_prompt_language_model")
    loss = functools.partial(ppo_loss, config=actor_config())
    worker.set_loss_fn(loss)
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    rows = ROWS[rank * len(ROWS) // world : (rank + 1) * len(ROWS) // world]
    # as verl's command line has them: micro-batches of several rows, which tear a group; verl's own must divide them
    size = 3 if len(temperatures) == 1 else 2
    data = batch_of(rows, seed=rank, micro_batch_size_per_gpu=size, global_batch_size=len(ROWS), calculate_entropy=True)
    if len(temperatures) > 1:
        data["temperature"] = torch.tensor([temperatures[at % len(temperatures)] for at in range(len(rows))])
    before = outputs(worker, data.clone())["log_probs"]
    given = data.clone()
    given["old_log_probs"] = torch.nested.as_nested_tensor(list(map(torch.from_numpy, before)), layout=torch.jagged)
    without = data.exclude("old_log_probs")
    both = [loss_and_gradients(worker, part.clone(), loss)[:2] for part in (given, without)]
    settings = {"mini_batch_size": len(ROWS), "epochs": 1, "seed": 0, "dataloader_kwargs": {"shuffle": False}}
    tu.assign_non_tensor(without, **settings, **{ROWS_LOG_PROBS: True})
    return before, both, tu.get(worker.train_mini_batch(without), "metrics")


@pytest.mark.parametrize(
    "world, temperatures",
    [(1, [1.0]), (2, [1.0]), (1, [0.7, 1.0])],
    ids=["one worker", "two workers", "temperatures of which verl's own forward pass takes care"],
)
def test_log_probs_of_the_update_are_the_old_ones_and_come_back_in_the_order_of_all_rows(
    world, temperatures, tiny_model_dir
):
    found = run_ranks(world, _updated, tiny_model_dir, temperatures)
    before = [row for share, _, _ in found for row in share]
    for _, ((loss, gradients), (our_loss, our_gradients)), metrics in found:
        assert our_loss == pytest.approx(loss, abs=1e-6)
        largest = max(np.abs(gradient).max() for gradient in gradients.values())
        for name, gradient in gradients.items():
            np.testing.assert_allclose(our_gradients[name], gradient, rtol=0, atol=1e-5 * largest, err_msg=name)
        assert len(metrics["rows_log_probs"]) == len(ROWS)
        for row, ours, theirs in zip(ROWS, metrics["rows_log_probs"], before, strict=True):
            labelled = row[2] > 0
            np.testing.assert_allclose(ours[labelled], theirs[labelled], rtol=0, atol=1e-5)
        assert np.mean(metrics["actor/ppo_kl"]) == 0.0 and np.mean(metrics["actor/pg_clipfrac"]) == 0.0
        # of all workers' tokens, the same number on each; none where each row went through the model by itself
        assert len(set(metrics.get("shared_tokens_ratio", []))) == (1 if len(temperatures) == 1 else 0)

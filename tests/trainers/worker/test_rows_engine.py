"""GRPO and PPO with beginnings computed once: every number is that of verl's own engine on the same batch."""

import functools

import numpy as np
import pytest
from rl_parts import actor_config, batch_of, critic_config, engine_of, loss_and_gradients, outputs, rows_of
from worker_harness import run_ranks

ROWS = rows_of(prompts=4)
ACTOR = "actor_rollout_ref.actor"
# settings of verl's actor, and what else a batch says
CASES = {
    "grpo": ([], {}),
    "half a group": ([], {"micro_batch_size_per_gpu": 2}),
    "under a budget": ([], {"use_dynamic_bsz": True, "max_token_len_per_gpu": 130}),
    "temperature": ([], {"temperature": 0.7}),
    "entropy bonus": ([f"{ACTOR}.entropy_coeff=0.1"], {"calculate_entropy": True, "temperature": 1.3}),
    "KL loss": ([f"{ACTOR}.use_kl_loss=True"], {}),
    "sequences, means": ([f"{ACTOR}.loss_agg_mode=seq-mean-token-mean"], {"micro_batch_size_per_gpu": 4}),
    "sequences, sums": ([f"{ACTOR}.loss_agg_mode=seq-mean-token-sum"], {"micro_batch_size_per_gpu": 4}),
    "sequences, normed": ([f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm"], {}),
    "gspo": ([f"{ACTOR}.policy_loss.loss_mode=gspo"], {}),
    "cispo": ([f"{ACTOR}.policy_loss.loss_mode=cispo"], {}),
    "sapo": ([f"{ACTOR}.policy_loss.loss_mode=sapo"], {}),
    "dual clip": ([f"{ACTOR}.clip_ratio_c=1.2"], {}),
}

MODELS = ("language_model", "shared_prompt_language_model")


def _both(model_dir, cases, options):
    """{case: numbers} of verl's engine, and of ours, on this worker's share of the rows."""
    import torch
    from verl.workers.utils.losses import ppo_loss

    torch.set_num_threads(1)
    results = []
    for model_type in MODELS:
        worker = engine_of(model_dir, model_type, **options)
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        rows = ROWS[rank * len(ROWS) // world : (rank + 1) * len(ROWS) // world]
        found = {}
        for case in cases:
            overrides, entries = CASES[case]
            loss = functools.partial(ppo_loss, actor_config(*overrides))
            settings = {"micro_batch_size_per_gpu": len(rows), "global_batch_size": len(ROWS), **entries}
            data = batch_of(rows, seed=rank, **settings)
            found[case] = (outputs(worker, data.clone()), *loss_and_gradients(worker, data.clone(), loss))
        results.append(found)
    return results


def same(stock, ours, rows, tolerance=1e-5):
    """Log-probs and entropies in nats, the loss, gradients relative to the largest of all."""
    (numbers, loss, gradients, _), (our_numbers, our_loss, our_gradients, our_metrics) = stock, ours
    for name, values in numbers.items():
        for row, value, our in zip(rows, values, our_numbers[name], strict=True):
            labelled = row[2] > 0
            np.testing.assert_allclose(our[labelled], value[labelled], rtol=0, atol=tolerance)
            assert not our[~labelled].any()
    assert abs(loss - our_loss) < tolerance * max(1, abs(loss))
    assert gradients.keys() == our_gradients.keys()
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(our_gradients[name], gradient, rtol=0, atol=tolerance * largest, err_msg=name)
    assert our_metrics["shared_tokens_ratio"][0] < 1


@pytest.fixture(scope="module")
def one_worker(tiny_model_dir):
    (found,) = run_ranks(1, _both, tiny_model_dir, tuple(CASES), {})
    return found


@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_are_verls(case, one_worker):
    stock, ours = one_worker
    same(stock[case], ours[case], ROWS)


@pytest.mark.parametrize(
    "world, options",
    [
        (2, {}),
        (2, {"gradient_checkpointing": True}),
        (1, {"lora_rank": 4}),
    ],
    ids=["two workers", "two workers, gradient checkpointing", "LoRA"],
)
def test_sharded_models_adapters_and_checkpointing(world, options, tiny_model_dir):
    cases = ("grpo", "under a budget")
    for rank, (stock, ours) in enumerate(run_ranks(world, _both, tiny_model_dir, cases, options)):
        rows = ROWS[rank * len(ROWS) // world : (rank + 1) * len(ROWS) // world]
        for case in cases:
            same(stock[case], ours[case], rows)


def _critics(model_dir):
    """The same of critics, whose heads are random and therefore copied from verl's to ours."""
    from verl.workers.utils.losses import value_loss

    found, head = [], None
    for model_type in ("value_model", "shared_prompt_value_model"):
        worker = engine_of(model_dir, model_type)
        score = dict(worker.engine.module.named_parameters())
        name = next(key for key in score if "score" in key or "v_head" in key)
        local = score[name].data.to_local() if hasattr(score[name].data, "to_local") else score[name].data
        if head is None:
            head = local.clone()
        local.copy_(head)
        loss = functools.partial(value_loss, critic_config(model_dir))
        found.append((outputs(worker, batch_of(ROWS)), *loss_and_gradients(worker, batch_of(ROWS), loss)))
    return found


def test_a_critics_values_and_gradients_are_verls(tiny_model_dir):
    ((stock, ours),) = run_ranks(1, _critics, tiny_model_dir)
    same(stock, ours, ROWS)
    assert np.abs(np.concatenate(stock[0]["values"])).max() > 0.01

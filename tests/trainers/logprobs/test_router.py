"""The routers' loss of shared prompts is what transformers returns for the rows, in value and gradient."""

import pytest
import torch
from logprob_pairs import hard_pairs
from tiny_lms import tiny_config, tiny_lm
from verl.utils import tensordict_utils as tu

from verl_aiops.trainers.config import ConfigError, DPOConfig
from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.logprobs.router import ROUTED_MODELS, RouterBalance, balance
from verl_aiops.trainers.logprobs.shared_prompt import shared_answer_log_probs
from verl_aiops.trainers.worker.objective import ROUTER_LOSS, PreferenceObjective, columns_for_loss

# the same pair twice, and one that only fills up
PAIRS = [*hard_pairs()[:4], hard_pairs()[0], hard_pairs()[3]]
COUNTED = [1, 1, 1, 1, 1, 0]


def of_rows(model):
    """transformers' own, of padded rows, the equal ones as often as they are there."""
    rows = [
        torch.cat([one["prompt_ids"], one[f"{side}_ids"]])
        for one, counts in zip(PAIRS, COUNTED)
        for side in ("chosen", "rejected")
        if counts
    ]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    mask = torch.stack([(torch.arange(width) < len(row)).long() for row in rows])
    return model(input_ids=ids, attention_mask=mask, output_router_logits=True, use_cache=False).aux_loss


def batch(**settings):
    counted = torch.tensor(COUNTED, dtype=torch.float32)
    return pair_batch(PAIRS, mini_pairs=len(PAIRS), counted=counted, logprob_backend="shared_prompt", **settings)


def of_shared(model):
    router = RouterBalance()
    log_probs = shared_answer_log_probs(model, batch(), packed=False, device="cpu", router=router)
    return router.loss, log_probs


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ROUTED_MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_value_and_gradient_are_those_of_rows(kind, checkpointing):
    model = tiny_lm(kind).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = of_rows(model)
    of_plain = gradients(model, expected)
    loss, _ = of_shared(model)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert abs(float(expected.detach()) - model.num_experts_per_tok) > 1e-3  # not what even routing would give
    found = gradients(model, loss)
    # what nothing of the loss goes through may have a gradient of 0, or none
    for name, gradient in of_plain.items():
        if gradient.any():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max(), msg=name)
    assert any("gate" in name or "router" in name for name, gradient in found.items() if gradient.any())


def test_log_probs_are_those_without_it():
    model = tiny_lm("qwen3_moe")
    with torch.no_grad():
        _, with_loss = of_shared(model)
        without = shared_answer_log_probs(model, batch(), packed=False, device="cpu")
    torch.testing.assert_close(with_loss.values(), without.values(), rtol=0, atol=2e-5)


def test_nothing_that_counts_is_no_loss():
    logits = [torch.randn(5, 4, requires_grad=True)]
    loss = balance(logits, 2, torch.zeros(5))
    assert float(loss.detach()) == 0 and not torch.autograd.grad(loss, logits)[0].any()


def test_an_even_distribution_gives_the_number_of_experts_a_token_goes_to():
    even = torch.eye(4).repeat(2, 1) * 1e-4  # each expert is first of as many tokens, all probabilities alike
    assert float(balance([even], 1, torch.ones(8))) == pytest.approx(1, rel=1e-3)


def _objective(coefficient, data, output):
    data = columns_for_loss(data, "cpu")
    objective = PreferenceObjective(loss_settings={"loss_type": "sft"}, router_aux_loss_coef=coefficient)
    return objective(output, data)


def test_the_objective_adds_it_by_the_share_of_the_examples_that_count():
    data = batch()
    tu.assign_non_tensor(data, dp_size=2)
    log_probs = torch.nested.nested_tensor_from_jagged(
        torch.full((len(data["responses"].values()),), -1.0), data["responses"].offsets()
    )
    aux = torch.tensor(3.0, requires_grad=True)
    plain, _ = _objective(0.0, data, {"answer_log_probs": log_probs})
    loss, metrics = _objective(0.1, data, {"answer_log_probs": log_probs, ROUTER_LOSS: aux})
    # all five pairs of the mini-batch stand in this micro-batch of one of two workers, whose mean is taken
    assert float(loss.detach() - plain) == pytest.approx(0.1 * 3.0 * 2)
    assert metrics[ROUTER_LOSS].aggregate() == pytest.approx(3.0 * 2)
    assert float(torch.autograd.grad(loss, aux)[0]) == pytest.approx(0.1 * 2)


def _checked(folder, kind, backend, workers=1, **model):
    from omegaconf import OmegaConf

    from verl_aiops.trainers.preflight.checks import Run
    from verl_aiops.trainers.preflight.preference import check_backend

    tiny_config(kind).save_pretrained(folder)
    config = OmegaConf.create(
        {
            "trainer": {"device": "cpu"},
            "algorithm": {"dpo": {"logprob_backend": backend, "router_aux_loss_coef": 0.01}},
            "data": {"max_prompt_length": 10, "max_response_length": 3},
            "actor_rollout_ref": {
                "actor": {"ulysses_sequence_parallel_size": workers, "fsdp_config": {"mixed_precision": None}},
                "model": {"path": str(folder), "use_shm": False, "trust_remote_code": False, "use_liger": False}
                | {"enable_gradient_checkpointing": True, **model},
            },
        }
    )
    OmegaConf.update(config, "actor_rollout_ref.model.use_remove_padding", True, force_add=True)
    run = Run(kind="dpo", given=set())
    run.settings = DPOConfig.from_config(config)
    check_backend(config, run)


@pytest.mark.parametrize(
    "kind, backend, workers, why",
    [
        ("llama", "auto", 1, "models of type 'llama' have no routers"),
        ("glm4_moe", "auto", 1, "models of type 'glm4_moe' have no routers"),
        ("qwen3_moe", "rows", 1, "logprob_backend=shared_prompt alone, and it is rows"),
        ("qwen3_moe", "auto", 2, "not computed where workers have a sequence together"),
        ("qwen3_moe", "auto", 1, None),
    ],
)
def test_where_it_cannot_be_computed_the_run_is_refused(tmp_path, kind, backend, workers, why):
    if why is None:
        return _checked(tmp_path, kind, backend, workers)
    with pytest.raises(ConfigError, match=f"algorithm.dpo.router_aux_loss_coef=0.01: .*{why}"):
        _checked(tmp_path, kind, backend, workers)


def test_layers_whose_routers_keep_no_graph_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="enable_activation_offload=True: verl's checkpointing.* keeps no graph"):
        _checked(tmp_path, "qwen3_moe", "auto", enable_activation_offload=True)

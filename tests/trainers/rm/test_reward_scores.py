"""The score of each answer's last token: by rows, by shared prompts, and as transformers has it alone."""

import pytest
import torch
from logprob_pairs import hard_pairs
from tiny_lms import tiny_config
from transformers import AutoModelForSequenceClassification

from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.logprobs.switch import with_own_attention
from verl_aiops.trainers.rm.scores import SCORE_BACKENDS


@pytest.fixture(params=["llama", "qwen3"])
def model(request):
    config = tiny_config(request.param, num_labels=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").float()


def by_rows_alone(model, pairs):
    """(rows,): the head on the last hidden state of each conversation, one at a time."""
    with_own_attention(model)
    scores = []
    for pair in pairs:
        for side in ("chosen", "rejected"):
            ids = torch.cat([pair["prompt_ids"], pair[f"{side}_ids"]])
            scores.append(model.score(model.model(ids.unsqueeze(0)).last_hidden_state[0, -1])[0])
    return torch.stack(scores)


def scored(model, backend, pairs, packed=False, size=2):
    batch = pair_batch(
        pairs, mini_pairs=len(pairs), logprob_backend=backend, scored=True, rows_per_example=size, use_dynamic_bsz=False
    )
    return SCORE_BACKENDS[backend](model, batch, packed=packed, device="cpu")


def with_gradients(model, scores):
    model.zero_grad()
    (scores * torch.linspace(-1, 1, len(scores))).sum().backward()
    return scores.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", SCORE_BACKENDS)
def test_both_backends_score_the_last_token_of_each_conversation(model, backend):
    pairs = hard_pairs()
    wanted, gradients = with_gradients(model, by_rows_alone(model, pairs))
    found, ours = with_gradients(model, scored(model, backend, pairs).values())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=2e-5, msg=name)


def test_rows_packed_into_one_sequence_are_scored_as_each_one_alone(model):
    pairs = hard_pairs()
    wanted, gradients = with_gradients(model, by_rows_alone(model, pairs))
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    found, ours = with_gradients(model, scored(model, "rows", pairs, packed=True).values())
    hook.remove()
    assert len(shapes) == 1 and shapes[0][0] == 1, "one sequence, without padding"
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("backend", SCORE_BACKENDS)
def test_a_token_that_pads_is_scored_where_a_conversation_ends_with_it(model, backend):
    pairs = hard_pairs()[:2]
    for pair in pairs:
        pair["chosen_ids"][-1] = model.config.pad_token_id
    scores = scored(model, backend, pairs).values()
    torch.testing.assert_close(scores, by_rows_alone(model, pairs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", SCORE_BACKENDS)
def test_what_fills_up_an_example_changes_no_score(model, backend):
    pairs = hard_pairs()
    scores = scored(model, backend, pairs, size=3).values().view(-1, 3)[:, :2].flatten()
    torch.testing.assert_close(scores, by_rows_alone(model, pairs), rtol=0, atol=1e-5)


def test_a_model_in_half_precision_is_scored_by_its_head_in_float32(model):
    pairs = hard_pairs()
    with torch.autocast("cpu", torch.bfloat16):
        found = scored(model, "rows", pairs).values()
    assert found.dtype == torch.float32
    # a score with eight binary digits would equal itself rounded to them
    assert not torch.equal(found, found.bfloat16().float())
    of_weights = scored(model.bfloat16(), "rows", pairs).values()
    assert of_weights.dtype == torch.float32 and not torch.equal(of_weights, of_weights.bfloat16().float())

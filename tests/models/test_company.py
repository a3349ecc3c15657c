"""What a model computes for a row does not depend on the rows beside it, whatever layers it has."""

import pytest
import torch
from company_models import LIMIT, RECURRENT, ROTARY, model_of
from tiny_lms import VOCABULARY, tiny_config, tiny_lm
from transformers import AutoConfig, AutoModelForSequenceClassification, DynamicCache

from verl_aiops.models import company
from verl_aiops.rollout.hf.engine import Engine, Request, Sampling
from verl_aiops.rollout.hf.score_model import ScoreModel
from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.logprobs import LOGPROB_BACKENDS


def pair(prompt, chosen, rejected, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in (prompt, chosen, rejected)]
    return {
        **{"prompt_ids": ids[0], "chosen_ids": ids[1], "rejected_ids": ids[2], "weight": 1.0},
        **{"chosen_mask": torch.ones(chosen), "rejected_mask": torch.ones(rejected)},
    }


# a short one, one whose answers stand on both sides of the limit, two long ones, a short one after them
PAIRS = [pair(10, 6, 5, 1), pair(18, 12, 4, 2), pair(40, 7, 6, 3), pair(30, 9, 3, 4), pair(8, 4, 6, 5)]


def alone(name):
    """Log-probs of each row by a model that has seen no other."""
    rows = []
    for p in PAIRS:
        for answer in (p["chosen_ids"], p["rejected_ids"]):
            ids = torch.cat([p["prompt_ids"], answer])[None]
            logits = model_of(name)(input_ids=ids).logits[0, -len(answer) - 1 : -1]
            rows.append(logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1))
    return torch.cat(rows)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", [*ROTARY, *RECURRENT, "gpt2", "llama"])
def test_log_probs_and_gradients_of_rows_are_those_of_each_row_alone(name, packed):
    model, reference = model_of(name), model_of(name)
    backend = LOGPROB_BACKENDS["rows"]
    got = backend(model, pair_batch(PAIRS, mini_pairs=5), packed=packed, device="cpu").values()
    torch.testing.assert_close(got, alone(name), rtol=0, atol=1e-4)
    got.sum().backward()
    for p in PAIRS:
        backend(reference, pair_batch([p], mini_pairs=1), packed=False, device="cpu").values().sum().backward()
    for (key, a), b in zip(model.named_parameters(), reference.parameters()):
        assert (a.grad is None) == (b.grad is None), key
        assert a.grad is None or (a.grad - b.grad).abs().max() <= 1e-4 * b.grad.abs().max() + 1e-6, key


@pytest.mark.parametrize("name", [*ROTARY])
def test_a_prompt_is_shared_only_where_its_answers_have_one_rotary_embedding(name):
    batch = pair_batch(PAIRS, mini_pairs=5, logprob_backend="shared_prompt")
    got = LOGPROB_BACKENDS["shared_prompt"](model_of(name), batch, packed=False, device="cpu").values()
    torch.testing.assert_close(got, alone(name), rtol=0, atol=1e-4)


def test_a_short_row_is_right_after_a_long_one():
    model = model_of("dynamic")
    got = [LOGPROB_BACKENDS["rows"](model, pair_batch([p], mini_pairs=1), packed=False, device="cpu") for p in PAIRS]
    torch.testing.assert_close(torch.cat([g.values() for g in got]), alone("dynamic"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*ROTARY, *RECURRENT, "llama"])
def test_answers_are_those_of_each_prompt_alone(name):
    generator = torch.Generator().manual_seed(3)
    prompts = [tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()) for n in (5, 17, 9, 40)]
    requests = [Request(prompt, Sampling(6, seed=at)) for at, prompt in enumerate([*prompts, prompts[1]])]
    together = Engine(model_of(name), [2]).generate(requests)
    for request, answer in zip(requests, together):
        (single,) = Engine(model_of(name), [2]).generate([request])
        assert answer.token_ids == single.token_ids
        assert answer.logps == pytest.approx(single.logps, abs=1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "qwen3_next"])
def test_scores_are_those_of_each_input_alone(kind, tmp_path):
    if kind == "dynamic":
        config = tiny_config("llama", num_labels=1, **ROTARY["dynamic"][1])
    else:
        config = tiny_config("qwen3_next", num_labels=1, **RECURRENT["qwen3_next"])
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    inputs = [[5, 6, 7], list(range(3, 43)), list(range(20, 29)), list(range(9, 60))]
    scores = ScoreModel(str(tmp_path), torch.float32, "cpu")(inputs)
    single = [ScoreModel(str(tmp_path), torch.float32, "cpu")([ids]).item() for ids in inputs]
    assert scores.tolist() == pytest.approx(single, abs=1e-5)


# --- how it is found out -------------------------------------------------------------------------------------------


class Odd(torch.nn.Module):
    """A decoder of a kind that nobody knows, which mixes the rows of a batch."""

    def __init__(self, kind="mixes"):
        super().__init__()
        self.inner, self.kind, self.calls = tiny_lm("llama"), kind, 0
        self.config = self.inner.config

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, **more):
        out = self.inner(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        self.calls += 1
        if self.kind == "mixes":
            out.logits = out.logits + out.logits.mean(0, keepdim=True)
        elif self.kind == "raises" and len(input_ids) > 1:
            raise NotImplementedError("one row")
        elif self.kind == "remembers":
            out.logits = out.logits * (1 + 0.1 * self.calls)
        return out


@pytest.mark.parametrize("kind", ["mixes", "raises"])
def test_a_model_that_mixes_rows_gets_them_one_at_a_time_and_that_is_said(kind, caplog):
    model = Odd(kind).train()
    got = LOGPROB_BACKENDS["rows"](model, pair_batch(PAIRS, mini_pairs=5), packed=False, device="cpu")
    assert model.training
    expected = [
        LOGPROB_BACKENDS["rows"](Odd(kind), pair_batch([p], mini_pairs=1), packed=False, device="cpu") for p in PAIRS
    ]
    torch.testing.assert_close(got.values(), torch.cat([e.values() for e in expected]), rtol=0, atol=1e-5)
    assert "one at a time" in caplog.text


def test_a_model_that_remembers_is_refused():
    with pytest.raises(RuntimeError, match="keeps something from row to row"):
        LOGPROB_BACKENDS["rows"](Odd("remembers"), pair_batch(PAIRS, mini_pairs=5), packed=False, device="cpu")


def test_families_that_were_compared_are_not_tried(monkeypatch):
    monkeypatch.setattr(company, "depends", None)
    model = tiny_lm("qwen2")
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(module))
    LOGPROB_BACKENDS["rows"](model, pair_batch(PAIRS, mini_pairs=5), packed=False, device="cpu")
    assert len(seen) == 1


def test_the_limit_of_a_rotary_embedding_is_read_off_the_configuration():
    assert company.rotary_limit(tiny_config("llama")) is None
    assert company.rotary_limit(tiny_config("phi3", **ROTARY["longrope"][1])) == (LIMIT, False)
    assert company.rotary_limit(tiny_config("llama", **ROTARY["dynamic"][1])) == (LIMIT, True)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    assert company.rotary_limit(tiny_config("llama", rope_parameters=yarn)) is None


def test_only_layers_of_attention_count_as_none():
    assert not company.has_recurrent_layers(tiny_lm("gemma3_text", head_dim=8))
    assert all(company.has_recurrent_layers(model_of(name)) for name in RECURRENT)


def test_transformers_caches_of_recurrent_layers_still_cannot_be_selected_from():
    """When they can, such models may share a batch again."""
    cache = DynamicCache(config=tiny_config("lfm2", **RECURRENT["lfm2"]))
    with pytest.raises(AttributeError, match="batch_select_indices"):
        cache.batch_select_indices(torch.tensor([0]))
    assert AutoConfig.for_model("lfm2").model_type == "lfm2"

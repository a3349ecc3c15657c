"""The embedded rollout's engine: what is sampled, its log-probs, seeds, stops and budgets."""

import math
import threading
import time

import pytest
import torch

from verl_aiops.rollout.hf.engine import Engine, Request, Sampling, filtered

STOP = 2
PROMPTS = [(5, 6, 7, 8, 9), (300, 17, 44), (7,), tuple(range(10, 60)), (5, 6, 7, 8, 9)]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="sdpa")


@pytest.fixture
def engine(model):
    return Engine(model, [STOP], seed=3)


def requests(prompts=PROMPTS, **sampling):
    return [Request(tuple(prompt), Sampling(**{"max_tokens": 12, **sampling})) for prompt in prompts]


def logps_of(model, prompt, ids, temperature=1.0):
    """What verl's trainer computes: a forward pass over prompt and answer, logits over the temperature."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


def test_a_model_that_was_saved_without_cache_samples_the_same(tiny_model_dir, engine):
    """Trainers save ``use_cache: false``; verl's rollout builds its model from that configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.use_cache = False
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    other.load_state_dict(engine.model.state_dict())
    expected = engine.generate(requests(temperature=0.0))
    sampled = Engine(other, [STOP], seed=3).generate(requests(temperature=0.0))
    assert [s.token_ids for s in sampled] == [s.token_ids for s in expected]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_logps_are_the_trainers(engine, model, temperature):
    """Padding, sharing of the prompt's cache and decoding step by step against one pass over one row: 1e-4 in float32,
    the bound that verl's own rollout check warns far above."""
    for request, sampled in zip(requests(), engine.generate(requests(temperature=temperature))):
        expected = logps_of(model, request.prompt_ids, sampled.token_ids, temperature)
        assert sampled.logps == pytest.approx(expected, abs=1e-4)


def test_logps_are_before_top_p_and_top_k(engine, model):
    for request, sampled in zip(requests(), engine.generate(requests(top_k=5, top_p=0.8))):
        assert sampled.logps == pytest.approx(logps_of(model, request.prompt_ids, sampled.token_ids), abs=1e-4)


def test_temperature_zero_is_greedy(engine, model):
    for request, sampled in zip(requests(), engine.generate(requests(temperature=0.0))):
        ids = list(request.prompt_ids)
        for token, logp in zip(sampled.token_ids, sampled.logps):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            assert token == logits.argmax() and logp == pytest.approx(logits.log_softmax(-1).max().item(), abs=1e-4)
            ids.append(token)


def test_samples_follow_the_distribution(engine, model):
    """First tokens of 6,000 answers against the model's probabilities: within four standard deviations, each."""
    prompt, count = (5, 6, 7), 6000
    answers = engine.generate(requests([prompt] * count, max_tokens=1, temperature=0.5))
    drawn = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=model.config.vocab_size) / count
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / 0.5).softmax(-1)
    spread = (expected * (1 - expected) / count).sqrt() + 1 / count
    assert ((drawn - expected).abs() < 4.5 * spread).all()
    assert (drawn > 0).sum() > 20


def test_filters_against_a_direct_reading():
    torch.manual_seed(0)
    logps = torch.randn(40).log_softmax(-1)
    ordered = sorted(range(40), key=lambda token: -logps[token].item())
    assert set(torch.isfinite(filtered(logps, 1.0, 7)).nonzero()[:, 0].tolist()) == set(ordered[:7])
    kept, mass = [], 0.0
    for token in ordered:
        if mass >= 0.5:
            break
        kept.append(token)
        mass += math.exp(logps[token])
    assert set(torch.isfinite(filtered(logps, 0.5, -1)).nonzero()[:, 0].tolist()) == set(kept)
    assert torch.equal(filtered(logps, 1.0, -1), logps) and torch.equal(filtered(logps, 1.0, 0), logps)
    # the likeliest token always stays
    assert torch.isfinite(filtered(logps, 1e-9, -1)).sum() == 1


def test_seeds(model, engine):
    """The same seed and weights give the same answers, alone or among others, in any order; otherwise other ones."""

    def fresh(seed=3):
        return Engine(model, [STOP], seed=seed)

    first = [a.token_ids for a in engine.generate(requests(), version=4)]
    assert [a.token_ids for a in fresh().generate(requests(), version=4)] == first
    assert first[0] != first[4], "two answers to one prompt"
    assert [a.token_ids for a in fresh().generate(requests()[::-1], version=4)][1:4] == first[3:0:-1]
    assert fresh().generate(requests()[3:4], version=4)[0].token_ids == first[3]
    # the third and fourth answer to a prompt come in another batch and are not the first and second again
    again = [a.token_ids for a in engine.generate(requests(), version=4)]
    assert len({tuple(ids) for ids in (first[0], first[4], again[0], again[4])}) == 4
    assert [a.token_ids for a in engine.generate(requests(), version=5)] not in (first, again)
    assert [a.token_ids for a in fresh(9).generate(requests(), version=4)] != first
    own = [a.token_ids for a in engine.generate(requests(seed=1), version=4)]
    assert own[0] == own[4] and own == [a.token_ids for a in engine.generate(requests(seed=1), version=8)]


def test_stops_and_budgets(model):
    free = Engine(model, [STOP], seed=0).generate(requests(ignore_eos=True, max_tokens=9))
    assert [len(a.token_ids) for a in free] == [9] * len(PROMPTS) and not any(a.aborted for a in free)
    stop = free[1].token_ids[3]
    engine = Engine(model, [stop], seed=0)
    sampled = engine.generate(requests(max_tokens=9))
    for a, b in zip(sampled, free):
        end = b.token_ids.index(stop) + 1 if stop in b.token_ids else 9
        assert a.token_ids == b.token_ids[:end] and len(a.logps) == end and not a.aborted
    budgets = [1, 4, 2, 7, 3]
    mixed = [Request(r.prompt_ids, Sampling(max_tokens=n, ignore_eos=True)) for r, n in zip(requests(), budgets)]
    assert [len(a.token_ids) for a in engine.generate(mixed)] == budgets
    assert engine.generate([]) == []


def test_new_weights_change_answers(tiny_model_dir):
    """In place, as the trainer sends them, also through the tied output head."""
    from transformers import AutoModelForCausalLM

    from verl_aiops.rollout.hf.server import Weights

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    engine = Engine(model, [STOP])
    before = engine.generate(requests(temperature=0.0))
    torch.manual_seed(1)
    state = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    weights = Weights(model, complete=False)
    assert len(weights.names_missing()) == len(list(model.named_parameters()))
    names = list(state)
    weights.load({name: state[name] for name in names[:5]})
    assert weights.names_missing()
    weights.load({name: state[name] for name in names[5:]})
    assert weights.names_missing() == []
    after = engine.generate(requests(temperature=0.0))
    assert [a.token_ids for a in after] != [b.token_ids for b in before]
    for request, sampled in zip(requests(), after):
        assert sampled.logps == pytest.approx(logps_of(model, request.prompt_ids, sampled.token_ids), abs=1e-4)
    with pytest.raises(KeyError, match="no.such.weight"):
        weights.load({"no.such.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"model.norm.weight has shape \(3,\), not \(64,\)"):
        weights.load({"model.norm.weight": torch.zeros(3)})


def test_broken_weights_are_an_error_not_a_sample(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        Engine(model, [STOP]).generate(requests())


def test_abort_ends_a_batch_with_what_it_has(engine):
    answers, abort = [], threading.Event()
    thread = threading.Thread(
        target=lambda: answers.extend(engine.generate(requests(max_tokens=3000, ignore_eos=True), abort=abort))
    )
    thread.start()
    time.sleep(0.7)
    abort.set()
    thread.join(20)
    assert not thread.is_alive()
    assert all(a.aborted and 0 < len(a.token_ids) < 3000 and len(a.logps) == len(a.token_ids) for a in answers)
    # and the next batch is whole again
    assert not any(a.aborted for a in engine.generate(requests()))


@pytest.mark.parametrize(
    "params, message",
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not supported"),
        ({"json_schema": "{}"}, "json_schema is not supported"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"stop": ["x"]}, "stop is not supported"),
    ],
)
def test_sampling_parameters_that_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        Sampling.from_params(params, 10)


def test_sampling_parameters_of_verl():
    sent = {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
    assert Sampling.from_params(sent, 10) == Sampling(10, 0.7, 0.9, -1)
    assert Sampling.from_params({**sent, "max_tokens": 4}, 10).max_tokens == 4
    assert Sampling.from_params({**sent, "max_new_tokens": 40}, 10).max_tokens == 10
    assert "max_tokens" not in sent

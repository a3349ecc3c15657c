"""Models that change their logits after the head, cap scores of attention or have sinks: shared prompts give what rows
give, with every setting far enough from doing nothing that leaving it out would show."""

from types import SimpleNamespace

import pytest
import torch
from logprob_pairs import assert_same, hard_pairs, ids, log_probs_and_gradients, pair
from tiny_lms import tiny_lm

from verl_aiops.platform.attention import plain_attention
from verl_aiops.trainers.logprobs import attention
from verl_aiops.trainers.logprobs.head import changed_after_head, label_log_probs
from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.scores import Scores, attention_of_scores
from verl_aiops.trainers.logprobs.shared_prompt import label_values

# shorter than the prompts of most pairs, the longest of which has 40 tokens
WINDOW = 6
# with each setting, what it is where it does nothing; a window is longer than any row then
SETTINGS = [
    ("gemma2", "attn_logit_softcapping", 1.0, None),
    ("gemma2", "final_logit_softcapping", 2.0, None),
    ("gemma2", "sliding_window", WINDOW, 500),
    ("gemma3_text", "final_logit_softcapping", 2.0, None),
    ("gemma3_text", "sliding_window", WINDOW, 500),
    ("gpt_oss", "sliding_window", WINDOW, 500),
    ("cohere", "logit_scale", 0.3, 1.0),
    ("cohere2", "sliding_window", WINDOW, 500),
    ("granite", "logits_scaling", 3.0, 1.0),
    ("hyperclovax", "logits_scaling", 0.3, 1.0),
]


def group():
    """Six pairs of four answers to a prompt that is longer than the window."""
    g = torch.Generator().manual_seed(5)
    prompt, answers = ids(g, 30), [ids(g, n) for n in (4, 9, 5, 7)]
    return [pair(prompt, answers[i], answers[j]) for i in range(4) for j in range(i + 1, 4)]


def of_the_model_itself(model, pairs):
    """As `log_probs_and_gradients`, one row after another and from the logits that transformers returns."""
    found = []
    for one in pairs:
        for side in ("chosen", "rejected"):
            answer, mask = one[f"{side}_ids"], one[f"{side}_mask"]
            logits = model(input_ids=torch.cat([one["prompt_ids"], answer])[None]).logits[0, -len(answer) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, answer[:, None]).squeeze(1) * mask)
    labelled = torch.cat(found)
    (labelled * torch.linspace(-1, 1, len(labelled))).sum().backward()
    return labelled.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind, name, value, without", SETTINGS)
def test_log_probs_and_every_gradient_equal_those_of_rows(kind, name, value, without):
    model, pairs = tiny_lm(kind, **{name: value}), hard_pairs() + group()
    expected, of_rows = of_the_model_itself(model, pairs)
    with_setting, gradients = log_probs_and_gradients(model, "shared_prompt", pairs)
    torch.testing.assert_close(with_setting, expected, rtol=0, atol=2e-5)
    assert gradients.keys() == of_rows.keys()
    for parameter, gradient in of_rows.items():
        gap = (gradients[parameter] - gradient).abs().max()
        assert gap <= 2e-5 * gradient.abs().max() + 1e-9, parameter
    # the backend `rows` takes the same way through the head
    torch.testing.assert_close(
        log_probs_and_gradients(tiny_lm(kind, **{name: value}), "rows", pairs)[0], expected, rtol=0, atol=2e-5
    )
    assert getattr(model.config, name) == value
    plain = log_probs_and_gradients(tiny_lm(kind, **{name: without}), "shared_prompt", pairs)[0]
    # 500 times what rows and shared prompts may differ by
    assert (with_setting - plain).abs().max() > 1e-2


def test_sinks_count_and_are_trained():
    model = tiny_lm("gpt_oss", sliding_window=WINDOW)
    gradients = log_probs_and_gradients(model, "shared_prompt", group())[1]
    sinks = {name: gradient for name, gradient in gradients.items() if name.endswith("sinks")}
    assert len(sinks) == 2 and all(gradient.abs().min() > 1e-6 for gradient in sinks.values())


def test_with_gradient_checkpointing_and_a_head_in_chunks(monkeypatch):
    """The backward pass computes layers, scores and logits again, when the model's own setting is back in place."""
    monkeypatch.setitem(label_log_probs.__kwdefaults__, "logits_at_once", 500)
    model = tiny_lm("gemma2", sliding_window=WINDOW)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert_same(model)


def test_temperature_and_entropy_are_those_of_the_changed_logits():
    model, one = tiny_lm("gemma2"), hard_pairs()[0]
    rows = [one["prompt_ids"]], [one["chosen_ids"]], [torch.ones(len(one["chosen_ids"]))]
    with torch.no_grad():
        values = label_values(model, SharedLayout(*rows), temperature=0.7, entropy=True)
        model.set_attn_implementation("eager")
        logits = model(input_ids=torch.cat([rows[0][0], rows[1][0]])[None]).logits[0, len(rows[0][0]) - 1 : -1] / 0.7
    log_probs = logits.log_softmax(-1)
    expected = log_probs.gather(1, rows[1][0][:, None]).squeeze(1), -(log_probs.exp() * log_probs).sum(-1)
    torch.testing.assert_close(values, torch.stack(expected, dim=1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_a_setting_is_put_back_when_a_pass_fails(kind):
    model = tiny_lm(kind)
    before = model.config.to_dict(), dict(vars(model))
    model.model.forward = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        log_probs_and_gradients(model, "shared_prompt")
    assert model.config.to_dict() == before[0]
    assert vars(model).get("logit_scale") == before[1].get("logit_scale")


def test_a_name_that_another_type_of_model_has_is_not_taken_for_the_same():
    assert changed_after_head(SimpleNamespace(model_type="new", logits_scaling=3.0)) == "logits_scaling=3.0"
    assert changed_after_head(SimpleNamespace(model_type="new", logits_scaling=1.0)) is None
    assert changed_after_head(SimpleNamespace(model_type="granite", logits_scaling=3.0)) is None
    assert changed_after_head(SimpleNamespace(model_type="granite", logit_scale=3.0)) == "logit_scale=3.0"


def test_capped_scores_are_not_left_to_an_attention_that_does_not_cap():
    """transformers' `sdpa` takes no notice of `softcap`."""
    model = tiny_lm("gemma2")
    assert plain_attention(model.config) == model.config._attn_implementation == "eager"
    assert plain_attention(tiny_lm("gemma2", attn_logit_softcapping=None).config) == "sdpa"
    assert plain_attention(tiny_lm("gemma3_text").config) == "sdpa"


# --- attention -------------------------------------------------------------------------------------------------------


def queries_keys_values(queries, keys, heads=4, kv_heads=2, size=8):
    g = torch.Generator().manual_seed(queries)
    shapes = (heads, queries), (kv_heads, keys), (kv_heads, keys)
    return [torch.randn(1, *shape, size, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]


def results_and_gradients(function, tensors):
    output = function(*tensors)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), tensors)]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("at_once", [1, 4 * 20 * 3, 1 << 20])
def test_scores_in_chunks_are_those_of_a_mask_over_all(window, at_once):
    query, key, value = queries_keys_values(13, 20)
    sinks = torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True)

    def direct(query, key, value, sinks):
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
        scores = torch.tanh(query @ key.mT * 0.3 / 2.0) * 2.0
        before = torch.arange(7, 20)[:, None] - torch.arange(20)
        scores = scores.masked_fill((before < 0) | (before >= (window or 99)), -torch.inf)
        everything = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(1, 4, 13, 1)], dim=-1)
        return everything.softmax(-1)[..., :-1] @ value

    def ours(query, key, value, sinks):
        return attention_of_scores(query, key, value, Scores(0.3, window, 2.0, sinks), at_once)

    for one, other in zip(*(results_and_gradients(f, (query, key, value, sinks)) for f in (direct, ours)), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def _flash_forward(query, keys, values, query_ends, key_ends, *_, scale, window_size_left, **__):
    """What PyTorch's kernel computes, by its formula."""
    outputs, sums = [], []
    for q, k, v, hidden in _segments(query, keys, values, query_ends, key_ends, window_size_left):
        scores = (q @ k.mT * scale).masked_fill(hidden, -torch.inf)
        sums.append(scores.logsumexp(-1))
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs), torch.cat(sums, dim=1), None, None, None


def _flash_backward(
    gradient, query, keys, values, output, sums, query_ends, key_ends, *_, scale, window_size_left, **__
):
    """As flash attention has it (arXiv 2205.14135, algorithm 4): from the output and the log-sums that it is given."""
    found = [torch.zeros_like(t) for t in (query, keys, values)]
    segments = _segments(query, keys, values, query_ends, key_ends, window_size_left)
    for number, (q, k, v, hidden) in enumerate(segments):
        asking, seen = (slice(*ends[number : number + 2].tolist()) for ends in (query_ends, key_ends))
        of_output, held = (t[asking].transpose(0, 1) for t in (gradient, output))
        weights = ((q @ k.mT * scale).masked_fill(hidden, -torch.inf) - sums[:, asking, None]).exp()
        of_scores = weights * (of_output @ v.mT - (of_output * held).sum(-1, keepdim=True)) * scale
        repeats = query.shape[1] // keys.shape[1]
        for result, part, rows, times in (
            (found[0], of_scores @ k, asking, 1),
            (found[1], of_scores.mT @ q, seen, repeats),
            (found[2], weights.mT @ of_output, seen, repeats),
        ):
            result[rows] += part.unflatten(0, (-1, times)).sum(1).transpose(0, 1)
    return found


def _segments(query, keys, values, query_ends, key_ends, left):
    for at in range(len(query_ends) - 1):
        asking, seen = (slice(*ends[at : at + 2].tolist()) for ends in (query_ends, key_ends))
        q, k, v = (t.transpose(0, 1) for t in (query[asking], keys[seen], values[seen]))
        repeats = len(q) // len(k)
        before = torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None] - torch.arange(k.shape[1])
        hidden = (before < 0) | (before > left) if left >= 0 else before < 0
        yield q, k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0), hidden


@pytest.mark.parametrize("window", [None, 5])
def test_sinks_are_put_in_after_a_kernel_that_knows_nothing_of_them(monkeypatch, window):
    """PyTorch's kernel stands on GPUs alone; here its formulas in its place, forward and backward."""
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", _flash_forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", _flash_backward)
    prompts = [torch.arange(2, 14)] * 3 + [torch.tensor([7, 3])]
    answers = [torch.tensor(a) for a in ([5, 1, 4], [5, 2, 3, 4, 6, 8], [6, 1], [8, 9, 3])]
    layout = SharedLayout(prompts, answers, [torch.ones(len(a)) for a in answers])
    tokens = len(layout.input_ids)
    tensors = *queries_keys_values(tokens, tokens), torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True)

    def of(function):
        return lambda query, key, value, sinks: function(query, key, value, Scores(0.4, window, None, sinks), layout)

    expected = results_and_gradients(of(attention._segment_by_segment), tensors)
    for one, other in zip(expected, results_and_gradients(of(attention._pytorch_over_segments), tensors), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "scores, flash_attn, pytorch, kernel",
    [
        (Scores(1.0), True, True, "_flash_attn_over_segments"),
        (Scores(1.0), False, True, "_pytorch_over_segments"),
        (Scores(1.0, softcap=2.0), True, True, "_flash_attn_over_segments"),
        (Scores(1.0, softcap=2.0), False, True, None),
        (Scores(1.0, sinks=torch.zeros(2)), True, True, "_pytorch_over_segments"),
        (Scores(1.0, sinks=torch.zeros(2)), True, False, None),
        (Scores(1.0, sinks=torch.zeros(2), softcap=2.0), True, True, None),
    ],
)
def test_a_kernel_is_taken_that_does_all_that_the_scores_want(monkeypatch, scores, flash_attn, pytorch, kernel):
    monkeypatch.setattr(attention, "_has_flash_attn", lambda: flash_attn)
    monkeypatch.setattr(attention, "_has_pytorch_varlen", lambda: pytorch)
    found = attention._kernel_of_all_segments(scores)
    assert found is (None if kernel is None else getattr(attention, kernel))

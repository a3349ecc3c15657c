"""Rows that fork, and fork again: log-probs, entropies and gradients are those of each row alone."""

import numpy as np
import pytest
import torch
from tiny_lms import VOCABULARY, tiny_lm

from verl_aiops.trainers.logprobs import layout as layout_module
from verl_aiops.trainers.logprobs.head import label_log_probs
from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.shared_prompt import label_values

WINDOW = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}


def random_tree(rng, depth=4):
    """Rows that stop at, or go on from, any node of a random tree; (prompts, answers, masks)."""

    def ids(most):
        return rng.integers(0, VOCABULARY, rng.integers(1, most)).tolist()

    def grow(start, left):
        yield start
        for _ in range(rng.integers(1, 4) if left else 0):
            yield from grow(start + ids(14), left - 1)

    rows = [row for row in grow(ids(9), depth) if len(row) > 1]
    rows = [rows[at] for at in rng.choice(len(rows), min(len(rows), 12), replace=False)]
    cuts = [int(rng.integers(1, len(row))) for row in rows]
    prompts = [torch.tensor(row[:cut]) for row, cut in zip(rows, cuts)]
    answers = [torch.tensor(row[cut:]) for row, cut in zip(rows, cuts)]
    masks = [torch.from_numpy(rng.integers(0, 2, len(answer))).float() for answer in answers]
    masks[0][0] = 1.0  # one label at least
    return prompts, answers, masks


def weighted(values, weights, model):
    """The values, and the gradients of a sum with weights of their own."""
    gradients = torch.autograd.grad((values * weights).sum(), list(model.parameters()))
    return values.detach(), gradients


def by_rows(model, prompts, answers, masks):
    """(labels, 2): log-probs and entropies of each row alone, in the order of the rows."""
    found = []
    for prompt, answer, mask in zip(prompts, answers, masks):
        logits = (
            model(torch.cat([prompt, answer])[None], use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        )
        both = torch.stack([logits.gather(-1, answer[:, None])[:, 0], -(logits.exp() * logits).sum(-1)], dim=-1)
        found.append(both[mask > 0])
    return torch.cat(found)


@pytest.mark.parametrize("least_saved", [1, 8])
@pytest.mark.parametrize("settings", [{}, WINDOW], ids=["plain", "window"])
@pytest.mark.parametrize("seed", range(6))
def test_random_trees_give_the_numbers_of_their_rows(seed, settings, least_saved, monkeypatch):
    monkeypatch.setattr(layout_module, "LEAST_SAVED", least_saved)
    prompts, answers, masks = random_tree(np.random.default_rng(seed))
    layout = SharedLayout(prompts, answers, masks)
    rows_tokens = sum(len(p) + len(a) - 1 for p, a in zip(prompts, answers))
    assert len(layout.input_ids) < rows_tokens
    assert max(map(len, layout.ancestors)) > 1

    weights = torch.randn(len(layout.slots), 2, generator=torch.Generator().manual_seed(seed))
    expected, gradients = weighted(
        by_rows(model := tiny_lm("qwen2", **settings), prompts, answers, masks), weights, model
    )
    # labels come sorted by their source; slots say which of the flat answers each is
    own = label_values(model := tiny_lm("qwen2", **settings), layout, entropy=True)[torch.argsort(layout.slots)]
    found, own_gradients = weighted(own, weights, model)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    largest = max(gradient.abs().max() for gradient in gradients)
    for gradient, one in zip(gradients, own_gradients, strict=True):
        torch.testing.assert_close(one, gradient, rtol=0, atol=float(2e-5 * largest))


# the last token of the first turn, which that turn's own row lacks, is worth no segment of its own to three rows
@pytest.mark.parametrize("least_saved, more", [(1, 0), (8, 1)])
def test_conversations_share_the_turns_that_they_have_in_common(least_saved, more, monkeypatch):
    """A row for each turn of one conversation, and a second conversation that leaves it after the first turn."""
    monkeypatch.setattr(layout_module, "LEAST_SAVED", least_saved)
    rng = np.random.default_rng(0)
    system, *turns = (torch.from_numpy(rng.integers(0, VOCABULARY, length)) for length in (30, 20, 20, 20, 25))
    prompts = [system, torch.cat([system, turns[0]]), torch.cat([system, *turns[:2]]), torch.cat([system, turns[0]])]
    answers = [turns[0], turns[1], turns[2], turns[3]]
    layout = SharedLayout(prompts, answers, [torch.ones(len(answer)) for answer in answers])
    # each turn once; nothing is predicted from the last token of a row that no other goes on from
    assert len(layout.input_ids) == 30 + 20 + 20 + (20 - 1) + (25 - 1) + more
    assert int((layout.slots >= 0).sum()) == sum(map(len, answers))


@pytest.mark.parametrize("at_once", [3 * VOCABULARY, 1 << 20], ids=["chunks", "at once"])
def test_an_entropy_that_is_only_logged_has_no_gradient(at_once):
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(16, VOCABULARY), torch.randn(10, 16, requires_grad=True)
    sources, labels = torch.arange(10), torch.randint(VOCABULARY, (10,))

    def run(**asked):
        return label_log_probs(head, hidden, sources, labels, vocabulary=VOCABULARY, logits_at_once=at_once, **asked)

    logged, trained = run(entropy=True, entropy_gradient=False), run(entropy=True)
    assert torch.equal(logged, trained)
    (alone,) = torch.autograd.grad(run().sum(), hidden)
    (beside,) = torch.autograd.grad(logged.sum(), hidden)
    (both,) = torch.autograd.grad(trained.sum(), hidden)
    torch.testing.assert_close(beside, alone)
    assert (both - alone).abs().max() > 1e-3

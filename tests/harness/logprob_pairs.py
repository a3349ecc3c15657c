"""Pairs with every difficulty of a layout, and the comparison of a backend with `rows`."""

import torch
from tiny_lms import VOCABULARY

from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.logprobs import LOGPROB_BACKENDS


def ids(generator, length):
    return torch.randint(3, VOCABULARY, (length,), generator=generator)


def pair(prompt, chosen, rejected, mask=None):
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "chosen_mask": torch.ones(len(chosen)) if mask is None else mask,
        "rejected_mask": torch.ones(len(rejected)),
        "weight": 1.0,
    }


def hard_pairs():
    """Everything that could go wrong in one micro-batch."""
    g = torch.Generator().manual_seed(1)
    prompt, long = ids(g, 9), ids(g, 40)
    begin, answer = ids(g, 3), ids(g, 8)
    gap = torch.ones(11)
    gap[[0, 4, 5]] = 0  # another's turn between two rounds, and an unlabelled first token
    return [
        pair(prompt, ids(g, 6), ids(g, 4)),
        pair(long, torch.cat([begin, answer]), torch.cat([begin, ids(g, 5)]), gap),  # answers that begin alike
        pair(prompt, ids(g, 7), ids(g, 4)),  # the first prompt again
        pair(long, answer, answer[:5]),  # one answer begins with the whole other
        pair(ids(g, 1), ids(g, 3), ids(g, 1)),  # a prompt of one token, an answer of one
        pair(prompt, answer, answer),  # equal answers
    ]


def log_probs_and_gradients(model, backend, pairs=None, **arguments):
    pairs = hard_pairs() if pairs is None else pairs
    model.zero_grad()
    batch = pair_batch(pairs, mini_pairs=len(pairs), logprob_backend=backend)
    result = LOGPROB_BACKENDS[backend](model, batch, packed=False, device="cpu", **arguments)
    assert result.dtype == torch.float32
    assert torch.equal(result.offsets(), batch["responses"].offsets())
    labelled = result.values() * batch["response_mask"].values()
    weights = torch.linspace(-1, 1, len(labelled))  # any function of the log-probs that treats each differently
    (labelled * weights).sum().backward()
    return labelled.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model, *more, **arguments):
    values, gradients = log_probs_and_gradients(model, "rows", *more)
    shared_values, shared_gradients = log_probs_and_gradients(model, "shared_prompt", *more, **arguments)
    torch.testing.assert_close(shared_values, values, rtol=0, atol=2e-5)
    assert shared_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        gap = (shared_gradients[name] - gradient).abs().max()
        assert gap <= 2e-5 * gradient.abs().max() + 1e-9, name

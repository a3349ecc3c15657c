"""Log-probs of labelled tokens from hidden states: no logit that no label needs, and never all of them at once."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from verl_aiops.models.company import unwrapped

__all__ = [
    "LOGITS_AT_ONCE",
    "changed_after_head",
    "head_gives_log_probs",
    "head_gives_scores",
    "label_log_probs",
    "log_probs_of",
]

# 256 MiB in float32
LOGITS_AT_ONCE = 1 << 26

_LogitChange = Callable[[torch.Tensor], torch.Tensor]

# What transformers' decoders may be set to do to the logits after the head: the value that leaves them as they are, and
# for each type of model what it does with another. Types that are not here may mean something else by the name.
_AFTER_HEAD: dict[str, tuple[float | None, dict[str, Callable[[torch.Tensor, float], torch.Tensor]]]] = {
    "final_logit_softcapping": (
        None,
        dict.fromkeys(("gemma2", "gemma3_text", "nanochat", "vaultgemma"), lambda x, cap: torch.tanh(x / cap) * cap),
    ),
    "logit_scale": (1.0, dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), operator.mul)),
    "logits_scaling": (
        1.0,
        dict.fromkeys(("granite", "granitemoe", "granitemoeshared"), operator.truediv) | {"hyperclovax": operator.mul},
    ),
    "lm_head_multiplier": (1.0, {}),
}


def changed_after_head(config) -> str | None:
    """The setting, as text, by which a model of this transformers configuration changes its logits after the head in a
    way that `head_gives_log_probs` does not know; None where there is no such setting."""
    for name, value, change in _changes(config):
        if change is None:
            return f"{name}={value}"
    return None


def _changes(config) -> Iterator[tuple[str, float, Callable[[torch.Tensor, float], torch.Tensor] | None]]:
    """Settings of a configuration that change logits after the head: name, value, and what the model does with it."""
    for name, (neutral, by_type) in _AFTER_HEAD.items():
        value = getattr(config, name, neutral)
        if value not in (None, neutral):
            yield name, value, by_type.get(getattr(config, "model_type", None))


@contextmanager
def _logits_as_the_head_gives_them(model: torch.nn.Module) -> Iterator[_LogitChange]:
    """Within, the model leaves its logits as they are; yields what it would do to them. For a few models that is done
    to log-probs, which is something else: hence the setting is taken away, and put back."""
    held, steps = [], []
    for name, value, change in list(_changes(model.config)):
        if change is None:
            raise RuntimeError(f"{type(model).__name__}: what {name}={value} does to logits is not known")
        steps.append(functools.partial(_changed, change, value))
        # some models ask the configuration, others keep the number
        held += [(owner, name, getattr(owner, name)) for owner in (model.config, model) if hasattr(owner, name)]
    for owner, name, _ in held:
        setattr(owner, name, _AFTER_HEAD[name][0])
    try:
        yield lambda logits: functools.reduce(lambda x, step: step(x), steps, logits)
    finally:
        for owner, name, value in held:
            setattr(owner, name, value)


def _changed(change, value: float, logits: torch.Tensor) -> torch.Tensor:
    return change(logits, value)


@contextmanager
def head_gives_log_probs(
    model: torch.nn.Module,
    positions: torch.Tensor,
    label_ids: torch.Tensor,
    *,
    label_sources: torch.Tensor | None = None,
    sources_on_host: np.ndarray | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_gradient: bool = True,
) -> Iterator[None]:
    """Within, a forward pass of the model returns log-probs of labels as its ``logits``: (labels,), or with
    ``entropy`` (labels, 2), log-probs and entropies.

    It has to happen inside the model's own forward pass: only there are FSDP's parameters gathered. What the model does
    to its logits after the head is done here, to logits; the caller knows that there is nothing else
    (`changed_after_head`).

    Args:
        model: transformers' model, unwrapped.
        positions: (positions,) that predict a label, counted over the rows of the model's input, one after another.
        label_ids: (labels,) token ids.
        label_sources: (labels,) the entry of ``positions`` that predicts each label, ascending. Default: one label a
            position, in order.
        sources_on_host, temperature, entropy, entropy_gradient: as `label_log_probs` takes them.

    Raises:
        RuntimeError: the forward pass does not use the head, once, or changes logits in a way that is not known.
    """
    if label_sources is None:
        sources_on_host = np.arange(len(label_ids))
        label_sources = torch.arange(len(label_ids), device=label_ids.device)
    head = model.get_output_embeddings()
    before = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return label_log_probs(
            lambda states: changed(before(states).float()),
            hidden.flatten(0, -2)[positions],
            label_sources,
            label_ids,
            vocabulary=head.weight.shape[0],
            sources_on_host=sources_on_host,
            temperature=temperature,
            entropy=entropy,
            entropy_gradient=entropy_gradient,
        )

    hint = " (actor_rollout_ref.model.use_fused_kernels?)"
    with _logits_as_the_head_gives_them(model) as changed, _used_once(model, head, forward, "head", hint):
        yield


@contextmanager
def head_gives_scores(model: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Within, a forward pass of a classifier with one label returns the scores of these positions as its ``logits``,
    float32 (positions,) in any shape.

    transformers' classifiers look for a row's last token by comparing ids with the padding token's, which is wrong
    where padding is a token that ends a turn; here the caller says where it is. As in `head_gives_log_probs`, it has to
    happen inside the model's own forward pass.

    Args:
        model: transformers' classifier, unwrapped, whose head is called ``score``.
        positions: (positions,) counted over the rows of the model's input, one after another: as many as there are
            rows, or any number of a single row.

    Raises:
        RuntimeError: the forward pass does not use the head, once.
    """
    head = unwrapped(model.score)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        # one number an answer: in half precision it would have three digits, and equal ones would be many
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            states, bias = hidden.flatten(0, -2)[positions].float(), head.bias
            values = torch.nn.functional.linear(states, head.weight.float(), None if bias is None else bias.float())
        # whichever token transformers then takes for a row's last
        return values.view(len(hidden), 1, -1).expand(-1, hidden.shape[1], -1)

    with _used_once(model, head, forward, "score head"):
        yield


@contextmanager
def _used_once(
    model: torch.nn.Module,
    head: torch.nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    name: str,
    hint: str = "",
) -> Iterator[None]:
    """Within, a module computes by ``forward``. Raises RuntimeError if the model has not used it exactly once."""
    replaced, calls = vars(head).get("forward"), 0

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return forward(hidden)

    head.forward = counted
    try:
        yield
    finally:
        # `forward` may have been replaced in the instance before, by `cpu_linear` for one
        if replaced is None:
            del head.forward
        else:
            head.forward = replaced
    if calls != 1:
        raise RuntimeError(
            f"the forward pass of {type(model).__name__} used its {name} {calls} times: something has replaced it{hint}"
        )


def label_log_probs(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    label_sources: torch.Tensor,
    label_ids: torch.Tensor,
    *,
    vocabulary: int,
    sources_on_host: np.ndarray | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_gradient: bool = True,
) -> torch.Tensor:
    """Log-softmax of the head's logits at the labels, in float32 whatever the model computes in.

    Positions are taken in chunks of at most ``logits_at_once`` logits. With more than one chunk the backward pass
    computes each chunk's logits again, so that memory never holds those of two.

    Args:
        head: hidden states (positions, size) to logits (positions, vocabulary).
        hidden: (positions, size).
        label_sources: (labels,) position that predicts each label, in ascending order.
        label_ids: (labels,) token ids.
        vocabulary: entries of a row of logits.
        sources_on_host: ``label_sources`` where the GPU need not be waited for to read them.
        logits_at_once: most logits in a chunk; a chunk has one position at least.
        temperature: that logits are divided by.
        entropy: whether the entropy of the distribution that each label is drawn from is wanted too.
        entropy_gradient: whether it is trained on, and not only logged.

    Returns:
        (labels,) float32, nats; with ``entropy`` (labels, 2), log-probs and entropies.
    """
    size = max(1, logits_at_once // vocabulary)
    if len(hidden) <= size:
        return _chunk(head, hidden, label_sources, label_ids, temperature, entropy, entropy_gradient)
    places = label_sources.cpu().numpy() if sources_on_host is None else sources_on_host
    borders = np.searchsorted(places, np.arange(0, len(hidden) + size, size)).tolist()
    parts = []
    for number, (first, last) in enumerate(zip(borders, borders[1:])):
        start = number * size
        if start >= len(hidden):
            break
        parts.append(
            checkpoint(
                _chunk,
                head,
                hidden[start : start + size],
                label_sources[first:last] - start,
                label_ids[first:last],
                temperature,
                entropy,
                entropy_gradient,
                use_reentrant=False,
                # nothing random in it, and keeping the state waits for the GPU
                preserve_rng_state=False,
            )
        )
    return torch.cat(parts)


def log_probs_of(logits: torch.Tensor, label_sources: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
    """(labels,) float32, nats: log-softmax of the logits (positions, vocabulary) at the labels."""
    logits = logits.float()
    # not log_softmax: over a vocabulary of 49,152 its CPU kernel is off by 1e-5 per token, always to the same side
    return logits[label_sources, label_ids] - logits.logsumexp(dim=-1)[label_sources]


def _chunk(head, hidden, label_sources, label_ids, temperature: float, entropy: bool, entropy_gradient: bool):
    logits = head(hidden).float()
    if temperature != 1:
        logits = logits / temperature
    log_probs = log_probs_of(logits, label_sources, label_ids)
    if not entropy:
        return log_probs
    if not entropy_gradient:
        # last, so that the backward pass, which computes a chunk again as far as it needs, does without
        logits = logits.detach()
    entropies = logits.logsumexp(dim=-1) - (torch.softmax(logits, dim=-1) * logits).sum(dim=-1)
    return torch.stack([log_probs, entropies[label_sources]], dim=-1)

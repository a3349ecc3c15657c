"""Which answer of another prompt stands beside a single answer, for the estimate of the KL (KTO, arXiv 2402.01306)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

__all__ = ["other_answers"]

# Prompts looked at for an answer that differs from one's own; where all answers are alike there is none.
_LOOKED_AT = 32


def other_answers(
    prompts: Sequence[Hashable], contents: Sequence[Hashable], prompt_order: Sequence[bytes], order: Sequence[bytes]
) -> list[int]:
    """For each of the answers, the number of one to another prompt, or -1 for all where there is one prompt only.

    Prompts stand in a ring in the order of their digests. An answer gets one of the next prompt, or of the first after
    it that has one with another content: a permutation of prompts without a fixed point that depends on what the data
    are and on nothing else, neither on their order nor on batches.

    Args:
        prompts: of each answer.
        contents: of each answer, without its prompt.
        prompt_order: digest of each answer's prompt.
        order: digest of each answer with its prompt, by which a prompt's answers are ordered.
    """
    of_prompt: dict[Hashable, list[int]] = {}
    ring = sorted(range(len(prompts)), key=lambda at: (prompt_order[at], order[at]))
    for at in ring:
        of_prompt.setdefault(prompts[at], []).append(at)
    others = [-1] * len(prompts)
    circle = list(of_prompt.values())
    if len(circle) < 2:
        return others
    for place, own in enumerate(circle):
        for number, at in enumerate(own):
            others[at] = circle[(place + 1) % len(circle)][0]  # unless one differs
            for step in range(1, min(len(circle), _LOOKED_AT)):
                there = circle[(place + step) % len(circle)]
                turned = (there[(number + turn) % len(there)] for turn in range(len(there)))
                differing = next((other for other in turned if contents[other] != contents[at]), None)
                if differing is not None:
                    others[at] = differing
                    break
    return others

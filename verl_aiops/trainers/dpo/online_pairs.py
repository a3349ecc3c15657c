"""From a step's answers to batches of pairs: plain data, no trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from verl_aiops.losses import Labels
from verl_aiops.rollout.rounds.turns import rounds_of
from verl_aiops.trainers.together import by_prompt, in_blocks

__all__ = [
    "Answer",
    "Plan",
    "agreed",
    "labelled",
    "laid_out",
    "pair_example",
    "plan_batch",
    "prompt_of",
    "reference_answer",
    "self_play_pairs",
    "shuffled",
]


@dataclass(frozen=True)
class Answer:
    """One sampled (or given) answer.

    ``prompt_ids``, ``response_ids``: int64. ``mask``: 1 on the tokens that the model wrote, 0 on what stands between
    rounds. ``rollout_logps``: float32 log-probs under the policy that sampled, or None. ``score`` in the reward's
    units; NaN where there is none. ``extra``: what the agent loop handed on; ``info``: the data's ``extra_info``.
    """

    uid: str
    prompt_ids: torch.Tensor
    response_ids: torch.Tensor
    mask: torch.Tensor
    score: float = math.nan
    rollout_logps: torch.Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Answer:
        """From a row of verl's TransferQueue."""
        scores = row["rm_scores"]
        return cls(
            uid=row["uid"],
            prompt_ids=row["prompts"],
            response_ids=row["responses"],
            mask=row["response_mask"],
            score=float(scores.sum()) if scores is not None else math.nan,
            rollout_logps=row.get("rollout_log_probs"),
            extra=row.get("extra_fields") or {},
            info=row.get("extra_info") or {},
        )

    @property
    def content(self) -> bytes:
        """What the model wrote, to tell identical answers."""
        return self.response_ids[self.mask > 0].numpy().astype(np.int64).tobytes()

    @property
    def length(self) -> int:
        """Tokens that the model wrote."""
        return int((self.mask > 0).sum())

    def ended(self, stops: frozenset[int]) -> bool:
        """Whether the answer ends with an end-of-sequence token."""
        return bool(len(self.response_ids)) and int(self.response_ids[-1]) in stops


def reference_answer(answer: Answer, turns, stops: frozenset[int]) -> Answer:
    """The data's own answer to the prompt of ``answer``, for self-play.

    Args:
        answer: whose row has the answers of all rounds in ``extra_info["answers"]``, and the user's texts between them
            in ``extra_info["rounds"]``.
        turns: a `rollout.turns.TemplateTurns`, which renders the borders.
        stops: ids that end an answer; those of a border are trained, as they are in what the policy samples.

    Raises:
        ValueError: other than one answer more than there are later rounds.
    """
    texts, rounds = list(answer.info.get("answers") or ()), rounds_of(answer.info)
    if len(texts) != len(rounds) + 1:
        raise ValueError(
            f'extra_info["answers"]: expected {len(rounds) + 1} texts, one for each round, found {len(texts)}; '
            "self-play needs the data's own answers (verl-aiops build-rl writes them)"
        )
    ids: list[int] = []
    mask: list[int] = []
    for at, text in enumerate(texts):
        written = turns.tokenizer.encode(text, add_special_tokens=False)
        border = turns.between((rounds[at],)) if at < len(rounds) else turns.closing()
        if at == len(rounds):
            border = border[:1]  # generation ends with the stop token
        ids += [*written, *border]
        mask += [1] * len(written) + [int(at == 0 and token in stops) for at, token in enumerate(border)]
    return Answer(answer.uid, answer.prompt_ids, torch.tensor(ids), torch.tensor(mask))


def pair_example(chosen: Answer, rejected: Answer, *, scored: bool = False) -> dict[str, Any]:
    """A pair as `pairs.pair_batch` takes it; ``scored``: with the gap of its scores, for a loss that asks for it."""
    example: dict[str, Any] = {"weight": 1.0}
    if scored:
        example["margin"] = chosen.score - rejected.score
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        example[f"{side}_prompt_ids"] = answer.prompt_ids
        example[f"{side}_ids"] = answer.response_ids
        example[f"{side}_mask"] = answer.mask
    return example


def labelled(answers: Sequence[Answer], labels: Labels) -> list[tuple[Answer, Answer]]:
    return [(answers[i], answers[j]) for i, j in zip(labels.chosen.tolist(), labels.rejected.tolist())]


def agreed(chosen: Answer, rejected: Answer) -> bool:
    """Whether all members of an ensemble of reward models order a pair so: each has its score among the answer's parts
    (`reward_extra_info`), by a name that begins with ``rm_member_``. True where there are none."""
    parts = [answer.extra.get("reward_extra_info") or {} for answer in (chosen, rejected)]
    names = [name for name in parts[0] | parts[1] if str(name).startswith("rm_member_")]
    return all(float(parts[0].get(name, math.nan)) > float(parts[1].get(name, math.nan)) for name in names)


def self_play_pairs(
    answers: Sequence[Answer], turns, stops: frozenset[int]
) -> tuple[Labels, list[tuple[Answer, Answer]]]:
    """The data's answer against each different one of the policy's; `labels` has the counts alone."""
    references: dict[str, Answer] = {}
    pairs = []
    for answer in answers:
        if answer.uid not in references:
            references[answer.uid] = reference_answer(answer, turns, stops)
        if references[answer.uid].content != answer.content:
            pairs.append((references[answer.uid], answer))
    none = torch.empty(0, dtype=torch.int64)
    identical = len(references) - len({rejected.uid for _, rejected in pairs})
    labels = Labels(none, none, len(references), failed_rows=0, ties=0, identical=identical, single=0)
    return labels, pairs


@dataclass(frozen=True)
class Plan:
    """How a step's pairs are cut: ``order`` holds positions of pairs, mini-batch after mini-batch; where ``counted`` is
    False a pair only fills up its mini-batch of ``mini_pairs``."""

    order: list[int]
    counted: list[bool]
    mini_pairs: int
    micro_pairs: int


def plan_batch(pairs: int, *, mini_pairs: int, ranks: int, micro_pairs: int, dynamic: bool) -> Plan:
    """Cut ``pairs`` into mini-batches of at most ``mini_pairs``, as even as they can be.

    Every mini-batch gets the same number of places, a multiple of the ranks (and, with static micro-batches, of
    ``micro_pairs`` on each). Places without a pair are filled with a copy that does not count: fewer than one round
    over the ranks, except that micro-batches must be full.
    """
    minis = -(-pairs // mini_pairs)
    share = -(-pairs // (minis * ranks))  # pairs of a mini-batch on one rank
    micro = micro_pairs if dynamic else min(micro_pairs, share)
    if not dynamic:
        share = -(-share // micro) * micro
    size = share * ranks
    order: list[int] = []
    counted: list[bool] = []
    for part in np.array_split(np.arange(pairs), minis):
        filler = size - len(part)
        order += [*part.tolist(), *[int(part[0])] * filler]
        counted += [True] * len(part) + [False] * filler
    return Plan(order, counted, size, micro)


def prompt_of(pair: tuple[Answer, Answer]) -> bytes:
    """By which pairs of one prompt are known."""
    return pair[0].prompt_ids.numpy().tobytes()


def shuffled(pairs: Sequence[tuple[Answer, Answer]], *, seed: int, room: int) -> list[int]:
    """A permutation of a step's pairs in which a prompt's are side by side, in one mini-batch of ``room`` pairs as far
    as that holds them. With one pair for each prompt any permutation may come out."""
    groups = by_prompt([prompt_of(pair) for pair in pairs])
    prompts = [number for number in np.random.default_rng([seed]).permutation(len(groups)) for _ in groups[number]]
    order = [at for number in dict.fromkeys(prompts) for at in groups[number]]
    return [order[at] for at in in_blocks(prompts, room)]


def laid_out(
    pairs: Sequence[tuple[Answer, Answer]], order: Sequence[int], plan: Plan
) -> list[tuple[tuple[Answer, Answer], bool]]:
    """A step's pairs as ``plan`` cuts them, each with whether it counts.

    Args:
        pairs: of a step.
        order: a permutation of their positions, which decides who is in which mini-batch.
        plan: for as many pairs.

    Returns:
        mini-batch after mini-batch. Inside of one, pairs of the same prompt stand together: the loss is a sum over the
        mini-batch, so their order is free, and a micro-batch that holds them computes their prompt once.
    """
    placed = [(pairs[order[at]], real) for at, real in zip(plan.order, plan.counted, strict=True)]
    minis = [placed[start : start + plan.mini_pairs] for start in range(0, len(placed), plan.mini_pairs)]
    return [item for mini in minis for item in sorted(mini, key=lambda item: prompt_of(item[0]))]

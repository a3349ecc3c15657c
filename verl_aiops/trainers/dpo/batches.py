"""Examples as the batches that the workers get, in which none is torn apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict

from verl_aiops.trainers.batch import AnswerBatch, nested
from verl_aiops.trainers.dpo.cuts import Cuts, cut_rows, parts_of
from verl_aiops.trainers.dpo.examples import ROWS_PER_PAIR, Row, rows_of

__all__ = ["pair_batch"]


def pair_batch(
    examples: Sequence[dict],
    *,
    mini_pairs: int,
    reference: Sequence[Sequence[np.ndarray]] | None = None,
    counted: Sequence[bool] | None = None,
    behaviour: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
    ranks: int = 1,
    logprob_backend: str = "rows",
    rows_per_example: int = ROWS_PER_PAIR,
    estimates_kl: bool = False,
    scored: bool = False,
    **settings,
) -> TensorDict:
    """Rows for verl's engines, one example's after another's: of pairs chosen, rejected, chosen, rejected, ...

    Args:
        examples: items of :class:`PreferenceDataset`, or pairs made on line, already arranged for the ranks; see
            `examples.rows_of`.
        mini_pairs: examples per optimizer step over all ranks, the denominator of the mean.
        reference: token log-probs of each example's answers; of an example that is filled up, of the others alone.
        counted: False for examples that only fill up the batch. Default: all True.
        behaviour: token log-probs of both answers of each pair under the policy that sampled them.
        ranks: data-parallel size the examples are arranged for.
        logprob_backend: what computes the log-probs, and so which tokens are counted.
        rows_per_example: of every example of the run.
        estimates_kl: whether a loss wants the rows by which the KL is estimated.
        scored: whether it wants the score of each answer's last token, and no log-probs.
        settings: non-tensor entries (micro-batch size and the like).

    Returns:
        the columns of `batch.AnswerBatch`; without ``verdict``, ``rank``, ``score`` and ``margin`` where no example has
        any.
    """
    size, shares = rows_per_example, logprob_backend == "shared_prompt"
    of_examples = [rows_of(example, size, estimates_kl=estimates_kl, scored=scored) for example in examples]
    rows = [row for of_example in of_examples for row in of_example]
    counted = [True] * len(examples) if counted is None else list(counted)
    cuts = cut_rows(
        rows,
        size=size,
        mini_examples=mini_pairs,
        ranks=ranks,
        shares=shares,
        settings=settings,
        idle=any(not row.real or row.estimates_kl for row in rows),
    )
    inputs = _inputs(of_examples, cuts) if shares else [torch.cat([row.prompt, row.answer]) for row in rows]
    numbers: dict[bytes, int] = {}
    minis = _Minis.of(of_examples, mini_pairs, ranks, counted)
    batch = AnswerBatch(
        input_ids=nested(inputs),
        position_ids=nested([torch.arange(len(ids)) for ids in inputs]),
        prompts=nested([row.prompt for row in rows]),
        prompt_lengths=torch.tensor([len(row.prompt) for row in rows]),
        prompt_number=torch.tensor([numbers.setdefault(row.key, len(numbers)) for row in rows]),
        responses=nested([row.answer for row in rows]),
        response_mask=nested([row.mask for row in rows]),
        beats=torch.tensor([[row.beats] for row in rows]),
        pair_weight=torch.tensor([float(example["weight"]) for example in examples]).repeat_interleave(size),
        counted=torch.tensor([float(counted[at // size] and row.real) for at, row in enumerate(rows)]),
        mean_chosen_length=minis.mean_chosen_length.repeat_interleave(size),
        global_pairs=minis.global_pairs.repeat_interleave(size),
        micro_batch=torch.from_numpy(cuts.number) if cuts.planned else None,
    )
    _add_facts(batch, rows, size)
    if batch.verdict is not None:
        batch.global_yes = minis.global_yes.repeat_interleave(size)
        batch.global_no = minis.global_no.repeat_interleave(size)
    if reference is not None:
        known = (values for of_example in reference for values in of_example)
        batch.ref_log_probs = nested([torch.as_tensor(next(known)) if row.real else torch.zeros(1) for row in rows])
    if behaviour is not None:
        batch.behaviour_log_probs = nested([side.float() for pair in behaviour for side in pair])
    return batch.to_tensordict(
        force_group_size=size,
        logprob_backend=logprob_backend,
        shared_tokens_ratio=cuts.seen_ratio,
        torn_prompts=cuts.torn,
        **settings,
    )


def _inputs(of_examples: Sequence[Sequence[Row]], cuts: Cuts) -> list[torch.Tensor]:
    """``input_ids`` where each prompt, and what an example before had too, is computed once in a micro-batch."""
    prompts: set[tuple[int, bytes]] = set()
    answers: set[tuple[int, bytes, bytes]] = set()
    inputs, numbers = [], iter(cuts.together.tolist())
    for rows in of_examples:
        known = []
        for row in rows:
            together = next(numbers)
            prompt, answer = (together, row.key), (together, row.key, row.answer.numpy().tobytes())
            if answer in answers or not row.real:
                # a row of no tokens is none
                inputs.append(row.answer[-1:])
                continue
            inputs.append(row.answer if prompt in prompts else torch.cat([row.prompt, row.answer]))
            prompts.add(prompt)
            known.append(answer)
        answers.update(known)
    return inputs


def _add_facts(batch: AnswerBatch, rows: Sequence[Row], size: int) -> None:
    """The columns of examples that are no pairs, or pairs with scores, where there are any."""
    facts = {name: torch.tensor([getattr(row, name) for row in rows]) for name in ("verdict", "estimates_kl", "rank")}
    facts["margin"] = torch.tensor([row.margin for row in rows])
    for name, column in facts.items():
        if column.any():
            setattr(batch, name, column)
    if batch.rank is not None:
        batch.score = torch.tensor([row.score for row in rows])
        batch.place = torch.tensor([at % size if row.rank else 0 for at, row in enumerate(rows)])


@dataclass
class _Minis:
    """What each example's mini-batch knows as a whole, all (examples,): the mean length of preferred answers, the
    examples that count, and the single answers of each verdict among them."""

    mean_chosen_length: torch.Tensor
    global_pairs: torch.Tensor
    global_yes: torch.Tensor
    global_no: torch.Tensor

    @classmethod
    def of(cls, of_examples: Sequence[Sequence[Row]], mini_pairs: int, ranks: int, counted: Sequence[bool]) -> _Minis:
        """For examples arranged as `pairs.arrange` does."""
        number = len(of_examples)
        minis = cls(torch.ones(number), *(torch.zeros(number) for _ in range(3)))
        for parts in parts_of(number, mini_pairs, ranks):
            mini = parts.reshape(-1).tolist()
            real = [at for at in mini if counted[at]]
            rows = [row for at in real for row in of_examples[at]]
            preferred = [float(row.mask.sum()) for row in rows if row.beats or row.verdict > 0 or row.rank == 1]
            if preferred:
                minis.mean_chosen_length[mini] = float(np.mean(preferred))
            minis.global_pairs[mini] = float(len(real))
            minis.global_yes[mini] = float(sum(row.verdict > 0 for row in rows))
            minis.global_no[mini] = float(sum(row.verdict < 0 for row in rows))
        return minis

"""What travels from the trainer to the workers: answers by rows, and which of them are preferred to which.

A batch crosses into verl and back, and is cut three times on the way, always by rows:

1. The trainer lays rows out (`dpo.batches.pair_batch`), each data-parallel rank's part after the other's (`arrange`),
   and verl sends each rank its part: equal, contiguous, hence whole examples.
2. verl cuts a part into mini-batches, one optimizer step each (``mini_batch_size`` of all ranks together, in order).
3. The engine cuts a mini-batch into micro-batches, as ``micro_batch`` says, which the trainer has planned; without it
   verl cuts by the number of examples, in their order. Both keep ``force_group_size`` rows together: an example.

So a column has an entry for each row, whatever a mini-batch knows as a whole stands in each of its rows, and what one
row says of another is how far away it stands, which stays right while both are cut out together. In a micro-batch the
log-prob backend turns prompts and answers into ``answer_log_probs``; `worker.objective` turns those and the columns of
the loss into the micro-batch's share of the mini-batch's loss. Only metrics come back, or log-probs where a reference
was scored.

An *example* is what one term of the loss is made of: a pair (two rows), a single answer with a yes or a no, or a list
of ranked answers. All examples of a run have the same number of rows (`dpo.examples.rows_of`). What GRPO knows of an
answer (``old_log_probs``, ``advantages``) has the shape of ``response_mask``: one more field here, and nothing at the
cuts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from tensordict import TensorDict

from verl_aiops.seam.engine import tensordict_utils as tu

__all__ = ["ENTROPY_IS_LOGGED", "ROWS_LOG_PROBS", "AnswerBatch", "nested"]

# entry of a batch to be updated on, and the metric that it asks for: log-probs of the answers, an array a row, in order
ROWS_LOG_PROBS = "rows_log_probs"
# entry of a batch to be updated on: nothing is trained on the entropies that it asks for
ENTROPY_IS_LOGGED = "entropy_is_logged"


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    """(rows, each its own length) of 1-D tensors."""
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _column(*, loss: bool = False) -> Any:
    """Args: loss: what the objective needs as a tensor on the device; backends take what they need by themselves."""
    return field(default=None, metadata={"loss": loss})


@dataclass(kw_only=True)
class AnswerBatch:
    """The columns of a batch; None for those that it has not. *Nested* is jagged, one entry for each token of a row.

    Attributes:
        input_ids: nested int64; prompt and answer. What verl counts as tokens: under the backend `shared_prompt` the
            answer alone, where a row before it in its micro-batch has the same prompt, which goes through the model
            once; and the last token alone, where one before it is equal.
        position_ids: nested int64, as long as ``input_ids``, from 0.
        prompts: nested int64.
        prompt_lengths: (rows,) int64.
        prompt_number: (rows,) int64; rows of a batch with the same number have the same prompt.
        responses: nested int64; the answers.
        response_mask: nested float32, as ``responses``; 1 where the model wrote a token that is trained on, 0 on what
            stands between the rounds.
        beats: (rows, most) int64; how many rows further down (or up, below 0) an answer stands that this one is
            preferred to; 0 where there is none. In pairs 1 for the chosen answer, as its rejected one follows it.
        pair_weight: (rows,) float32; factor of the example's loss, for each of its rows.
        counted: (rows,) float32; 0 for rows that only fill up a mini-batch or an example, else 1.
        mean_chosen_length: (rows,) float32; trained tokens of a preferred answer (of pairs the chosen one, of single
            answers those with a yes, of lists the best), mean over the row's mini-batch; 1 where it has none.
        global_pairs: (rows,) float32; examples that count in the row's mini-batch, over all ranks.
        global_yes: (rows,) float32; single answers with a yes among them.
        global_no: (rows,) float32; single answers with a no among them.
        micro_batch: (rows,) int64; number of the row's micro-batch within its mini-batch, on each rank from 0 on, and
            as many on one rank as on another.
        verdict: (rows,) float32; of single answers 1 for a yes and -1 for a no, 0 of all others.
        estimates_kl: (rows,) float32; 1 where the row is an answer to another prompt, by which the KL is estimated.
        rank: (rows,) float32; in a list, 1 for the best answer; 0 outside of lists.
        place: (rows,) int64; in a list, how many of its rows stand before this one; 0 outside of lists.
        score: (rows,) float32; of answers in lists, nan where there is none.
        margin: (rows,) float32; the gap of a pair's scores, the same for both of its rows; 0 where it is not known.
        kl: (rows,) float32; nats, the estimate of the policy's KL for the row's mini-batch, which the engine puts in.
        shift: (rows,) float32; the running mean of rewards.
        ref_log_probs: nested float32, as ``responses``; nats, under the reference.
        behaviour_log_probs: likewise, under the policy that sampled the answers.
    """

    input_ids: torch.Tensor | None = _column()
    position_ids: torch.Tensor | None = _column()
    prompts: torch.Tensor | None = _column()
    prompt_lengths: torch.Tensor | None = _column()
    prompt_number: torch.Tensor | None = _column()
    responses: torch.Tensor | None = _column()
    response_mask: torch.Tensor | None = _column(loss=True)
    beats: torch.Tensor | None = _column()
    pair_weight: torch.Tensor | None = _column(loss=True)
    counted: torch.Tensor | None = _column()
    mean_chosen_length: torch.Tensor | None = _column()
    global_pairs: torch.Tensor | None = _column()
    global_yes: torch.Tensor | None = _column()
    global_no: torch.Tensor | None = _column()
    micro_batch: torch.Tensor | None = _column()
    verdict: torch.Tensor | None = _column(loss=True)
    estimates_kl: torch.Tensor | None = _column()
    rank: torch.Tensor | None = _column(loss=True)
    place: torch.Tensor | None = _column()
    score: torch.Tensor | None = _column(loss=True)
    margin: torch.Tensor | None = _column(loss=True)
    kl: torch.Tensor | None = _column(loss=True)
    shift: torch.Tensor | None = _column(loss=True)
    ref_log_probs: torch.Tensor | None = _column(loss=True)
    behaviour_log_probs: torch.Tensor | None = _column(loss=True)

    @classmethod
    def of(cls, data: TensorDict) -> AnswerBatch:
        """The columns of verl's kind of batch, by name; nothing is copied."""
        return cls(**{f.name: data.get(f.name, None) for f in fields(cls)})

    def columns(self, *, loss: bool = False) -> dict[str, torch.Tensor]:
        """Those that are there; with ``loss`` those that the objective needs on the device."""
        return {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None and (f.metadata["loss"] or not loss)
        }

    def to_tensordict(self, **settings: Any) -> TensorDict:
        """For verl's engines, with what they read beside the columns.

        Args:
            settings: entries that are no tensors. verl's engine reads ``use_dynamic_bsz``,
                ``micro_batch_size_per_gpu`` (examples) or ``max_token_len_per_gpu``, and ``force_group_size``; ours
                ``logprob_backend``; an update also ``mini_batch_size`` (rows of all ranks), ``epochs``, ``seed`` and
                ``dataloader_kwargs``, and where it is sent ahead ``step`` and ``follows``.
        """
        # under the name by which verl's engine counts the tokens of a loss
        data = tu.get_tensordict({**self.columns(), "loss_mask": self.response_mask})
        tu.assign_non_tensor(data, temperature=1.0, **settings)
        return data

"""What travels from the trainer to the workers: answers by rows, and which of them are preferred to which.

A batch crosses into verl and back, and is cut three times on the way, always by rows:

1. The trainer lays rows out (`dpo.pairs.pair_batch`), each data-parallel rank's part after the other's (`arrange`), and
   verl sends each rank its part: equal, contiguous, hence whole pairs.
2. verl cuts a part into mini-batches, one optimizer step each (``mini_batch_size`` of all ranks together, in order).
3. The engine cuts a mini-batch into micro-batches by their number of pairs or their tokens. It may reorder what it
   cuts, but keeps ``force_group_size`` rows together, which is a pair.

So a column has an entry for each row, whatever a mini-batch knows as a whole stands in each of its rows, and what one
row says of another is how far away it stands, which stays right while both are cut out together. In a micro-batch the
log-prob backend turns prompts and answers into ``answer_log_probs``; `worker.objective` turns those and the columns of
the loss into the micro-batch's share of the mini-batch's loss. Only metrics come back, or log-probs where a reference
was scored.

The same rows serve more than pairs. Groups of ranked answers are several rows that stay together, with as many entries
in ``beats`` as an answer has worse ones beside it; single answers have none. What GRPO knows of an answer
(``old_log_probs``, ``advantages``) has the shape of ``response_mask``: one more field here, and nothing at the cuts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

__all__ = ["ROWS_LOG_PROBS", "ROWS_PER_PAIR", "AnswerBatch", "nested"]

# force_group_size of verl's micro-batching: rows that always stay together
ROWS_PER_PAIR = 2

# entry of a batch to be updated on, and the metric that it asks for: log-probs of the answers, an array a row, in order
ROWS_LOG_PROBS = "rows_log_probs"


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
            answer alone, where the row before has the same prompt, which goes through the model once.
        position_ids: nested int64, as long as ``input_ids``, from 0.
        prompts: nested int64.
        prompt_lengths: (rows,) int64.
        prompt_number: (rows,) int64; rows of a batch with the same number have the same prompt.
        responses: nested int64; the answers.
        response_mask: nested float32, as ``responses``; 1 where the model wrote a token that is trained on, 0 on what
            stands between the rounds.
        beats: (rows, most) int64; how many rows further down (or up, below 0) an answer stands that this one is
            preferred to; 0 where there is none. In pairs 1 for the chosen answer, as its rejected one follows it.
        pair_weight: (rows,) float32; factor of the pair's loss, for both of its rows.
        counted: (rows,) float32; 0 for rows that only fill up a mini-batch, else 1.
        mean_chosen_length: (rows,) float32; trained tokens of a chosen answer, mean over the row's mini-batch.
        global_pairs: (rows,) float32; pairs that count in the row's mini-batch, over all ranks.
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
                ``micro_batch_size_per_gpu`` (pairs) or ``max_token_len_per_gpu``, and ``force_group_size``; ours
                ``logprob_backend``; an update also ``mini_batch_size`` (rows of all ranks), ``epochs``, ``seed`` and
                ``dataloader_kwargs``, and where it is sent ahead ``step`` and ``follows``.
        """
        # under the name by which verl's engine counts the tokens of a loss
        data = tu.get_tensordict({**self.columns(), "loss_mask": self.response_mask})
        tu.assign_non_tensor(data, temperature=1.0, **settings)
        return data

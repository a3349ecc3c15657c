"""How the scores of the answers in a micro-batch are computed: the log-prob backends' layouts, with a score head.

The score of an answer is what the head says of the last token of its conversation, in float32 whatever the model
computes in; what a token is trained on comes after it (`dpo.examples.rows_of`), as in the layouts of log-probs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict

from verl_aiops.models.company import company_of, depends, forget_lengths, is_compared, unwrapped
from verl_aiops.trainers.batch import AnswerBatch
from verl_aiops.trainers.logprobs.head import head_gives_scores
from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.rows import largest_of_all
from verl_aiops.trainers.logprobs.shared_prompt import label_scores
from verl_aiops.trainers.logprobs.switch import with_own_attention

__all__ = ["SCORE_BACKENDS", "row_scores", "shared_scores"]


def shared_scores(module: torch.nn.Module, batch: TensorDict, *, packed: bool, device) -> torch.Tensor:
    """All rows of a micro-batch as one sequence in which what they begin with in common stands once.

    Args:
        module: the (FSDP-wrapped) classifier, of a kind that `support.why_not_shared` has nothing against.
        batch: nested ``prompts``, ``responses`` and ``response_mask``.
        packed: without a meaning here, there is never padding.
        device: where the model computes.

    Returns:
        nested (rows, 1), float32; 0 of a row that only fills up.
    """
    answers = AnswerBatch.of(batch)
    columns = [column.cpu().unbind() for column in (answers.prompts, answers.responses, answers.response_mask)]
    layout = SharedLayout(*columns).to(device)
    ends = (answers.responses.offsets()[1:] - 1).to(device, non_blocking=True)
    values = label_scores(module, layout)
    flat = values.new_zeros(layout.answer_tokens).index_copy(0, layout.slots, values)
    return _one_a_row(flat[ends])


def row_scores(module: torch.nn.Module, batch: TensorDict, *, packed: bool, device) -> torch.Tensor:
    """Each conversation as a row of its own, equal ones once; any classifier of transformers with a head ``score``.

    Args, result: as `shared_scores`. ``packed``: all rows in one sequence without padding (needs attention that
    separates them by position ids), where the model allows it.
    """
    answers = AnswerBatch.of(batch)
    prompts, responses = (column.cpu().unbind() for column in (answers.prompts, answers.responses))
    # the last token stands for the score
    rows = [torch.cat([prompt, answer])[:-1] for prompt, answer in zip(prompts, responses, strict=True)]
    first: dict[bytes, int] = {}
    places = [first.setdefault(row.numpy().tobytes(), len(first)) for row in rows]
    different = [torch.frombuffer(bytearray(name), dtype=torch.int64) for name in first]
    with_own_attention(module)
    return _one_a_row(_different(module, different, packed, device)[torch.tensor(places, device=device)])


def _different(module: torch.nn.Module, rows: list[torch.Tensor], packed: bool, device) -> torch.Tensor:
    company = company_of(module)
    if company.together is None:
        company.together = is_compared(unwrapped(module)) or not _depends(module, device)
    packed = packed and not company.recurrent and is_compared(unwrapped(module))
    groups = company.groups([len(row) for row in rows])
    # several workers of a sharded model go through it equally often
    passes = len(groups) if company.limit is None and company.together else largest_of_all(len(groups), device)
    parts: list[torch.Tensor] = []
    for number in range(passes):
        if company.each_length:
            forget_lengths(module)
        group = groups[min(number, len(groups) - 1)]
        values = _forward(module, [rows[at] for at in group], packed, device)
        parts.append(values if number < len(groups) else values[:1] * 0)
    order = torch.tensor([at for group in groups for at in group], device=device)
    together = torch.cat(parts[: len(groups)])
    idle = sum((part.sum() for part in parts[len(groups) :]), together.new_zeros(()))
    return torch.empty_like(together).index_copy(0, order, together) + idle


def _forward(module: torch.nn.Module, rows: list[torch.Tensor], packed: bool, device) -> torch.Tensor:
    """(rows,) in one pass."""
    lengths = torch.tensor([len(row) for row in rows])
    if packed:
        ends = lengths.cumsum(0) - 1
        arguments = {
            "input_ids": torch.cat(rows).unsqueeze(0),
            "position_ids": torch.cat([torch.arange(len(row)) for row in rows]).unsqueeze(0),
        }
    else:
        width = int(lengths.max())
        ends = torch.arange(len(rows)) * width + lengths - 1
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        arguments = {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}
    arguments = {name: value.to(device, non_blocking=True) for name, value in arguments.items()}
    with head_gives_scores(unwrapped(module), ends.to(device, non_blocking=True)):
        return module(**arguments, use_cache=False).logits.flatten()


def _depends(module: torch.nn.Module, device) -> bool:
    """Whether any worker finds that a row's score is another beside a longer row."""
    model = unwrapped(module)
    most = min(model.config.get_text_config().vocab_size, 1000)
    short, long = (torch.arange(length) % most for length in (7, 23))
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            found = depends(
                f"reward models of type {model.config.model_type!r}",
                lambda: _forward(module, [short], False, device),
                lambda: _forward(module, [short, long], False, device)[:1],
                next(model.parameters()).dtype,
            )
    finally:
        module.train(training)
    return bool(largest_of_all(int(found), device))


def _one_a_row(values: torch.Tensor) -> torch.Tensor:
    """(rows,) as verl's engine takes what a model gives back."""
    return torch.nested.nested_tensor_from_jagged(values, torch.arange(len(values) + 1, device=values.device))


SCORE_BACKENDS: dict[str, Callable[..., torch.Tensor]] = {"rows": row_scores, "shared_prompt": shared_scores}

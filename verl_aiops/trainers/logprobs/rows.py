"""The log-prob backend `rows`: each answer is a row with its prompt."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import torch
from tensordict import TensorDict

from verl_aiops.models.company import (
    PACKED_IF_APART,
    Company,
    company_of,
    depends,
    forget_lengths,
    is_compared,
    unwrapped,
)
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.trainers.batch import nested
from verl_aiops.trainers.logprobs.head import changed_after_head, head_gives_log_probs, log_probs_of
from verl_aiops.trainers.logprobs.switch import with_own_attention
from verl_aiops.verl_patches.vision import only_text

__all__ = ["largest_of_all", "rows_answer_log_probs"]


def _takes_logits_to_keep(module: torch.nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(unwrapped(module).forward).parameters


def _positions(module: torch.nn.Module, positions: torch.Tensor) -> torch.Tensor:
    """As the model's forward pass wants them: (rows, columns), or where it tells text, time, height and width apart
    (4, rows, columns), all the same for text."""
    config = unwrapped(module).config
    rotary = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if getattr(config, "vision_config", None) is not None and "mrope_section" in rotary:
        return positions.unsqueeze(0).expand(4, -1, -1)
    return positions


def _labelled_positions(
    prompt_lengths: torch.Tensor, answer_lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of every position that predicts an answer token, flat, answer after answer."""
    rows = torch.repeat_interleave(torch.arange(len(answer_lengths), device=answer_lengths.device), answer_lengths)
    first = torch.cumsum(answer_lengths, 0) - answer_lengths
    within = torch.arange(len(rows), device=rows.device) - first[rows]
    return rows, prompt_lengths[rows] - 1 + within


def rows_answer_log_probs(
    module: torch.nn.Module, batch: TensorDict, *, packed: bool, device: torch.device | str
) -> torch.Tensor:
    """Each prompt and answer as a row of its own, equal ones once; any Hugging Face causal language model.

    The log-probs are taken in float32 whatever dtype the model computes in: DPO compares sums over whole answers, and
    bfloat16 log-probs lose three digits of them. In decoders that were compared (`models.company.COMPARED_MODELS`) the
    head computes where an answer token is predicted and nowhere else, a part at a time (`head.py`), unless they are set
    to change their logits after it. Others are asked for the logits of the columns that have a label in any row.

    Args:
        module: the (FSDP-wrapped) model.
        batch: nested ``input_ids``, ``position_ids`` and ``responses``, plus ``prompt_lengths`` (rows,).
        packed: all rows in one sequence without padding (needs attention that separates them by position ids), where
            the model allows it; where it does not, rows are padded, or go through the model in several passes.
        device: where the model computes.

    Returns:
        nested (rows, answer length), float32.
    """
    with_own_attention(module)
    batch = batch.select("input_ids", "position_ids", "responses", "prompt_lengths")
    first = _first_of_equal(batch)
    if len(set(first)) == len(first):
        return _different_rows(module, batch, packed, device)
    kept = sorted(set(first))
    of_kept = _different_rows(module, tu.index_select_tensor_dict(batch, kept), packed, device)
    places = torch.arange(len(of_kept.values()), device=of_kept.device)
    places = torch.nested.nested_tensor_from_jagged(places, of_kept.offsets()).unbind()
    of_row = {row: place for row, place in zip(kept, places, strict=True)}
    values = of_kept.values()[torch.cat([of_row[row] for row in first])]
    return torch.nested.nested_tensor_from_jagged(values, batch["responses"].offsets().to(values.device))


def _first_of_equal(batch: TensorDict) -> list[int]:
    """For each row the first one that has its prompt and its answer: pairs of a group have answers in common."""
    rows, lengths = batch["input_ids"].cpu().unbind(), batch["prompt_lengths"].tolist()
    first: dict[tuple[bytes, int], int] = {}
    return [
        first.setdefault((row.numpy().tobytes(), length), at) for at, (row, length) in enumerate(zip(rows, lengths))
    ]


def _different_rows(module: torch.nn.Module, batch: TensorDict, packed: bool, device) -> torch.Tensor:
    """`rows_answer_log_probs` of rows of which none are equal."""
    company = _settled(module, packed, device)
    packed = packed and company.packed is True
    groups = None
    if company.limit is not None or company.together is False:
        groups = company.groups(batch["input_ids"].offsets().diff().tolist())
        if company.each_length:
            forget_lengths(module)
    if groups is not None and (len(groups) > 1 or _several_workers()):
        log_probs = _group_by_group(module, batch, groups, packed, device, forget=company.each_length)
    else:
        log_probs = _log_probs(module, batch, packed, device)
    return torch.nested.nested_tensor_from_jagged(log_probs, batch["responses"].offsets().to(log_probs.device))


@only_text()
def _log_probs(module: torch.nn.Module, batch: TensorDict, packed: bool, device) -> torch.Tensor:
    """One forward pass; (answer tokens,), answer after answer."""
    batch = batch.to(device)
    input_ids, labels = batch["input_ids"], batch["responses"].values()
    rows, columns = _labelled_positions(batch["prompt_lengths"], batch["responses"].offsets().diff())
    if packed:
        starts = input_ids.offsets()[rows]
        arguments = {
            "input_ids": input_ids.values().unsqueeze(0),
            "attention_mask": None,
            "position_ids": _positions(module, batch["position_ids"].values().unsqueeze(0)),
        }
    else:
        lengths = input_ids.offsets().diff()
        width = int(lengths.max())
        starts = rows * width
        mask = torch.arange(width, device=lengths.device).unsqueeze(0) < lengths.unsqueeze(1)
        shape = (len(lengths), width)
        arguments = {
            "input_ids": torch.nested.to_padded_tensor(input_ids, padding=0, output_size=shape),
            "attention_mask": mask.long(),
            "position_ids": _positions(
                module, torch.nested.to_padded_tensor(batch["position_ids"], padding=0, output_size=shape)
            ),
        }
    model = unwrapped(module)
    if is_compared(model) and changed_after_head(model.config) is None:
        with head_gives_log_probs(model, starts + columns, labels):
            return module(**arguments, use_cache=False).logits
    logits = _logits(module, arguments, starts, columns)
    return log_probs_of(logits, torch.arange(len(labels), device=labels.device), labels)


def _logits(module: torch.nn.Module, arguments: dict, starts: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(labels, vocabulary) of a model of which nothing is known but that it returns logits for the positions that
    ``logits_to_keep`` names, or for all where it has no such argument.

    Args:
        starts: (labels,) where the label's row begins, over the rows one after another.
        columns: (labels,) the position in it that predicts the label.
    """
    if not _takes_logits_to_keep(module):
        return module(**arguments, use_cache=False).logits.flatten(0, 1)[starts + columns]
    rows, width = arguments["input_ids"].shape
    if rows == 1:
        return module(**arguments, use_cache=False, logits_to_keep=starts + columns).logits.squeeze(0)
    # one stretch of columns serves every row of the micro-batch
    low, high = int(columns.min()), int(columns.max()) + 1
    wanted = torch.arange(low, high, device=columns.device)
    return module(**arguments, use_cache=False, logits_to_keep=wanted).logits[starts // width, columns - low]


# --- models whose rows depend on their company ------------------------------------------------------------------------


def _several_workers() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def largest_of_all(number: int, device) -> int:
    """Of all workers, which must go through a sharded model equally often."""
    if not _several_workers():
        return number
    held = torch.tensor(number, device=device)
    torch.distributed.all_reduce(held, op=torch.distributed.ReduceOp.MAX)
    return int(held)


def _group_by_group(module, batch: TensorDict, groups: list[list[int]], packed: bool, device, forget: bool):
    parts: dict[int, torch.Tensor] = {}
    columns = {name: batch[name].unbind() for name in ("input_ids", "position_ids", "responses")}
    idle = None
    for number in range(largest_of_all(len(groups), device)):
        rows = groups[min(number, len(groups) - 1)]
        if forget:
            forget_lengths(module)
        values = _log_probs(module, _batch_of(columns, batch["prompt_lengths"], rows), packed, device)
        if number < len(groups):
            parts.update(zip(rows, values.split([len(columns["responses"][row]) for row in rows])))
        else:
            # another worker has more groups
            idle = 0 * values.sum() + (0 if idle is None else idle)
    together = torch.cat([parts[row] for row in range(len(parts))])
    return together if idle is None else together + idle


def _batch_of(columns: dict, prompt_lengths: torch.Tensor, rows: list[int]) -> TensorDict:
    picked = {name: nested([values[row] for row in rows]) for name, values in columns.items()}
    return TensorDict({**picked, "prompt_lengths": prompt_lengths[rows]}, batch_size=[len(rows)])


def _settled(module: torch.nn.Module, packed: bool, device) -> Company:
    """What the model allows; a kind that no test has compared is tried on two rows first."""
    company = company_of(module)
    model = unwrapped(module)
    if company.together is None:
        if is_compared(model):
            company.together = True
            if model.config.model_type not in PACKED_IF_APART:
                company.packed = not company.recurrent
        else:
            with _evaluating(module):
                _try(module, model, company, packed, device)
    if packed and company.packed is None:
        with _evaluating(module):
            _try_packed(module, model, company, device)
    return company


@contextmanager
def _evaluating(module: torch.nn.Module):
    """Without dropout and gradients."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def _rows_of(*rows: torch.Tensor) -> TensorDict:
    columns = {
        "input_ids": list(rows),
        "position_ids": [torch.arange(len(row)) for row in rows],
        "responses": [row[1:] for row in rows],
    }
    return _batch_of(columns, torch.ones(len(rows), dtype=torch.long), list(range(len(rows))))


def _tokens(model: torch.nn.Module, number: int, seed: int) -> torch.Tensor:
    most = model.config.get_text_config().vocab_size
    return torch.randint(min(3, most - 1), most, (number,), generator=torch.Generator().manual_seed(seed))


def _computes_in(model: torch.nn.Module, device) -> torch.dtype:
    kind = torch.device(device).type if not isinstance(device, int) else "cuda"
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return next(model.parameters()).dtype


def _try(module, model, company: Company, packed: bool, device) -> None:
    short, long = _tokens(model, 12, 1), _tokens(model, 40, 2)
    name = f"models of type {model.config.model_type!r}"
    different = depends(
        name,
        lambda: _log_probs(module, _rows_of(short), False, device),
        lambda: _log_probs(module, _rows_of(short, long), False, device)[: len(short) - 1],
        _computes_in(model, device),
    )
    company.together = not largest_of_all(int(different), device)
    if not company.together:
        company.packed = False
    elif packed and company.packed is None:
        _try_packed(module, model, company, device)


def _try_packed(module, model, company: Company, device) -> None:
    row, before, others = _tokens(model, 12, 1), _tokens(model, 40, 2), _tokens(model, 40, 3)
    different = depends(
        f"models of type {model.config.model_type!r}, packed",
        lambda: _log_probs(module, _rows_of(before, row), True, device)[len(before) - 1 :],
        lambda: _log_probs(module, _rows_of(others, row), True, device)[len(before) - 1 :],
        # the same shapes: nothing rounds otherwise
        torch.float32,
    ) or depends(
        f"models of type {model.config.model_type!r}, packed",
        lambda: _log_probs(module, _rows_of(row), False, device),
        lambda: _log_probs(module, _rows_of(before, row), True, device)[len(before) - 1 :],
        _computes_in(model, device),
    )
    company.packed = not largest_of_all(int(different), device)

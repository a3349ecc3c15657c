"""The log-prob backend `shared_prompt`: the prompt of a pair (or of n answers) goes through the model once.

With N parameters in the body of the model, H in its head, a prompt of P and answers of a and b tokens, a training step
on two rows costs 6 N (2 P + a + b) + 6 H (a + b) FLOPs per pair; this one 6 N (P + a + b) + 6 H (a + b), and gives the
same result.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict

from verl_aiops.models.company import company_of, forget_lengths
from verl_aiops.trainers.batch import AnswerBatch, nested
from verl_aiops.trainers.logprobs.head import head_gives_log_probs, head_gives_scores
from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.router import RouterBalance
from verl_aiops.trainers.logprobs.rows import rows_answer_log_probs
from verl_aiops.trainers.logprobs.sequence_parallel import Split
from verl_aiops.trainers.logprobs.switch import with_shared_attention

__all__ = ["label_scores", "label_values", "shared_answer_log_probs", "state_values"]


def shared_answer_log_probs(
    module: torch.nn.Module,
    batch: TensorDict,
    *,
    packed: bool,
    device: torch.device | str,
    router: RouterBalance | None = None,
) -> torch.Tensor:
    """All rows of a micro-batch as one sequence in which rows with one prompt share it.

    Args:
        module: the (FSDP-wrapped) model, of a kind that `support.why_not_shared` has nothing against.
        batch: nested ``prompts``, ``responses`` and ``response_mask``.
        packed: without a meaning here, there is never padding.
        device: where the model computes.
        router: gets the routers' loss of the rows that count.

    Returns:
        nested (rows, answer length), float32; 0 where ``response_mask`` is 0.
    """
    answers = AnswerBatch.of(batch)
    # on the host: which rows share what is decided by their tokens
    columns = [column.cpu().unbind() for column in (answers.prompts, answers.responses, answers.response_mask)]
    company = company_of(module)
    if company.limit is not None:
        if max(len(prompt) + len(answer) for prompt, answer in zip(*columns[:2])) > company.limit:
            return _by_rows(module, columns, company.limit, device)
        if company.each_length:
            forget_lengths(module)
    # whatever goes to the GPU goes before the forward pass: afterwards a copy waits for it
    layout = SharedLayout(*columns, row_weights=None if router is None else answers.counted.tolist()).to(device)
    offsets = answers.responses.offsets().to(device, non_blocking=True)
    values = label_values(module, layout, router=router)
    flat = values.new_zeros(layout.answer_tokens).index_copy(0, layout.slots, values)
    return torch.nested.nested_tensor_from_jagged(flat, offsets)


def label_values(
    module: torch.nn.Module,
    layout: SharedLayout,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_gradient: bool = True,
    router: RouterBalance | None = None,
) -> torch.Tensor:
    """What the model says of a layout's labels.

    Args:
        module: the (FSDP-wrapped) model, on the layout's device.
        layout: of all rows of a micro-batch.
        temperature: that logits are divided by.
        entropy: whether entropies are wanted too.
        entropy_gradient: whether they are trained on, and not only logged.
        router: gets the routers' loss of the layout's rows; not where workers have the sequence together.

    Returns:
        (labels,) log-probs, or with ``entropy`` (labels, 2) log-probs and entropies; float32, nats.
    """
    settings = {"temperature": temperature, "entropy": entropy, "entropy_gradient": entropy_gradient}
    model, split = with_shared_attention(module), _split(layout)
    if split is None:
        with head_gives_log_probs(
            model,
            layout.sources,
            layout.label_ids,
            # answers that begin alike have several labels at one position
            label_sources=layout.label_sources,
            sources_on_host=layout.label_sources_on_host,
            **settings,
        ):
            if router is None:
                return module(**_inputs(layout)).logits
            output = module(**_inputs(layout), **router.arguments)
        router.take(model, output, layout.token_weights)
        return output.logits
    if router is not None:
        raise NotImplementedError("the routers' loss is not computed over several workers' parts of a sequence")
    with head_gives_log_probs(
        model,
        layout.sources[split.sources] - split.first,
        layout.label_ids[split.labels],
        label_sources=layout.label_sources[split.labels] - split.sources.start,
        sources_on_host=layout.label_sources_on_host[split.labels] - split.sources.start,
        **settings,
    ):
        values = module(**_inputs(layout)).logits
    return split.everywhere(values, split.labels, len(layout.label_ids))


def state_values(module: torch.nn.Module, layout: SharedLayout) -> torch.Tensor:
    """(labels,) float32: what a critic with a token head says of the state that each label is drawn in."""
    with_shared_attention(module)
    split = _split(layout)
    values = module(**_inputs(layout)).logits.squeeze(0).squeeze(-1)
    if split is None:
        return values[layout.sources[layout.label_sources]].float()
    values = values[layout.sources[split.sources] - split.first].float()
    return split.everywhere(values, split.sources, len(layout.sources))[layout.label_sources]


def label_scores(module: torch.nn.Module, layout: SharedLayout) -> torch.Tensor:
    """(labels,) float32: what a classifier with one label says of the token before each label. Not over several workers
    (`preflight.classifier` refuses that)."""
    with head_gives_scores(with_shared_attention(module), layout.sources):
        return module(**_inputs(layout)).logits.flatten()[layout.label_sources]


def _split(layout: SharedLayout) -> Split | None:
    """This worker's part of the sequence, which the layout knows from then on."""
    layout.split = Split.of(layout.sources_on_host, layout.label_sources_on_host, len(layout.input_ids))
    return layout.split


def _inputs(layout: SharedLayout) -> dict:
    columns = layout.input_ids, layout.position_ids
    if layout.split is not None:
        columns = [layout.split.stretch(column) for column in columns]
    input_ids, position_ids = (column.unsqueeze(0) for column in columns)
    return {
        "input_ids": input_ids,
        "attention_mask": None,
        "position_ids": position_ids,
        "use_cache": False,
        "shared_layout": layout,
    }


def _by_rows(module: torch.nn.Module, columns: list, limit: int, device) -> torch.Tensor:
    """`support.why_not_shared` refuses such runs; who calls this backend directly gets what each row is alone."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise RuntimeError(
            f"a row of more than {limit} tokens has a rotary embedding of its own: set logprob_backend=rows"
        )
    prompts, answers, masks = columns
    ids = [torch.cat(row) for row in zip(prompts, answers)]
    columns = AnswerBatch(
        input_ids=nested(ids),
        position_ids=nested([torch.arange(len(row)) for row in ids]),
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        responses=nested(list(answers)),
    ).columns()
    batch = TensorDict(columns, batch_size=[len(ids)])
    log_probs = rows_answer_log_probs(module, batch, packed=False, device=device)
    labelled = torch.cat([mask > 0 for mask in masks]).to(log_probs.device)
    return torch.nested.nested_tensor_from_jagged(log_probs.values() * labelled, log_probs.offsets())

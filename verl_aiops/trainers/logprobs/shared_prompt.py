"""The log-prob backend `shared_prompt`: the prompt of a pair (or of n answers) goes through the model once.

With N parameters in the body of the model, H in its head, a prompt of P and answers of a and b tokens, a training step
on two rows costs 6 N (2 P + a + b) + 6 H (a + b) FLOPs per pair; this one 6 N (P + a + b) + 6 H (a + b), and gives the
same result.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from tensordict import TensorDict

from verl_aiops.models.company import company_of, forget_lengths, unwrapped
from verl_aiops.trainers.logprobs.attention import SHARED_ATTENTION
from verl_aiops.trainers.logprobs.head import label_log_probs
from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.rows import rows_answer_log_probs

__all__ = ["shared_answer_log_probs"]


def shared_answer_log_probs(
    module: torch.nn.Module, batch: TensorDict, *, packed: bool, device: torch.device | str
) -> torch.Tensor:
    """All rows of a micro-batch as one sequence in which rows with one prompt share it.

    Args:
        module: the (FSDP-wrapped) model, of a kind that `support.why_not_shared` has nothing against.
        batch: nested ``prompts``, ``responses`` and ``response_mask``.
        packed: without a meaning here, there is never padding.
        device: where the model computes.

    Returns:
        nested (rows, answer length), float32; 0 where ``response_mask`` is 0.
    """
    columns = [batch[name].cpu().unbind() for name in ("prompts", "responses", "response_mask")]
    company = company_of(module)
    if company.limit is not None:
        if max(len(prompt) + len(answer) for prompt, answer in zip(*columns[:2])) > company.limit:
            return _by_rows(module, columns, company.limit, device)
        if company.each_length:
            forget_lengths(module)
    # whatever goes to the GPU goes before the forward pass: afterwards a copy waits for it
    layout = SharedLayout(*columns).to(device)
    offsets = batch["responses"].offsets().to(device, non_blocking=True)
    model = unwrapped(module)
    if model.config._attn_implementation != SHARED_ATTENTION:
        model.set_attn_implementation(SHARED_ATTENTION)
    with _head_gives_log_probs(model.get_output_embeddings(), layout):
        values = module(
            input_ids=layout.input_ids.unsqueeze(0),
            attention_mask=None,
            position_ids=layout.position_ids.unsqueeze(0),
            use_cache=False,
            logits_to_keep=layout.sources,
            shared_layout=layout,
        ).logits
    answers = values.new_zeros(layout.answer_tokens).index_copy(0, layout.slots, values)
    return torch.nested.nested_tensor_from_jagged(answers, offsets)


def _by_rows(module: torch.nn.Module, columns: list, limit: int, device) -> torch.Tensor:
    """`support.why_not_shared` refuses such runs; who calls this backend directly gets what each row is alone."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise RuntimeError(
            f"a row of more than {limit} tokens has a rotary embedding of its own: set logprob_backend=rows"
        )
    prompts, answers, masks = columns
    ids = [torch.cat(row) for row in zip(prompts, answers)]
    nested = {
        "input_ids": ids,
        "position_ids": [torch.arange(len(row)) for row in ids],
        "responses": list(answers),
    }
    batch = TensorDict(
        {
            **{name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in nested.items()},
            "prompt_lengths": torch.tensor([len(prompt) for prompt in prompts]),
        },
        batch_size=[len(ids)],
    )
    log_probs = rows_answer_log_probs(module, batch, packed=False, device=device)
    labelled = torch.cat([mask > 0 for mask in masks]).to(log_probs.device)
    return torch.nested.nested_tensor_from_jagged(log_probs.values() * labelled, log_probs.offsets())


@contextmanager
def _head_gives_log_probs(head: torch.nn.Module, layout: SharedLayout):
    """Within, the model's head turns hidden states into the layout's label log-probs instead of logits.

    It has to happen inside the model's own forward pass: only there are FSDP's parameters gathered.
    """
    logits = head.forward
    replaced = vars(head).get("forward")

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return label_log_probs(
            logits,
            hidden.squeeze(0),
            layout.label_sources,
            layout.label_ids,
            vocabulary=head.weight.shape[0],
            sources_on_host=layout.label_sources_on_host,
        )

    head.forward = forward
    try:
        yield
    finally:
        if replaced is None:
            del head.forward
        else:
            head.forward = replaced

"""The auxiliary loss of mixtures of experts, which keeps routers from sending all tokens to few experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["ROUTED_MODELS", "RouterBalance", "balance"]

# Types of models whose routers' numbers transformers hands out, and of which `balance` is compared with the loss that
# their own forward pass returns for the rows (tests/trainers/logprobs/test_router.py).
ROUTED_MODELS = ("gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")


def balance(router_logits: Sequence[torch.Tensor], top_k: int, weights: torch.Tensor) -> torch.Tensor:
    """How unevenly tokens are sent to experts: number of experts times the sum over them of the share of tokens that
    each gets, times the mean probability that it was given (Switch Transformers, arXiv 2101.03961, equations 4 to 6, as
    transformers has it: over all layers together). 1 for an even distribution with one expert a token, ``top_k`` with
    so many. Only the probabilities have a gradient.

    Args:
        router_logits: (tokens, experts) of each layer.
        top_k: experts that a token goes to.
        weights: (tokens,) how often each token counts; 0 where nothing does.
    """
    weights = weights.float()
    shares, probabilities = 0.0, 0.0
    for logits in router_logits:
        each = torch.softmax(logits.float(), dim=-1)
        chosen = each.detach().topk(top_k, dim=-1).indices
        got = torch.zeros(each.shape[-1], device=each.device)
        shares = shares + got.index_add_(0, chosen.flatten(), weights.repeat_interleave(top_k))
        probabilities = probabilities + weights @ each
    total = (len(router_logits) * weights.sum()).clamp(min=1e-12)
    return probabilities.shape[0] * (shares / total * (probabilities / total)).sum()


class RouterBalance:
    """Asks a forward pass for the loss of the rows that went into its layout.

    A token that rows have in common counts as often as it would one row after another, so that the loss is that of
    plain rows. The layout has to be made of whole rows (``row_weights``).
    """

    loss: torch.Tensor | None = None
    arguments = {"output_router_logits": True}

    def take(self, model: torch.nn.Module, output, weights: torch.Tensor) -> None:
        """
        Args:
            model: transformers' model, unwrapped.
            output: of its forward pass with `arguments`.
            weights: (tokens,)
        """
        logits = [layer.flatten(0, -2) for layer in output.router_logits]
        self.loss = balance(logits, model.num_experts_per_tok, weights)

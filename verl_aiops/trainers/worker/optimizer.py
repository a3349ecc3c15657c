"""The optimizer of a resumed run: its state from the checkpoint, its settings from the command line."""

from __future__ import annotations

import torch

__all__ = ["use_settings"]


def use_settings(optimizer: torch.optim.Optimizer | None, scheduler, config) -> None:
    """Put learning rate, weight decay and betas of ``config`` in place of those that a checkpoint brought along.

    verl loads the whole state of optimizer and schedule, with the settings of the run that wrote it, while the shape of
    the schedule (type, warm-up, length) is the new run's. Where nothing has changed, this gives the very numbers that
    were loaded.

    Args:
        optimizer: with its state loaded; None where nothing is trained.
        scheduler: a `LambdaLR`, with its state loaded.
        config: verl's `FSDPOptimizerConfig`.
    """
    if optimizer is None or scheduler is None:
        return
    asked = {"weight_decay": config.weight_decay, "betas": config.betas, **(config.override_optimizer_config or {})}
    lr = asked.pop("lr", config.lr)
    scheduler.base_lrs = [lr] * len(optimizer.param_groups)
    for group, shape in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        for name in ("weight_decay", "betas"):
            if name in group:
                group[name] = tuple(asked[name]) if name == "betas" else asked[name]
        group["initial_lr"] = lr
        group["lr"] = lr * shape(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

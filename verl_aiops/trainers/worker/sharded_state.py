"""Checkpoints of a module that FSDP has no part in, as verl's engine of the same run would write and read them.

One CPU worker trains the plain module (`module.py`), where verl's engine has FSDP2 with everything in one shard. Its
states hold DTensors, which PyTorch does not mix with plain tensors: without this a run could not change its engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

__all__ = ["as_one_shard"]


@contextmanager
def as_one_shard(module: torch.nn.Module, optimizer: torch.optim.Optimizer | None, mesh: DeviceMesh) -> Iterator[None]:
    """Within, a plain module and its optimizer give out states as FSDP2 of one worker does, and take them from either.

    Args:
        mesh: of the one worker, as verl's engine names it.
    """
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}

    def sharded(tensor: torch.Tensor) -> torch.Tensor:
        # FSDP2 shards the first dimension
        return DTensor.from_local(tensor, mesh, [Shard(0) if tensor.dim() else Replicate()], run_check=False)

    def give_weights(_, state: dict, prefix: str, *__) -> None:
        for name in trained:
            if prefix + name in state:
                state[prefix + name] = sharded(state[prefix + name])

    def take_weights(_, state: dict, *__) -> None:
        for name, value in state.items():
            state[name] = _plain(value)

    def give_moments(_, state: dict[str, Any]) -> dict[str, Any]:
        # the count of steps has no dimension, and FSDP2 leaves it as it is
        return _each(state, lambda value: sharded(value) if isinstance(value, torch.Tensor) and value.dim() else value)

    def take_moments(_, state: dict[str, Any]) -> dict[str, Any]:
        return _each(state, _plain)

    handles = [
        module.register_state_dict_post_hook(give_weights),
        module.register_load_state_dict_pre_hook(take_weights),
    ]
    if optimizer is not None:
        handles.append(optimizer.register_state_dict_post_hook(give_moments))
        handles.append(optimizer.register_load_state_dict_pre_hook(take_moments))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _plain(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _each(state: dict[str, Any], change) -> dict[str, Any]:
    """An optimizer's state with its tensors changed; the optimizer's own is left alone."""
    moments = {number: {name: change(value) for name, value in of.items()} for number, of in state["state"].items()}
    return {**state, "state": moments}

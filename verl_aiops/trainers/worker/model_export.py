"""The weights that workers hold, written as a plain folder of transformers without a checkpoint between."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator

import torch
from torch.distributed.fsdp import ShardedStateDictConfig, StateDictType
from torch.distributed.tensor import DTensor

from verl_aiops.models.folders import write_model
from verl_aiops.seam.engine import FSDPCheckpointManager, get_device_id, get_fsdp_state_ctx

__all__ = ["ModelExport"]


class ModelExport(FSDPCheckpointManager):
    """Stands where verl's engine has its checkpoint manager, whose saving it then makes the writing of a model.

    What a checkpoint says of a model beside its weights (configuration, tokenizer, notes on adapters) is verl's; the
    weights go from the workers to the first of them, one tensor after another, and from there to the disk.

    Args:
        manager: the engine's own.
    """

    fault: Exception | None = None

    def __init__(self, manager: FSDPCheckpointManager):
        super().__init__(
            manager.model,
            processing_class=manager.processing_class,
            checkpoint_config={"save_contents": [], "load_contents": []},
            trust_remote_code=manager.trust_remote_code,
        )

    def save_checkpoint(self, local_path: str, *args, **kwargs):
        """Write the model into the empty folder ``local_path``, in bfloat16.

        What goes wrong in writing is left in ``fault``: the other workers wait for the first at the end of verl's save.
        """
        with tempfile.TemporaryDirectory(prefix="verl-aiops-export-") as settings:
            super().save_checkpoint(settings)
            weights = dict(self._whole_weights())
            if self.rank != 0:
                return
            try:
                if not os.path.isdir(local_path):
                    raise FileNotFoundError(
                        f"{local_path}: not seen on {socket.gethostname()}, where the first worker would write the "
                        "model. trainer.default_local_dir has to be a folder that all machines of the run share."
                    )
                write_model(weights, settings, local_path, self.trust_remote_code)
            except Exception as error:
                self.fault = error

    def _whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """By name, in bfloat16 on the CPU; all workers take part, the first alone gets any."""
        offload = ShardedStateDictConfig(offload_to_cpu=torch.cuda.is_available())
        with get_fsdp_state_ctx(self.model, StateDictType.SHARDED_STATE_DICT, offload, None):
            state = self.model.state_dict()
        for name in list(state):
            value = state.pop(name)
            if isinstance(value, DTensor):
                value = value.to(get_device_id()).full_tensor()
            if self.rank == 0:
                yield name, (value.bfloat16() if value.is_floating_point() else value).cpu()

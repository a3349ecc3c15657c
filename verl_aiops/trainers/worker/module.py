"""What our engines have in common: how the model is built that verl trains (its kernels, its FSDP units, whether it
needs FSDP at all), its checkpoints, and what FSDP2 keeps of a pass without gradients."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from tensordict import TensorDict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from verl.utils.device import get_device_name

from verl_aiops.kernels.cpu_linear import use_onednn
from verl_aiops.kernels.four_bits import in_four_bits
from verl_aiops.kernels.fused_layers import fuse_layers, layer_kernels
from verl_aiops.seam.engine import PrecisionType
from verl_aiops.trainers.worker.sharded_state import as_one_shard

logger = logging.getLogger(__name__)

__all__ = ["FastModule", "decoder_layers"]

MOST_PARAMETERS_OF_ONE_UNIT = 2_000_000_000


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that FSDP wraps one by one, as transformers names their classes."""
    classes = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in classes]


class FastModule:
    """Stands before verl's FSDP engine in the bases of an engine."""

    _inferred_without_gradients = False
    # of a base in four bits: names of weights that were not finite, of which nothing is seen afterwards
    _base_not_finite: tuple[str, ...] = ()

    def _prepare_module(self, module: torch.nn.Module) -> None:
        """What an engine changes in a model before it is compiled and sharded."""

    @property
    def _in_four_bits(self) -> bool:
        """Whether adapters are trained on a base in four bits; a reference without adapters is another model."""
        return self._is_lora and bool((self.model_config.lora or {}).get("base_format"))

    def _compute_dtype(self) -> torch.dtype:
        return PrecisionType.to_dtype(dict(self.engine_config.mixed_precision or {}).get("param_dtype", "bf16"))

    def _build_lora_module(self, module):
        if not self._in_four_bits:
            return self._with_adapters(module)
        # verl has loaded the whole weights on the host, in `model_dtype`
        self._base_not_finite = tuple(in_four_bits(module, self._compute_dtype(), get_device_name()))
        module = self._with_adapters(module)
        for parameter in module.parameters():
            if parameter.requires_grad:
                # verl casts adapters to the base's dtype, for FSDP; in bfloat16 small steps of Adam would be lost
                parameter.data = parameter.data.float()
        return module

    def _with_adapters(self, module: torch.nn.Module) -> torch.nn.Module:
        return super()._build_lora_module(module)

    def _build_fsdp_module(self, module):
        kernels = layer_kernels(
            get_device_name(),
            use_liger=self.model_config.use_liger,
            use_torch_compile=self.engine_config.use_torch_compile,
        )
        if kernels == "fused":
            logger.info("in fewer kernels: %s", fuse_layers(module) or "nothing")
        elif kernels == "plain" and get_device_name() == "cpu":
            logger.info("linear layers computed by oneDNN: %d", use_onednn(module))
        self._prepare_module(module)
        if self.engine_config.use_torch_compile:
            # before FSDP, whose hooks stay outside of what is compiled; one graph serves all layers and lengths
            for layer in decoder_layers(module):
                layer.forward = torch.compile(layer.forward, dynamic=True)
        if self._in_four_bits:
            # nothing to shard: a quarter of what LoRA's base takes in half precision, and adapters
            self._autocast_dtype, self.scaler = self._compute_dtype(), None
            return module.to(get_device_name())
        if self._alone_on_cpu():
            self._autocast_dtype, self.scaler = torch.float32, None
            # verl may load a reference in bfloat16; FSDP2 would compute with its weights in float32
            return (module.float() if self.engine_config.forward_only else module).to(get_device_name())
        self._one_unit_on_one_gpu(module)
        return super()._build_fsdp_module(module)

    def _alone_on_cpu(self) -> bool:
        """One CPU worker in float32 needs nothing of FSDP2, which would copy all weights and gradients in each step,
        nor offloading for a reference. verl's engine knows plain modules."""
        config = self.engine_config
        return (
            get_device_name() == "cpu"
            and torch.distributed.get_world_size() == 1
            and config.strategy == "fsdp2"
            and dict(config.mixed_precision or {}).get("param_dtype") in ("fp32", "float32")
            and not (self._is_lora or config.offload_policy)
        )

    def _one_unit_on_one_gpu(self, module: torch.nn.Module) -> None:
        """FSDP1 with nothing to shard: one unit for the whole model instead of one a layer, whose hooks cost a small
        model more time than its kernels. The price is the weights and gradients in half precision, whole, so large
        models keep a unit a layer. What the user says of `wrap_policy.disable` stands."""
        config = self.engine_config
        if (
            config.strategy == "fsdp"
            and torch.distributed.get_world_size() == 1
            and not (self._is_lora or config.param_offload or config.forward_only)
            and "disable" not in config.wrap_policy
            and sum(p.numel() for p in module.parameters()) < MOST_PARAMETERS_OF_ONE_UNIT
        ):
            # verl's configurations are frozen
            object.__setattr__(config, "wrap_policy", {**config.wrap_policy, "disable": True})

    def _autocast(self) -> AbstractContextManager:
        """As verl's engine computes: the weights may be float32 where the model computes in half precision."""
        if self._autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device_type=get_device_name(), dtype=self._autocast_dtype)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _state_as_verls(self) -> AbstractContextManager:
        """A checkpoint is the same whichever engine has written it, so that a run may go on with the other one."""
        if isinstance(self.module, FSDPModule | FullyShardedDataParallel) or self._in_four_bits:
            return nullcontext()
        return as_one_shard(self.module, self.optimizer, self.device_mesh)

    def save_checkpoint(self, *args, **kwargs):
        with self._state_as_verls():
            super().save_checkpoint(*args, **kwargs)

    def load_checkpoint(self, *args, **kwargs):
        with self._state_as_verls():
            super().load_checkpoint(*args, **kwargs)

    # --- FSDP2 after a pass without gradients ---------------------------------------------------------------------

    def _reshard(self) -> None:
        """Drop gathered parameters. FSDP2 keeps the root's after a forward pass without a backward, and a later
        change of the shards (a checkpoint, swapped weights) would not reach them."""
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def infer_batch(self, data: TensorDict, loss_function=None):
        output = super().infer_batch(data, loss_function=loss_function)
        self._reshard()
        # PEFT freezes the adapters while they are off
        self._inferred_without_gradients |= not any(p.requires_grad for p in self.module.parameters())
        return output

    def train_batch(self, data: TensorDict, loss_function):
        if self._inferred_without_gradients and isinstance(self.module, FSDPModule):
            # FSDP2 settles gradient dtypes at its first forward pass, from the parameters that are trainable then. If
            # that pass scored the reference with adapters off there were none; unshard() settles them again.
            for module in self.module.modules():
                if isinstance(module, FSDPModule):
                    module.unshard()
                    module.reshard()
            self._inferred_without_gradients = False
        return super().train_batch(data, loss_function)

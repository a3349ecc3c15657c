"""verl's FSDP engine with float32 answer log-probs and an optional copy of the weights as live reference."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import torch
from tensordict import TensorDict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from verl.utils.device import get_device_name

from verl_aiops.seam.engine import (
    AggregationType,
    FSDPEngineWithLMHead,
    Metric,
    detach_tree,
    get_device_id,
    postprocess_batch_func,
)
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.trainers.batch import AnswerBatch
from verl_aiops.trainers.config import PREFERENCE_MODEL_TYPE
from verl_aiops.trainers.logprobs import LOGPROB_BACKENDS
from verl_aiops.trainers.logprobs.router import RouterBalance
from verl_aiops.trainers.runs.finite import names_not_finite
from verl_aiops.trainers.worker.model_export import ModelExport
from verl_aiops.trainers.worker.module import FastModule
from verl_aiops.trainers.worker.objective import ROUTER_LOSS, columns_for_loss
from verl_aiops.trainers.worker.optimizer import use_settings
from verl_aiops.verl_patches.micro_batches import PLANNED

logger = logging.getLogger(__name__)

__all__ = ["PREFERENCE_MODEL_TYPE", "FSDPPreferenceEngine"]


def _local(parameter: torch.nn.Parameter) -> torch.Tensor:
    data = parameter.data
    return data.to_local() if isinstance(data, DTensor) else data


# what the trainer knows of a batch's cuts, to be logged
_TOLD = ("shared_tokens_ratio", "torn_prompts")


def _planned(data: TensorDict) -> list[list[int]]:
    """Rows of each micro-batch that the trainer has planned; none where verl cuts in their order."""
    numbers = data.get("micro_batch", None)
    if numbers is None:
        return []
    rows: list[list[int]] = [[] for _ in range(int(numbers.max()) + 1)]
    for at, number in enumerate(numbers.tolist()):
        rows[number].append(at)
    return rows


def _without_idle(data: TensorDict, plan: list[list[int]]) -> list[list[int]]:
    """Micro-batches without the rows that no loss looks at. One of nothing else keeps one: workers of a sharded model
    all go through it equally often."""
    batch = AnswerBatch.of(data)
    busy = batch.counted > 0
    if batch.estimates_kl is not None:
        busy = busy & (batch.estimates_kl == 0)
    return [[at for at in rows if busy[at]] or rows[:1] for rows in plan]


def without_dropout(model: torch.nn.Module) -> None:
    """Policy and reference are compared answer by answer: dropout, as adapters trained elsewhere bring it along, would
    be noise in each comparison. TRL's trainer does the same."""
    off = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.p, off = 0.0, off + 1
    if off:
        logger.warning("dropout is switched off in %d modules: preference losses compare log-probs", off)


class FSDPPreferenceEngine(FastModule, FSDPEngineWithLMHead):
    """FSDP1/FSDP2 engine whose model output is ``answer_log_probs`` (see :mod:`verl_aiops.trainers.logprobs`).

    Sequence parallelism of rows runs verl's own forward instead; its log-probs are float32 there when flash-attn's
    cross-entropy kernel is installed, and the worker refuses them otherwise. Shared prompts go over workers by ours.
    """

    # what of the answers the model gives, and how it is computed, by the batch's `logprob_backend`
    _gives = "answer_log_probs"
    _backends = LOGPROB_BACKENDS

    def __init__(self, model_config, *args, **kwargs):
        # The registry found this class by PREFERENCE_MODEL_TYPE; verl's loader knows "language_model".
        model_config.model_type = "language_model"
        super().__init__(model_config, *args, **kwargs)
        self._reference: list[torch.Tensor] | None = None
        # of the mini-batch at hand, on the device
        self._kl: torch.Tensor | None = None
        # set while a step is launched whose numbers nobody waits for, and while a single worker reads them
        self.runs_ahead = False
        self.reads_alone = False

    def _prepare_module(self, module: torch.nn.Module) -> None:
        without_dropout(module)

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        told = {name: tu.get_non_tensor_data(data, key=name, default=None) for name in _TOLD}
        output = self._micro_batches(data, loss_function, forward_only)
        if loss_function is not None:
            # the same on all workers, of the whole batch
            output["metrics"] |= {
                f"perf/{name}": Metric(AggregationType.MEAN, float(value))
                for name, value in told.items()
                if value is not None
            }
        return output

    def _micro_batches(self, data: TensorDict, loss_function, forward_only: bool) -> dict:
        """verl's, on the micro-batches that the trainer has planned; one that is alone is not cut at all."""
        plan = _planned(data)
        alone = len(plan) == 1 if plan else self._all_at_once(data)
        self._kl = self._estimate_kl(data, plan) if loss_function is not None else None
        if not forward_only:
            plan = _without_idle(data, plan)
        if forward_only or not alone or self._is_verls(data) or self.scaler is not None:
            if plan:
                # verl restores the order of rows in what it cuts dynamically
                tu.assign_non_tensor(data, use_dynamic_bsz=True, **{PLANNED: tuple(plan)})
            return super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        if plan and len(plan[0]) < len(data):
            data = tu.index_select_tensor_dict(data, plan[0])
        # one micro-batch: nothing to be cut, and cutting nested tensors costs a small model a tenth of its step
        # what verl's own way through here would have put in for the loss
        tu.assign_non_tensor(data, dp_size=self.get_data_parallel_size())
        loss, output = self.forward_step(data, loss_function=loss_function, forward_only=False)
        loss.backward()
        output.pop("model_output")
        return postprocess_batch_func(output_lst=[output], indices=None, data=data)

    def _all_at_once(self, data: TensorDict) -> bool:
        # verl counts micro-batches in units of `force_group_size` rows; ours are examples
        size = tu.get_non_tensor_data(data, key="force_group_size", default=1)
        micro = tu.get_non_tensor_data(data, key="micro_batch_size_per_gpu", default=None) or 0
        return not tu.get_non_tensor_data(data, key="use_dynamic_bsz", default=True) and size * micro == len(data)

    def _estimate_kl(self, data: TensorDict, plan: list[list[int]]) -> torch.Tensor | None:
        """max(0, mean of log policy - log reference of the rows that estimate the KL), over all workers' parts of the
        mini-batch, with the policy as it is before the update (KTO, arXiv 2402.01306, section 4.1); None without such
        rows. Nothing is read on the host, so that a step can be left to the device.

        Each worker goes through the model once a micro-batch, rows or not, as the others of a sharded model do."""
        batch = AnswerBatch.of(data)
        if batch.estimates_kl is None:
            return None
        estimating = (batch.estimates_kl * batch.counted > 0).tolist()
        total = torch.zeros(2, device=get_device_name())
        # as for scoring: layers whose activations verl moves to the host expect a backward pass of each one in training
        training = self.module.training
        self.module.eval()
        for rows in plan:
            wanted = [at for at in rows if estimating[at]]
            part = tu.index_select_tensor_dict(data, wanted or rows[:1])
            columns = [part[name].values().to(total.device) for name in ("ref_log_probs", "response_mask")]
            with torch.no_grad():
                _, output = self.forward_step(part, loss_function=None, forward_only=True)
            policy = output["model_output"]["answer_log_probs"].values()
            if wanted:
                total += torch.stack([((policy - columns[0]) * columns[1]).sum(), total.new_tensor(len(wanted))])
        self.module.train(training)
        self._reshard()
        torch.distributed.all_reduce(total, group=self.get_data_parallel_group())
        return (total[0] / total[1].clamp(min=1)).clamp(min=0)

    def _is_verls(self, data: TensorDict) -> bool:
        """Whether verl's own forward pass has to do it."""
        return self.use_ulysses_sp and tu.get_non_tensor_data(data, key="logprob_backend", default="rows") == "rows"

    def forward_step(self, micro_batch: TensorDict, loss_function, forward_only):
        if self._is_verls(micro_batch):
            # a row's tokens lie on several ranks: no backend of ours, and verl's forward pass gives `log_probs`
            tu.assign_non_tensor(micro_batch, temperature=1.0)
            return super().forward_step(micro_batch, loss_function, forward_only)
        backend = self._backends[tu.get_non_tensor_data(micro_batch, key="logprob_backend", default="rows")]
        packed = tu.get_non_tensor_data(micro_batch, key="use_remove_padding", default=False)
        if loss_function is not None:
            # before the forward pass: a copy that is asked for after it waits until the device has done it
            columns = columns_for_loss(micro_batch, get_device_id())
            if self._kl is not None:
                columns["kl"] = self._kl.expand(len(micro_batch))
        router = RouterBalance() if getattr(loss_function, "router_aux_loss_coef", 0.0) else None
        with self._autocast():
            # of the backends `shared_prompt` alone computes the routers' loss, as the check before Ray sees to
            more = {} if router is None else {"router": router}
            values = backend(self.module, micro_batch, packed=packed, device=get_device_id(), **more)
        # autocast ends here: sums and losses are float32
        model_output = {self._gives: values}
        if loss_function is None:
            loss, metrics = torch.zeros((), device=get_device_name()), {}
        else:
            given = model_output if router is None else {**model_output, ROUTER_LOSS: router.loss}
            loss, metrics = loss_function(model_output=given, data=columns, dp_group=self.get_data_parallel_group())
        output = {"model_output": detach_tree(model_output), "loss": loss.detach(), "metrics": metrics}
        return loss, output

    @property
    def can_run_ahead(self) -> bool:
        """Whether a whole step can be left to the device: its own optimizer kernel looks whether gradients are finite,
        and nobody else has to hear of them."""
        return (
            torch.distributed.get_world_size() == 1
            and self.scaler is None
            and not self._qat_enabled
            and not isinstance(self.module, FSDPModule)
            and not (self.is_param_offload_enabled or self.is_optimizer_offload_enabled)
            # what torch.amp.GradScaler asks of optimizers that take `found_inf`
            and getattr(self.optimizer, "_step_supports_amp_scaling", False)
        )

    def get_data_parallel_group(self):
        """None while `reads_alone`: verl then does without collectives, which would wait for the step on its way."""
        return None if self.reads_alone else super().get_data_parallel_group()

    def optimizer_step(self):
        """verl's, which waits for the norm of the gradients to know whether to go on; while `runs_ahead`, the optimizer
        is launched at once and is told not to change anything if the norm is not finite.

        Returns:
            the norm before clipping; a tensor on the device while `runs_ahead`.
        """
        if not self.runs_ahead:
            return super().optimizer_step()
        most = self.optimizer_config.clip_grad
        if isinstance(self.module, FullyShardedDataParallel):
            norm = self.module.clip_grad_norm_(most)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), most)
        # as `torch.amp.GradScaler` tells a fused optimizer, whose kernel looks at it on the device
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf
        return norm

    def load_checkpoint(self, *args, **kwargs):
        super().load_checkpoint(*args, **kwargs)
        use_settings(self.optimizer, self.lr_scheduler, self.optimizer_config)
        self._reshard()

    def write_model(self, folder: str) -> None:
        """The weights as they are now as a plain folder of transformers; all workers take part, the first writes.

        Raises:
            FileNotFoundError: the first worker does not see the folder.
            OSError: it cannot be written.
        """
        kept, export = self.checkpoint_manager, ModelExport(self.checkpoint_manager)
        self.checkpoint_manager = export
        try:
            # verl brings back what is offloaded before it saves
            self.save_checkpoint(folder)
        finally:
            self.checkpoint_manager = kept
        if export.fault is not None:
            raise export.fault

    def weights_not_finite(self) -> list[str]:
        """Names of the weights of which this rank holds a number that is NaN or infinite."""
        held = names_not_finite((name, _local(p)) for name, p in self.module.named_parameters())
        return [*self._base_not_finite, *held]

    # --- live reference -------------------------------------------------------------------------------------------

    def _reference_parameters(self) -> list[torch.nn.Parameter]:
        # with LoRA the base is frozen, so the adapters are all that can differ
        return [p for p in self.module.parameters() if p.requires_grad]

    def sync_reference(self, mixup: float) -> None:
        """reference = mixup * policy + (1 - mixup) * reference (TR-DPO, arXiv 2404.09656, equations 4 and 5)."""
        policy = [_local(p) for p in self._reference_parameters()]
        if self._reference is None:
            self._reference = [p.clone() for p in policy]
            return
        for held, now in zip(self._reference, policy, strict=True):
            held.lerp_(now.to(held.device), mixup)

    @contextmanager
    def reference_weights(self):
        """Run with the reference's weights in place of the policy's; both are restored bit for bit."""
        policy = [_local(p) for p in self._reference_parameters()]
        kept = [p.clone() for p in policy]
        self._copy_in(self._reference)
        try:
            yield
        finally:
            self._copy_in(kept)

    def _copy_in(self, values: list[torch.Tensor]) -> None:
        self._reshard()
        with torch.no_grad():
            for parameter, value in zip(self._reference_parameters(), values, strict=True):
                _local(parameter).copy_(value)
        self._reshard()

    @property
    def reference_state_kept(self) -> bool:
        return self._reference is not None

    def reference_state(self) -> list[torch.Tensor] | None:
        return None if self._reference is None else [t.cpu() for t in self._reference]

    def load_reference_state(self, state: list[torch.Tensor]) -> None:
        policy = [_local(p) for p in self._reference_parameters()]
        self._reference = [t.to(p.device) for t, p in zip(state, policy, strict=True)]

"""The settings of `verl-aiops trl-dpo`, and which losses of TRL are ours too."""

from __future__ import annotations

import math
from dataclasses import dataclass

from verl_aiops.trl.extra import TrainingError

__all__ = ["SCHEDULES", "SHARED_LOSSES", "TRUNCATIONS", "DPOTraining"]

# of TRL's losses those whose formula is ours, term by term (losses/formulas.py)
SHARED_LOSSES = (
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
)
# each of these looks at all pairs of a forward pass together: sorted, or averaged over their tokens
WHOLE_STEP_LOSSES = ("aot", "aot_unpaired", "sft")
SCHEDULES = ("constant", "linear", "cosine")
TRUNCATIONS = ("error", "left", "drop")
ELSEWHERE = "or train with main_ppo +verl_aiops=dpo"


@dataclass(frozen=True)
class DPOTraining:
    """What decides the result of a run.

    Attributes:
        data, val: preference files.
        model: folder or hub name of the model to start from.
        beta, loss_type, loss_weights, label_smoothing: as in `verl_aiops.losses.compute_dpo_loss`.
        reference: ``cached`` scores each pair once, before training; ``live`` in every step.
        reference_model: another model than the initial one, or None.
        epochs, max_steps: length of the run; ``max_steps`` goes before.
        lr, schedule, warmup: of AdamW without weight decay; ``warmup`` is a share of the steps.
        batch_size: pairs an optimizer step; ``micro_batch``: pairs a forward pass, two answers each.
        max_prompt_length, max_response_length: in tokens; ``truncation`` as in `verl_aiops.data.PreferenceDataset`.
        lora_rank, lora_alpha: of all linear layers; rank 0 trains all weights.
        gradient_checkpointing: recompute activations, for less memory.
        seed: of the pairs' order, which is that of main_ppo with ``data.seed``, and of LoRA's first weights.
        dtype: of the weights that are loaded and written; on a GPU float32 weights are trained under bfloat16 autocast.
        device: ``auto``, ``cpu`` or ``cuda``.
        save_steps: steps between checkpoints, from which a stopped run goes on.
        eval_steps: steps between measurements on ``val``; 0: only before and after.
    """

    data: tuple[str, ...]
    model: str
    val: tuple[str, ...] = ()
    beta: float = 0.1
    loss_type: tuple[str, ...] = ("sigmoid",)
    loss_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    reference: str = "cached"
    reference_model: str | None = None
    epochs: float = 1.0
    max_steps: int | None = None
    lr: float = 1e-6
    schedule: str = "constant"
    warmup: float = 0.0
    batch_size: int = 32
    micro_batch: int = 4
    max_prompt_length: int = 2048
    max_response_length: int = 512
    truncation: str = "error"
    lora_rank: int = 0
    lora_alpha: int = 32
    gradient_checkpointing: bool = False
    seed: int = 1
    dtype: str = "float32"
    device: str = "auto"
    save_steps: int = 50
    eval_steps: int = 0

    def check(self) -> None:
        """Raises TrainingError for a value that cannot work, or that TRL and our trainer would read differently."""
        for name in (
            "epochs",
            "max_steps",
            "lr",
            "batch_size",
            "micro_batch",
            "max_prompt_length",
            "max_response_length",
            "lora_alpha",
            "save_steps",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TrainingError(f"{_option(name)} {value}: expected a number above 0")
        for name in ("lora_rank", "eval_steps", "seed"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{_option(name)} {getattr(self, name)}: expected a whole number, 0 or more")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"--warmup {self.warmup}: expected a share of the steps, from 0 to less than 1")
        for name, allowed in (
            ("reference", ("cached", "live")),
            ("schedule", SCHEDULES),
            ("truncation", TRUNCATIONS),
            ("dtype", ("float32", "bfloat16")),
            ("device", ("auto", "cpu", "cuda")),
        ):
            if getattr(self, name) not in allowed:
                raise TrainingError(f"{_option(name)} {getattr(self, name)}: expected one of {', '.join(allowed)}")
        if self.batch_size % self.micro_batch:
            raise TrainingError(
                f"--micro-batch {self.micro_batch} does not divide --batch-size {self.batch_size}: a step's loss is "
                "the mean over its micro-batches, which must be of one size"
            )
        self._check_losses()

    def _check_losses(self) -> None:
        from verl_aiops.losses import validate_loss_args
        from verl_aiops.losses.table import loss_names

        given = ", ".join(self.loss_type)
        try:
            names = loss_names(self.loss_type)
        except ValueError as error:
            raise TrainingError(f"--loss-type: {error}") from None
        alien = [name for name in names if name not in SHARED_LOSSES]
        if alien:
            raise TrainingError(
                f"--loss-type {', '.join(alien)}: TRL has no such loss. Use one of {', '.join(SHARED_LOSSES)}, "
                f"{ELSEWHERE}"
            )
        try:
            validate_loss_args(
                beta=self.beta,
                loss_type=names,
                loss_weights=self.loss_weights,
                label_smoothing=self.label_smoothing,
            )
        except ValueError as error:
            raise TrainingError(str(error)) from None
        if self.label_smoothing and "sigmoid" in names:
            raise TrainingError(
                f"--label-smoothing {self.label_smoothing} with --loss-type sigmoid: TRL's sigmoid would pass over it. "
                f"Use --loss-type robust, {ELSEWHERE}"
            )
        whole = [name for name in names if name in WHOLE_STEP_LOSSES]
        if whole and self.micro_batch != self.batch_size:
            raise TrainingError(
                f"--loss-type {given} with --micro-batch {self.micro_batch}: TRL takes {', '.join(whole)} over each "
                f"micro-batch, not over the step's {self.batch_size} pairs. Set --micro-batch {self.batch_size}, "
                f"{ELSEWHERE}"
            )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

"""The settings of `verl-aiops trl-dpo`, and which losses of TRL are ours too."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from functools import partial

from verl_aiops.settings import setting
from verl_aiops.trl.extra import TrainingError
from verl_aiops.trl.options import DATA, DEVICE, DTYPE, LORA_ALPHA, SAVE_STEPS, TrainingSettings

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
TEXT_PAIRS = ("chat", "plain")
ELSEWHERE = "or train with main_ppo +verl_aiops=dpo"

_files, _loss, _training = (partial(setting, group=group) for group in ("files", "loss", "training"))


@dataclass(frozen=True)
class DPOTraining(TrainingSettings):
    """What decides the result of a run; ``trl`` are further options of TRL's, as on its command line."""

    data: tuple[str, ...] = DATA()
    model: str = _files(
        MISSING, "folder or hub name of the model to start from", trl=("model_init_kwargs", "trust_remote_code")
    )
    val: tuple[str, ...] = _files((), "held-out pairs (default: none)", metavar="FILE")
    max_prompt_length: int = _files(2048, "tokens of a prompt", within="(0, inf)", trl=("max_length",))
    max_response_length: int = _files(512, "tokens of an answer", within="(0, inf)")
    truncation: str = _files(
        "error",
        "what becomes of longer pairs: refused, prompts cut (answers never), left out and counted",
        choices=TRUNCATIONS,
        trl=("truncation_mode",),
    )
    columns: str | None = _files(
        None, "columns of other names: prompt=question,chosen=better,system=persona (default: none)", metavar="N=C,N=C"
    )
    text_pairs: str | None = _files(
        None,
        "pairs of texts in the chat template, or as they are (default: as they are, said where there is a template)",
        choices=TEXT_PAIRS,
    )
    # checked by the losses' own check, whose ranges they have; spelt again because torch takes seconds to import
    beta: float = _loss(0.1, "pull to the reference", metavar="B", trl=("beta",))
    loss_type: tuple[str, ...] = _loss(
        ("sigmoid",),
        "one or several of sigmoid (the default), " + ", ".join(SHARED_LOSSES[1:]),
        metavar="NAME",
        trl=("loss_type",),
    )
    loss_weights: tuple[float, ...] | None = _loss(
        None, "one a loss (default: 1 each)", metavar="W", trl=("loss_weights",)
    )
    label_smoothing: float = _loss(
        0.0,
        "probability that a label is wrong, for robust, exo_pair, aot, aot_unpaired",
        metavar="E",
        trl=("label_smoothing",),
    )
    reference: str = _loss(
        "cached",
        "score each pair once, before training, or in every step",
        choices=("cached", "live"),
        trl=("precompute_ref_log_probs",),
    )
    reference_model: str | None = _loss(None, "default: the model that training starts from", metavar="MODEL")
    epochs: float = _training(1.0, "passes over the pairs", within="(0, inf)", metavar="N", trl=("num_train_epochs",))
    max_steps: int | None = _training(
        None, "optimizer steps, instead of --epochs", within="(0, inf)", trl=("max_steps",)
    )
    lr: float | None = _training(
        None,
        "learning rate (default 1e-5 with LoRA, 1e-6 without)",
        within="(0, inf)",
        metavar="LR",
        trl=("learning_rate",),
    )
    schedule: str = _training("constant", "of the learning rate", choices=SCHEDULES, trl=("lr_scheduler_type",))
    warmup: float = _training(
        0.0,
        "share of steps",
        within="[0, 1)",
        expected="a share of the steps, from 0 to less than 1",
        metavar="S",
        trl=("warmup_steps", "warmup_ratio"),
    )
    batch_size: int = _training(32, "pairs an optimizer step", within="(0, inf)", trl=("gradient_accumulation_steps",))
    micro_batch: int = _training(
        4,
        "pairs a forward pass, two answers each",
        within="(0, inf)",
        trl=("per_device_train_batch_size", "per_device_eval_batch_size"),
    )
    lora_rank: int = _training(0, "of all linear layers; 0: all weights", within="[0, inf)", metavar="R")
    lora_alpha: int = LORA_ALPHA()
    gradient_checkpointing: bool = _training(
        False, "recompute activations: less memory, more time", trl=("gradient_checkpointing",)
    )
    seed: int = _training(
        1,
        "of the order of pairs, which is that of main_ppo with data.seed, and of LoRA",
        within="[0, inf)",
        trl=("seed", "data_seed"),
    )
    dtype: str = DTYPE()
    device: str = DEVICE()
    save_steps: int = SAVE_STEPS()
    eval_steps: int = _training(
        0,
        "between measurements on --val (default: before and after training only)",
        within="[0, inf)",
        trl=("eval_steps", "eval_strategy", "eval_on_start"),
    )

    def __post_init__(self) -> None:
        if self.lr is None:
            object.__setattr__(self, "lr", 1e-5 if self.lora_rank else 1e-6)

    def check_together(self) -> None:
        """Raises TrainingError for what cannot work together, or what TRL and our trainer would read differently."""
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

"""The settings of `verl-aiops train-rm`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from functools import partial

from verl_aiops.settings import setting
from verl_aiops.trl.options import DATA, DEVICE, DTYPE, LORA_ALPHA, SAVE_STEPS, TrainingSettings

__all__ = ["RewardTraining"]

_files, _training = (partial(setting, group=group) for group in ("files", "training"))
_positive = partial(_training, within="(0, inf)")
_SHARE = {"within": "[0, 1)", "expected": "a share from 0 to 1", "metavar": "S"}


@dataclass(frozen=True)
class RewardTraining(TrainingSettings):
    """What decides the result of a run; ``trl`` are further options of TRL's, as on its command line."""

    data: tuple[str, ...] = DATA()
    model: str = _files(
        MISSING,
        "folder or hub name of the model to start from; its tokenizer needs a chat template",
        trl=("model_init_kwargs", "trust_remote_code", "chat_template_path", "eos_token", "pad_token"),
    )
    val: tuple[str, ...] = _files((), "held-out pairs (default: a share of --data)", metavar="FILE")
    columns: str | None = _files(
        None, "columns of other names: prompt=question,chosen=better (default: none)", metavar="N=C,N=C"
    )
    val_share: float = _files(0.1, "of the groups that are held out", **_SHARE)
    epochs: float = _positive(1.0, "passes over the pairs", metavar="N", trl=("num_train_epochs", "max_steps"))
    lr: float | None = _positive(
        None, "learning rate (default 1e-4 with LoRA, 1e-5 without)", metavar="LR", trl=("learning_rate",)
    )
    batch_size: int = _positive(8, "pairs a forward pass", trl=("per_device_train_batch_size",))
    grad_accum: int = _positive(1, "batches an optimizer step", trl=("gradient_accumulation_steps",))
    warmup: float = _training(0.05, "share of steps", trl=("warmup_steps", "warmup_ratio"), **_SHARE)
    max_length: int = _positive(2048, "tokens of a conversation", trl=("max_length",))
    max_too_long_share: float = _training(0.1, "of pairs that may be longer, which are left out and counted", **_SHARE)
    lora_rank: int = _training(
        16, "of all linear layers; 0: all weights", within="[0, inf)", expected="a number, 0 or more", metavar="R"
    )
    lora_alpha: int = LORA_ALPHA()
    center: float | None = _training(
        0.01,
        "coefficient of the term that keeps rewards around 0",
        within="[0, inf)",
        option="center_rewards",
        metavar="C",
        trl=("center_rewards_coefficient",),
    )
    margin: float = _training(
        0.0, "lead that every chosen answer should have; a column margin goes before it", within="[0, inf)", metavar="M"
    )
    seed: int = _training(
        0, "of the score head, the order of pairs, and the split", within="[0, inf)", trl=("seed", "data_seed")
    )
    dtype: str = DTYPE()
    device: str = DEVICE()
    save_steps: int = SAVE_STEPS()

    def __post_init__(self) -> None:
        if self.lr is None:
            object.__setattr__(self, "lr", 1e-4 if self.lora_rank else 1e-5)

"""What each task's command line is made of. Data: a new task is one entry of `TASKS`, a new option one of `OPTIONS`.

The defaults of a run stand where the stock command finds them too: in the presets (`config/verl_aiops`) and in what is
filled in before Ray starts (`trainers/preflight/defaults.py`). Here is what only a first run needs, and, for verl's SFT
trainer, which reads no preset of ours, what `examples/run_sft.sh` sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["BACKENDS", "OPTIONS", "TASKS", "Column", "Option", "Task"]


class Option(NamedTuple):
    """One option: what is read, how it is shown, and what it means. `many`: it may be given several times."""

    kind: type
    metavar: str
    meaning: str
    many: bool = False
    choices: tuple[str, ...] = ()


OPTIONS: dict[str, Option] = {
    "model": Option(str, "M", "folder or hub name of the model to start from"),
    "data": Option(
        str, "F", "training file, or ORG/NAME[:SPLIT] of a data set on a hub; several by several --data", many=True
    ),
    "val": Option(str, "F", "held-out file, or ORG/NAME[:SPLIT], measured on the way and at the end", many=True),
    "out": Option(str, "D", "folder of the run: checkpoints, model, metrics.jsonl, tensorboard/, train.log"),
    "lora_rank": Option(int, "R", "rank of LoRA; 0 trains all weights (default 0; of `rm --backend trl` 16)"),
    "gpus": Option(int, "N", "GPUs of this machine; 0 trains on the CPU (default: 1 where there is one, else 0)"),
    "engine": Option(
        str, "E", "what generates the answers (default sglang, and hf on a CPU)", choices=("sglang", "vllm", "hf")
    ),
    "lr": Option(float, "X", "learning rate"),
    "batch_size": Option(int, "N", "examples a step"),
    "epochs": Option(float, "N", "passes over the data"),
    "steps": Option(int, "N", "steps in all, in place of --epochs"),
    "columns": Option(str, "N=C,N=C", "columns of other names: prompt=question,chosen=better,system=persona"),
    "push": Option(str, "OWNER/NAME", "upload the trained model to the hub at the end, into a private repository"),
}

Rows = tuple[tuple[str, object], ...]


class Column(NamedTuple):
    """A figure of a step's line: the first of `keys` (patterns) that was logged, as `form` shows it."""

    label: str
    keys: tuple[str, ...]
    form: str = ".3f"


@dataclass(frozen=True)
class Task:
    """One command.

    Attributes:
        summary, sample: for ``--help``; `sample` is a data file's name in the examples.
        program: the arguments of Python before the settings; ``{workers}`` is the number of processes.
        presets: groups of Hydra, in their order; none for a trainer that reads none.
        keys: the trainer's keys of each option. An option that is not here the task does not have.
        required: options that must be given.
        fixed: settings of every run.
        validated, unvalidated: settings of a run with ``--val``, and without.
        lora, full: settings of a run with LoRA, and of one that trains all weights. ``{lora_alpha}`` is twice the rank,
            so that the scale of LoRA's update does not depend on the rank.
        cpu: settings of a run without a GPU; `cpu_preset`: the preset that stands for them.
        flags: settings are written as options (``--key value``), not as Hydra's ``key=value``.
        columns: what a step's line shows; `held_out` likewise, of a validation.
        model_from_checkpoint: the run leaves its model in the last checkpoint, whose copy becomes OUT/huggingface.
        policy_in: folder of the policy's shards in a checkpoint, of a trainer that exports none; they are merged at the
            end.
        method: what the card of such a model calls the training.
        nan_means: what it says of a validation that it is not a number.
        shows: beginnings of lines of the trainer's that the console shows beside those of this package.
        logger: the key that names the trackers; empty where there are none.
        log_beside: the log is OUT.log, as the trainer refuses a folder with files that are not its own.
    """

    summary: str
    sample: str
    program: tuple[str, ...]
    keys: dict[str, tuple[str, ...]]
    columns: tuple[Column, ...]
    held_out: tuple[Column, ...]
    presets: tuple[str, ...] = ()
    required: tuple[str, ...] = ("model", "data", "out")
    fixed: Rows = ()
    validated: Rows = ()
    unvalidated: Rows = ()
    lora: Rows = ()
    full: Rows = ()
    cpu: Rows = ()
    cpu_preset: str = ""
    flags: bool = False
    model_from_checkpoint: bool = False
    policy_in: str = ""
    method: str = ""
    nan_means: str = ""
    shows: tuple[str, ...] = ()
    logger: str = "trainer.logger"
    log_beside: bool = False


_PPO = ("-m", "verl.trainer.main_ppo")
_MODEL = "actor_rollout_ref.model"
_PPO_KEYS = {
    "model": (f"{_MODEL}.path",),
    "data": ("data.train_files",),
    "val": ("data.val_files",),
    "out": ("trainer.default_local_dir",),
    "lora_rank": (f"{_MODEL}.lora_rank",),
    "gpus": ("trainer.n_gpus_per_node",),
    "lr": ("actor_rollout_ref.actor.optim.lr",),
    "batch_size": ("data.train_batch_size",),
    "epochs": ("trainer.total_epochs",),
    "steps": ("trainer.total_training_steps",),
    "push": (),  # after the run
}
_DPO_KEYS = {**_PPO_KEYS, "columns": ("data.{}_key",)}
_RL_KEYS = {**_PPO_KEYS, "engine": ("actor_rollout_ref.rollout.name",)}
_LORA = ((f"{_MODEL}.lora_alpha", "{lora_alpha}"),)
_RL = (("data.train_batch_size", 16),)
# RL on a CPU: the sizes of examples/run_grpo_mturn_cpu.sh, without the pass of a reference
_RL_CPU = (("data.train_batch_size", 8), ("actor_rollout_ref.rollout.n", 4))
_PAIRS = (Column("margin", ("rewards/margins",), "+.3f"), Column("acc", ("rewards/accuracies",), ".2f"))
_PAIRS_HELD_OUT = (
    Column("loss", ("val/loss",)),
    Column("margin", ("val/rewards/margins",), "+.3f"),
    Column("acc", ("val/rewards/accuracies",), ".2f"),
)
_REWARD = (
    Column("reward", ("score/mean", "critic/score/mean")),
    Column("right", ("reward/acc_main", "reward/acc"), ".2f"),
)
_RL_HELD_OUT = (
    Column("reward", (r"val-(core|aux)/.*/(score|reward)/mean@\d+",)),
    Column("right", (r"val-(core|aux)/.*/acc_main/mean@\d+", r"val-core/.*/acc/mean@\d+"), ".2f"),
    Column("json", (r"val-(core|aux)/.*/json_ok/mean@\d+",), ".2f"),
)

TASKS: dict[str, Task] = {
    "dpo": Task(
        "train on preference pairs by DPO (KTO, ranked answers, ...) with verl's main_ppo",
        "prefs",
        _PPO,
        _DPO_KEYS,
        (Column("loss", ("actor/loss",)), *_PAIRS),
        _PAIRS_HELD_OUT,
        presets=("dpo",),
        cpu_preset="cpu",
        fixed=(("data.train_batch_size", 16), ("data.max_prompt_length", 2048), ("data.max_response_length", 512)),
        unvalidated=(("data.val_files", None),),
        lora=_LORA,
    ),
    "online-dpo": Task(
        "train by DPO on pairs of the policy's own answers, ranked by the reward, with verl's main_ppo",
        "rl",
        _PPO,
        _RL_KEYS,
        (Column("loss", ("actor/loss",)), *_PAIRS, *_REWARD),
        _RL_HELD_OUT,
        presets=("online_dpo",),
        cpu_preset="cpu",
        required=("model", "data", "val", "out"),
        fixed=_RL,
        lora=_LORA,
        cpu=_RL_CPU,
    ),
    "grpo": Task(
        "train by GRPO with the triage reward, or one of your own, with verl's main_ppo",
        "rl",
        _PPO,
        _RL_KEYS,
        (
            *_REWARD,
            Column("json", ("reward/json_ok",), ".2f"),
            Column("loss", ("actor/pg_loss",), "+.4f"),
            Column("kl", ("actor/kl_loss",), ".4f"),
        ),
        _RL_HELD_OUT,
        presets=("grpo_mturn",),
        cpu_preset="cpu",
        required=("model", "data", "val", "out"),
        fixed=_RL,
        lora=_LORA,
        cpu=(*_RL_CPU, ("actor_rollout_ref.actor.use_kl_loss", False)),
        policy_in="actor",
        method="grpo",
    ),
    "sft": Task(
        "fine-tune on conversations with verl's SFT trainer",
        "sft",
        ("-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node={workers}")
        + ("-m", "verl.trainer.sft_trainer"),
        {
            **{name: _PPO_KEYS[name] for name in ("data", "val", "out", "gpus", "batch_size", "epochs", "steps")},
            "model": ("model.path",),
            "lora_rank": ("model.lora_rank",),
            "lr": ("optim.lr",),
            "push": (),
        },
        (Column("loss", ("train/loss",)), Column("lr", ("train/lr",), ".2e")),
        (Column("loss", ("val/loss",)),),
        fixed=(
            ("data.messages_key", "messages"),
            ("data.train_batch_size", 16),
            ("data.micro_batch_size_per_gpu", 4),
            ("data.use_dynamic_bsz", False),
            ("data.max_length", 2048),
            ("data.num_workers", 0),
            ("model.use_remove_padding", False),  # packed rows need flash-attn
            ("+model.override_config.attn_implementation", "sdpa"),
            ("engine.use_torch_compile", False),
            ("checkpoint.save_contents", ["model", "optimizer", "extra", "hf_model"]),
            ("trainer.total_epochs", 3),
            ("trainer.save_freq", 50),
            ("trainer.max_ckpt_to_keep", 2),
            ("trainer.project_name", "verl-aiops"),
            ("trainer.experiment_name", "sft"),
            ("trainer.logger", ["console", "file", "tensorboard"]),
        ),
        validated=(("trainer.test_freq", "after_each_epoch"),),
        unvalidated=(("data.val_files", None), ("trainer.test_freq", -1)),
        lora=(("optim.lr", 2e-4), ("model.lora_alpha", "{lora_alpha}")),
        full=(("optim.lr", 2e-5),),
        cpu=(
            ("trainer.device", "cpu"),
            ("engine.strategy", "fsdp2"),
            ("model.enable_gradient_checkpointing", False),
            ("+engine.mixed_precision", {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}),
        ),
        # verl's trainer validates whole batches only
        nan_means="(fewer held-out rows than a batch: nothing was measured; choose a smaller --batch-size)",
        model_from_checkpoint=True,
        method="sft",
    ),
    "rm": Task(
        "train a reward model on preference pairs or ranked groups, with verl's main_ppo (or TRL)",
        "prefs",
        _PPO,
        _DPO_KEYS,
        (Column("loss", ("actor/loss",)), *_PAIRS, Column("std", ("rewards/std",), ".2f")),
        _PAIRS_HELD_OUT,
        presets=("rm",),
        cpu_preset="cpu",
        fixed=(("data.train_batch_size", 16), ("data.max_prompt_length", 2048), ("data.max_response_length", 512)),
        unvalidated=(("data.val_files", None),),
        lora=(*_LORA, ("actor_rollout_ref.actor.optim.lr", 1e-4)),
    ),
}

_RM_BY_TRL = Task(
    "train a reward model on preference pairs, by train-rm (TRL)",
    "prefs",
    ("-m", "verl_aiops.cli", "train-rm", "--backend", "trl"),
    {
        **{name: (name,) for name in ("model", "data", "val", "out", "lr", "epochs", "batch_size")},
        "lora_rank": ("lora_rank",),
        "columns": ("columns",),
        "gpus": (),  # it takes one, or none
    },
    (Column("loss", ("actor/loss",)), Column("margin", ("margin",), "+.3f"), Column("acc", ("accuracy",), ".2f")),
    (),
    cpu=(("device", "cpu"),),
    flags=True,
    shows=("reward model: ", "going on from "),
    logger="",
    log_beside=True,
)
# by command: what trains, by the name that `--backend` takes; the first is the default
BACKENDS: dict[str, dict[str, Task]] = {"rm": {"verl": TASKS["rm"], "trl": _RM_BY_TRL}}

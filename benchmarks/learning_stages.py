"""What a stage of `learning.py` runs: the commands, from a recipe's settings.

Training goes through verl's own entry points (`verl.trainer.main_ppo`, `verl.trainer.sft_trainer` by
examples/run_sft.sh), everything else through `verl-aiops`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learning_data import SPLIT, options, whole

__all__ = [
    "CUDA",
    "SFT_EXAMPLE",
    "collect_model",
    "eval_arguments",
    "keep_asked",
    "pairs_arguments",
    "sft_by_verl",
    "train_command",
]

SFT_EXAMPLE = Path(__file__).parents[1] / "examples" / "run_sft.sh"
# Tokens: of a prompt, and of all that follows it. Longer rows are dropped and counted.
_LONGEST_PROMPT, _LONGEST_ANSWER = 1536, 512
_ACTOR, _ROLLOUT, _MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model"))
# A machine with GPUs and no flash-attn, with several runs side by side: few processes, little shared memory each.
CUDA = (
    f"{_MODEL}.use_remove_padding=False",
    f"++{_MODEL}.override_config.attn_implementation=sdpa",
    f"{_MODEL}.enable_gradient_checkpointing=False",
    f"{_ACTOR}.use_torch_compile=False",
    f"{_ACTOR}.fsdp_config.use_torch_compile=False",
    f"{_ROLLOUT}.agent.num_workers=2",
    "data.dataloader_num_workers=0",
    "reward.num_workers=1",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "ray_kwargs.ray_init.num_cpus=16",
    "++ray_kwargs.ray_init.include_dashboard=False",
    "++ray_kwargs.ray_init.object_store_memory=2000000000",
)


def train_command(
    stage: Mapping[str, Any], recipe: Mapping[str, Any], *, model: Path, data: Path, out: Path, seed: int, device: str
) -> list[str]:
    """`main_ppo` for a stage of any kind but SFT by verl's trainer.

    Args:
        model: folder of the model to start from; ``data``: what is trained on; ``out``: folder of the checkpoints.
    """
    preset = {"sft": "dpo", "dpo": "dpo", "online_dpo": "online_dpo", "grpo": "grpo_mturn"}[stage["kind"]]
    rollout = stage["kind"] in ("online_dpo", "grpo")
    micro = stage["micro-batch"] or stage["batch"]
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        f"+verl_aiops=[{preset},cpu]" if device == "cpu" else f"+verl_aiops={preset}",
        f"data.train_files={data}",
        f"data.seed={seed}",
        f"data.train_batch_size={stage['batch']}",
        f"data.max_prompt_length={_LONGEST_PROMPT}",
        f"data.max_response_length={_LONGEST_ANSWER}",
        f"{_MODEL}.path={model}",
        f"{_ACTOR}.ppo_micro_batch_size_per_gpu={micro}",
        f"{_ACTOR}.optim.lr={stage['lr']}",
        f"{_ACTOR}.optim.lr_warmup_steps_ratio={stage['warmup']}",
        f"{_ACTOR}.optim.lr_scheduler_type={stage['schedule']}",
        "trainer.n_gpus_per_node=1",
        "trainer.nnodes=1",
        f"trainer.total_epochs={stage['epochs']}",
        *([f"trainer.total_training_steps={stage['steps']}"] if stage["steps"] else []),
        "trainer.test_freq=-1",
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir={out}",
        *(() if device == "cpu" else CUDA),
        *(_with_rollouts(stage, recipe, data, micro, seed) if rollout else _without(stage)),
        *stage["overrides"],
    ]


def _without(stage: Mapping[str, Any]) -> list[str]:
    """DPO on a file; SFT is the same trainer with the loss of the chosen answers alone."""
    common = ["data.truncation=drop", f"{_ACTOR}.checkpoint.save_contents=[model,extra]", "trainer.save_freq=-1"]
    if stage["kind"] == "sft":
        return [*common, "algorithm.dpo.loss_type=sft"]
    return [*common, *_loss(stage, "algorithm.dpo"), f"algorithm.dpo.comparisons={stage['comparisons']}"]


def _loss(stage: Mapping[str, Any], section: str) -> list[str]:
    losses, weights = (",".join(map(str, stage[key])) for key in ("loss", "loss-weights"))
    return [f"{section}.beta={stage['beta']}", f"{section}.loss_type=[{losses}]", f"{section}.loss_weights=[{weights}]"]


def _with_rollouts(stage: Mapping[str, Any], recipe: Mapping[str, Any], data: Path, micro: int, seed: int) -> list[str]:
    arguments = [
        f"data.val_files={data}",  # verl wants one; nothing is validated on it
        "trainer.val_before_train=False",
        # the last step is saved only where steps are
        f"trainer.save_freq={stage['save-every'] or 1_000_000}",
        "trainer.max_actor_ckpt_to_keep=1",
        f"{_ROLLOUT}.name={stage['rollout']}",
        f"{_ROLLOUT}.n={stage['n']}",
        f"{_ROLLOUT}.temperature={stage['temperature']}",
        f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu={micro}",
        f"++{_ROLLOUT}.custom.aiops_mturn.round_tokens=[{recipe['ask']['round-tokens']}]",
        f"++{_ROLLOUT}.seed={seed}",
    ]
    if stage["kind"] == "online_dpo":
        gap = f"algorithm.online_dpo.min_gap={stage['min-gap']}"
        return [*arguments, *_loss(stage, "algorithm.online_dpo"), gap]
    kl = stage["kl"]
    contents = f"{_ACTOR}.checkpoint.save_contents=[model,optimizer,extra,hf_model]"
    return [*arguments, contents, f"{_ACTOR}.use_kl_loss={bool(kl)}", f"{_ACTOR}.kl_loss_coef={kl or 0.001}"]


def sft_by_verl(stage: Mapping[str, Any], *, seed: int, device: str) -> list[str]:
    """verl's own SFT trainer, by the example; model, data and folder are in its environment."""
    more = [f"trainer.total_training_steps={stage['steps']}"] if stage["steps"] else []
    return [
        *("bash", str(SFT_EXAMPLE)),
        f"data.train_batch_size={stage['batch']}",
        f"data.micro_batch_size_per_gpu={stage['micro-batch'] or stage['batch']}",
        f"data.seed={seed}",
        f"optim.lr={stage['lr']}",
        f"optim.lr_warmup_steps_ratio={stage['warmup']}",
        f"optim.lr_scheduler_type={stage['schedule']}",
        f"trainer.total_epochs={stage['epochs']}",
        f"trainer.seed={seed}",
        "trainer.test_freq=-1",
        "trainer.logger=[console]",
        *([] if device == "cpu" else ["model.enable_gradient_checkpointing=False"]),
        *more,
        *stage["overrides"],
    ]


def collect_model(kind: str, run: Path, target: Path) -> None:
    """Keep of a run's folder nothing but its model, as `target`."""
    if kind == "grpo":
        step = (run / "latest_checkpointed_iteration.txt").read_text().strip()
        found = run / f"global_step_{step}" / "actor" / "huggingface"
    else:
        found = run / "huggingface"
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(found, target)
    for folder in run.glob("global_step_*"):
        shutil.rmtree(folder)


def eval_arguments(
    recipe: Mapping[str, Any], model: Path, data: Path, out: Path, *more: object, last_round: bool = False
) -> list[str]:
    """`verl-aiops eval` of a model; ``last_round``: of data that ask for the last round alone."""
    ask = recipe["ask"]
    tokens = ask["round-tokens"].rpartition(",")[2] if last_round else ask["round-tokens"]
    arguments = ["eval", "--model", model, "--data", data, "--out", out, "--round-tokens", tokens]
    return [str(one) for one in (*arguments, "--concurrency", ask["concurrency"], *more)]


def pairs_arguments(
    stage: Mapping[str, Any], recipe: Mapping[str, Any], answers: list[Path], data: Path, out: Path
) -> list[str]:
    """`build-prefs` for a stage of kind `dpo`.

    Args:
        answers: folders of the sampled answers; ``data``: folder of the recipe's files.

    Of sampled answers, told the split of the data so that a held-out fault is refused; or near misses of the truth,
    after the reference analysis or after those of the answers.
    """
    build, asked = recipe["data"]["build"], recipe["data"]["asked"]["simulate"]
    pairs = f"--pairs-per-incident={stage['pairs-per-incident']}"
    arguments = ["build-prefs", "--out", str(out), "--overwrite"]
    near = [*arguments, "--incidents", str(data / ("asked.jsonl" if asked else "all.jsonl")), pairs]
    if stage["form"] == "near_misses":
        return [*near, *(whole(build) if asked else options(build))]
    if stage["form"] == "near_misses_own":
        # held-out incidents have no analysis, and are left out by that
        return [*near, *whole(build), "--analyses", *map(str, answers)]
    split = options({key: build[key] for key in SPLIT if key in build})
    form = {"pairs": [pairs], "groups": ["--groups"]}[stage["form"]]
    return [*arguments, "--from-generations", *map(str, answers), *form, *split]


def keep_asked(pairs: Path, asked: Sequence[Path]) -> None:
    """Leave in a file of pairs those about the incidents of these files of rows."""
    import pyarrow.parquet as pq

    groups = {row["extra_info"]["group"] for file in asked for row in pq.read_table(file).to_pylist()}
    table = pq.read_table(pairs)
    pq.write_table(table.filter([group in groups for group in table["group"].to_pylist()]), pairs)

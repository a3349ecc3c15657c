#!/usr/bin/env bash
# Offline DPO on GPUs, through verl's own main_ppo. One node as it stands; for several see docs/dpo.md, "Several machines".
#
#   MODEL=Qwen/Qwen2.5-7B-Instruct TRAIN=prefs.parquet VAL=prefs.val.parquet GPUS=8 OUT=runs/dpo \
#     bash examples/run_dpo.sh [key=value ...]
#
# 7 B with LoRA on one GPU (what it takes: docs/performance.md, "What a 7 B model takes"):
#   MODEL=... TRAIN=... VAL=... GPUS=1 bash examples/run_dpo.sh actor_rollout_ref.model.lora_rank=32 \
#     actor_rollout_ref.model.lora_alpha=64 actor_rollout_ref.actor.optim.lr=5e-6
# and with +actor_rollout_ref.model.lora.base_format=nf4 behind it, its base in four bits (QLoRA: docs/models.md)
#
# Arguments are Hydra overrides; later ones win. `--cfg job` prints the whole configuration and stops.
set -euo pipefail
. "$(dirname "$0")/hydra_values.sh"
MODEL=${MODEL:?path or hub name of the model to start from, best after SFT}
TRAIN=${TRAIN:?preference file, parquet or JSONL}
VAL=${VAL:?held-out preference file}
GPUS=${GPUS:-8}
NODES=${NODES:-1}
OUT=${OUT:-runs/dpo}
OUT=$(home "$OUT")

args=(
  '+verl_aiops=dpo'

  # --- data: columns prompt, chosen, rejected (texts or message lists) --------------------------------------------------
  data.train_files="$(files "$TRAIN")"
  data.val_files="$(files "$VAL")"
  data.train_batch_size=64            # pairs per step
  data.max_prompt_length=2048         # tokens; a longer pair is refused ...
  data.max_response_length=512
  data.truncation=error               # ... or: left (cuts prompts, never answers), drop (counts what it leaves out)
  data.shuffle=True
  data.seed=1

  # --- objective -------------------------------------------------------------------------------------------------------
  algorithm.dpo.beta=0.1              # how far the policy may leave the reference; 0.01 to 0.5
  algorithm.dpo.loss_type=sigmoid     # or ipo, hinge, simpo, apo_zero, ...; [sigmoid,sft] with loss_weights=[1.0,0.2]
  algorithm.dpo.reference=cached      # each pair is scored once and kept; live scores every step
  # algorithm.dpo.reference_path=...  # another model as reference
  # algorithm.dpo.reference=live algorithm.dpo.reference_sync_steps=100   # TR-DPO

  # --- model and optimizer ----------------------------------------------------------------------------------------------
  actor_rollout_ref.model.path="$(text "$MODEL")"
  actor_rollout_ref.model.enable_gradient_checkpointing=True
  # actor_rollout_ref.model.lora_rank=32 actor_rollout_ref.model.lora_alpha=64   # the base without adapters is the reference
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr=5e-7
  actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1
  actor_rollout_ref.actor.optim.lr_scheduler_type=cosine
  actor_rollout_ref.actor.ppo_mini_batch_size=64             # pairs per optimizer step, over all GPUs
  # micro-batches by tokens; the budget holds whole pairs, so at least 2 x (prompt + response) tokens
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
  # actor_rollout_ref.actor.fsdp_config.param_offload=True actor_rollout_ref.actor.fsdp_config.optimizer_offload=True

  # --- run --------------------------------------------------------------------------------------------------------------
  trainer.n_gpus_per_node="$GPUS"
  trainer.nnodes="$NODES"
  trainer.total_epochs=1
  trainer.test_freq=50
  trainer.save_freq=200               # a killed run goes on from the last checkpoint in OUT when started again
  trainer.max_actor_ckpt_to_keep=2
  trainer.default_local_dir="$(text "$OUT")"
  trainer.logger='[console,tensorboard]'                     # add wandb for Weights & Biases
)
exec python3 -m verl.trainer.main_ppo "${args[@]}" "$@"

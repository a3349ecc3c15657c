#!/usr/bin/env bash
# KTO: single answers with a yes or a no, on GPUs, through verl's own main_ppo. One node as it stands; for several see
# docs/dpo.md, "Several machines".
#
#   MODEL=Qwen/Qwen2.5-7B-Instruct TRAIN=feedback.jsonl VAL=feedback.val.jsonl GPUS=8 OUT=runs/kto \
#     bash examples/run_kto.sh [key=value ...]
#
# Arguments are Hydra overrides; later ones win. `--cfg job` prints the whole configuration and stops.
set -euo pipefail
. "$(dirname "$0")/hydra_values.sh"
MODEL=${MODEL:?path or hub name of the model to start from, best after SFT}
TRAIN=${TRAIN:?file of answers with labels, parquet or JSONL}
VAL=${VAL:?held-out file of the same kind}
GPUS=${GPUS:-8}
NODES=${NODES:-1}
OUT=${OUT:-runs/kto}
OUT=$(home "$OUT")

args=(
  '+verl_aiops=kto'

  # --- data: columns prompt, completion (texts or message lists), label (true or false); pairs give a yes and a no --------
  data.train_files="$(files "$TRAIN")"
  data.val_files="$(files "$VAL")"
  data.train_batch_size=64            # answers per step
  data.max_prompt_length=2048         # tokens; a longer answer is refused ...
  data.max_response_length=512
  data.truncation=error               # ... or: left (cuts prompts, never answers), drop (counts what it leaves out)
  data.shuffle=True
  data.seed=1

  # --- objective -------------------------------------------------------------------------------------------------------
  algorithm.dpo.beta=0.1              # how far the policy may leave the reference; 0.01 to 0.5
  algorithm.dpo.loss_type=kto         # or apo_zero_unpaired, bco; mixed with pairs: [sigmoid,kto]
  # weights by the numbers of yes and no: the run says at its start which ones the paper recommends
  algorithm.dpo.desirable_weight=1.0
  algorithm.dpo.undesirable_weight=1.0
  algorithm.dpo.reference=cached      # each answer is scored once and kept; live scores every step
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
  actor_rollout_ref.actor.ppo_mini_batch_size=64             # answers per optimizer step, over all GPUs: the KL is a mean over them
  # micro-batches by tokens; the budget holds an answer and that for the KL, so at least 2 x (prompt + response) tokens
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

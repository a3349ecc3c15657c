#!/usr/bin/env bash
# Online DPO whose preferences come from a reward model and the triage rule together, on a machine without a GPU.
#
#   bash examples/train_rm_cpu.sh
#   RM=runs/rm MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet OUT=runs/online_dpo_rm \
#     bash examples/run_online_dpo_rm_cpu.sh [key=value ...]
OUT=${OUT:-runs/online_dpo_rm} PRESET=online_dpo,combined exec bash "$(dirname "$0")/run_grpo_rm_cpu.sh" \
  reward.combined.mode=rm_tiebreak \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 actor_rollout_ref.actor.optim.lr=5e-6 "$@"

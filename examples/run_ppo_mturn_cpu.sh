#!/usr/bin/env bash
# PPO with a critic on a machine without a GPU: examples/run_grpo_mturn_cpu.sh with one answer per prompt.
#
#   MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet OUT=runs/ppo \
#     bash examples/run_ppo_mturn_cpu.sh [key=value ...]
OUT=${OUT:-runs/ppo} PRESET=ppo_mturn exec bash "$(dirname "$0")/run_grpo_mturn_cpu.sh" \
  data.train_batch_size=32 actor_rollout_ref.rollout.n=1 critic.ppo_micro_batch_size_per_gpu=8 "$@"

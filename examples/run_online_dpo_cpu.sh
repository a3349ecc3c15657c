#!/usr/bin/env bash
# Online DPO with the triage reward on a machine without a GPU: the policy answers each prompt n times, the reward ranks the
# answers, the pairs train the policy at once.
#
#   verl-aiops build-rl --out data/rl.parquet --difficulty easy --max-chars 300 --max-candidates 5
#   MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet OUT=runs/online_dpo \
#     bash examples/run_online_dpo_cpu.sh [key=value ...]
OUT=${OUT:-runs/online_dpo} PRESET=online_dpo exec bash "$(dirname "$0")/run_grpo_mturn_cpu.sh" \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 actor_rollout_ref.actor.optim.lr=5e-6 "$@"

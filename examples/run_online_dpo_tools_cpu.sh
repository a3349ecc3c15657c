#!/usr/bin/env bash
# Online DPO on investigations with tools on a machine without a GPU: the policy investigates each case n times, the reward
# ranks the investigations, the pairs train the policy at once.
#
#   verl-aiops build-rl --task investigation --out data/tools.parquet --difficulty easy --answer-chars 400
#   MODEL=runs/tools_sft/huggingface TRAIN=data/tools.parquet VAL=data/tools.val.parquet OUT=runs/online_dpo_tools \
#     bash examples/run_online_dpo_tools_cpu.sh [key=value ...]
#
# Start from a model after SFT, as run_grpo_tools_cpu.sh shows.
OUT=${OUT:-runs/online_dpo_tools} PRESET=online_dpo exec bash "$(dirname "$0")/run_grpo_tools_cpu.sh" \
  actor_rollout_ref.actor.optim.lr=5e-6 "$@"

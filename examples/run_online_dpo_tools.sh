#!/usr/bin/env bash
# Online DPO on investigations with tools on GPUs (SGLang; ENGINE=vllm for vLLM), through verl's own main_ppo.
#
#   verl-aiops build-rl --task investigation --out data/tools.parquet --num-incidents 5000
#   MODEL=runs/tools_sft/huggingface TRAIN=data/tools.parquet VAL=data/tools.val.parquet GPUS=8 OUT=runs/online_dpo_tools \
#     bash examples/run_online_dpo_tools.sh [key=value ...]
OUT=${OUT:-runs/online_dpo_tools} PRESET=online_dpo exec bash "$(dirname "$0")/run_grpo_tools.sh" \
  algorithm.online_dpo.rule=best_vs_worst \
  algorithm.online_dpo.min_gap=0.1 \
  algorithm.online_dpo.beta=0.1 \
  actor_rollout_ref.rollout.n=4 \
  actor_rollout_ref.actor.optim.lr=5e-7 \
  "$@"

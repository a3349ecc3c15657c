#!/usr/bin/env bash
# PPO with a critic and the triage reward on two-round data: examples/run_grpo_mturn.sh with one answer per prompt.
#
#   MODEL=Qwen/Qwen2.5-7B-Instruct TRAIN=data/rl.parquet VAL=data/rl.val.parquet GPUS=8 OUT=runs/ppo \
#     bash examples/run_ppo_mturn.sh [key=value ...]
OUT=${OUT:-runs/ppo} BATCH=${BATCH:-256} PRESET=ppo_mturn exec bash "$(dirname "$0")/run_grpo_mturn.sh" "$@"

#!/usr/bin/env bash
# GRPO with the triage reward on two-round data, with vLLM: examples/run_grpo_mturn.sh with another engine.
#
#   MODEL=Qwen/Qwen2.5-7B-Instruct TRAIN=data/rl.parquet VAL=data/rl.val.parquet GPUS=8 OUT=runs/grpo \
#     bash examples/run_grpo_mturn_vllm.sh [key=value ...]
ENGINE=vllm exec bash "$(dirname "$0")/run_grpo_mturn.sh" "$@"

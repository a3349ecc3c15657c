#!/usr/bin/env bash
# Online DPO with the triage reward on GPUs (SGLang; ENGINE=vllm for vLLM), through verl's own main_ppo.
#
#   verl-aiops build-rl --out data/rl.parquet --num-incidents 5000 --difficulty easy
#   MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet GPUS=8 OUT=runs/online_dpo \
#     bash examples/run_online_dpo.sh [key=value ...]
#
# rule                  best_vs_worst, all_pairs, random_pair, best_vs_random
# min_gap               smallest difference of rewards that makes a pair
# reference_sync_steps  move the reference every so many steps (TR-DPO); 0 keeps the initial policy
# ppo_mini_batch_size   pairs per optimizer step
OUT=${OUT:-runs/online_dpo} PRESET=online_dpo exec bash "$(dirname "$0")/run_grpo_mturn.sh" \
  algorithm.online_dpo.rule=best_vs_worst \
  algorithm.online_dpo.min_gap=0.1 \
  algorithm.online_dpo.beta=0.1 \
  actor_rollout_ref.rollout.n=4 \
  actor_rollout_ref.actor.optim.lr=5e-7 \
  "$@"

#!/usr/bin/env bash
# Self-play (SPIN, arXiv 2401.01335): the data's own answer is chosen, the policy's is rejected. No reward ranks anything;
# validation still uses it. The reference moves once per pass over the data.
#
#   verl-aiops build-rl --out data/rl.parquet --num-incidents 5000 --difficulty easy
#   MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet GPUS=8 STEPS_PER_PASS=70 \
#     bash examples/run_online_dpo_spin.sh [key=value ...]
OUT=${OUT:-runs/spin} PRESET=online_dpo exec bash "$(dirname "$0")/run_grpo_mturn.sh" \
  algorithm.online_dpo.rule=self_play \
  algorithm.online_dpo.reference_sync_steps="${STEPS_PER_PASS:-70}" \
  actor_rollout_ref.rollout.n=1 \
  actor_rollout_ref.actor.optim.lr=5e-7 \
  "$@"

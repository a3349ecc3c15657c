#!/usr/bin/env bash
# Online DPO whose preferences come from a reward model and the triage rule together; otherwise run_grpo_rm.sh.
#
#   RM=runs/rm MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet GPUS=8 OUT=runs/online_dpo_rm \
#     bash examples/run_online_dpo_rm.sh [key=value ...]
#
# rm_tiebreak: the rule decides; the reward model orders answers that the rule finds equal, which else make no pair
OUT=${OUT:-runs/online_dpo_rm} PRESET='[online_dpo,combined]' exec bash "$(dirname "$0")/run_grpo_rm.sh" \
  reward.combined.mode=rm_tiebreak \
  algorithm.online_dpo.rule=best_vs_worst \
  algorithm.online_dpo.beta=0.1 \
  actor_rollout_ref.rollout.n=4 \
  actor_rollout_ref.actor.optim.lr=5e-7 \
  "$@"

#!/usr/bin/env bash
# GRPO with a reward model and the triage rule together on a machine without a GPU: policy and reward model both in the
# embedded rollout `hf`.
#
#   bash examples/train_rm_cpu.sh
#   RM=runs/rm MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet OUT=runs/grpo_rm \
#     bash examples/run_grpo_rm_cpu.sh [key=value ...]
#
# mode: rule_only, rm_only, weighted, gated, rm_tiebreak; docs/reward_model.md has the formulas
. "$(dirname "$0")/hydra_values.sh"
RM=${RM:-runs/rm}
OUT=${OUT:-runs/grpo_rm} PRESET=${PRESET:-grpo_mturn,combined} exec bash "$(dirname "$0")/run_grpo_mturn_cpu.sh" \
  reward.reward_model.model_path="$(text "$RM")" \
  reward.combined.mode=gated \
  reward.combined.normalise=stored \
  "$@"

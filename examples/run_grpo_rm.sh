#!/usr/bin/env bash
# GRPO with a reward model and the triage rule together (SGLang; ENGINE=vllm for vLLM), through verl's own main_ppo.
#
#   RM=runs/rm MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet GPUS=8 OUT=runs/grpo_rm \
#     bash examples/run_grpo_rm.sh [key=value ...]
#
# RM: a folder that examples/train_rm.sh wrote, or any sequence classification model with one label and a chat template.
#
# mode                  rule_only, rm_only, weighted, gated, rm_tiebreak: docs/reward_model.md has the formulas
# normalise             stored: by the mean and deviation that train-rm measured on held-out pairs
# enable_resource_pool  True gives the reward model GPUs of its own (n_gpus_per_node, nnodes) and scores answers as they
#                       come; False shares the policy's, after generation
. "$(dirname "$0")/hydra_values.sh"
RM=${RM:?folder of the reward model, see examples/train_rm.sh}
OUT=${OUT:-runs/grpo_rm} PRESET=${PRESET:-'[grpo_mturn,combined]'} exec bash "$(dirname "$0")/run_grpo_mturn.sh" \
  reward.reward_model.model_path="$(text "$RM")" \
  reward.reward_model.enable_resource_pool=False \
  reward.reward_model.rollout.name="${ENGINE:-sglang}" \
  reward.reward_model.rollout.tensor_model_parallel_size=1 \
  reward.reward_model.rollout.gpu_memory_utilization=0.3 \
  reward.combined.mode=gated \
  reward.combined.rule_weight=0.5 \
  reward.combined.rm_weight=0.5 \
  reward.combined.normalise=stored \
  "$@"

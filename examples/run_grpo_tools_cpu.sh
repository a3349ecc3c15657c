#!/usr/bin/env bash
# GRPO on investigations with tools on a machine without a GPU, through verl's own main_ppo and the embedded rollout `hf`.
#
#   verl-aiops build-sft --task investigation --out data/tools_sft.parquet --difficulty easy --answer-chars 400
#   MODEL=models/SmolLM2-135M-Instruct TRAIN=data/tools_sft.parquet OUT=runs/tools_sft bash examples/run_sft.sh
#   verl-aiops build-rl --task investigation --out data/tools.parquet --difficulty easy --answer-chars 400
#   MODEL=runs/tools_sft/huggingface TRAIN=data/tools.parquet VAL=data/tools.val.parquet OUT=runs/grpo_tools \
#     bash examples/run_grpo_tools_cpu.sh [key=value ...]
#
# max_calls, turn_tokens, verdict_tokens    how much an investigation may ask and write (docs/investigation.md)
# max_response_length                       tokens of all messages, with what the tools return between them
# multi_turn.format                         how the model spells its calls: a tool parser of verl's
OUT=${OUT:-runs/grpo_tools} PRESET=${PRESET:-grpo_mturn},tools exec bash "$(dirname "$0")/run_grpo_mturn_cpu.sh" \
  data.train_batch_size=4 \
  data.max_prompt_length=1280 \
  data.max_response_length=1600 \
  actor_rollout_ref.rollout.multi_turn.format=hermes \
  actor_rollout_ref.rollout.custom.aiops_tools.max_calls=6 \
  actor_rollout_ref.rollout.custom.aiops_tools.turn_tokens=240 \
  actor_rollout_ref.rollout.custom.aiops_tools.verdict_tokens=240 \
  "$@"

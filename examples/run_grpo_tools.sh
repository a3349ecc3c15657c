#!/usr/bin/env bash
# GRPO on investigations with tools, through verl's own main_ppo and SGLang (ENGINE=vllm: vLLM, ENGINE=hf: small models).
#
#   verl-aiops build-rl --task investigation --out data/tools.parquet --num-incidents 5000
#   MODEL=Qwen/Qwen2.5-7B-Instruct TRAIN=data/tools.parquet VAL=data/tools.val.parquet GPUS=8 OUT=runs/grpo_tools \
#     bash examples/run_grpo_tools.sh [key=value ...]
#
# max_calls, turn_tokens, verdict_tokens    how much an investigation may ask and write (docs/investigation.md)
# max_response_length                       tokens of all messages, with what the tools return between them
# multi_turn.format                         how the model spells its calls: a tool parser of verl's
OUT=${OUT:-runs/grpo_tools} PRESET="[${PRESET:-grpo_mturn},tools]" exec bash "$(dirname "$0")/run_grpo_mturn.sh" \
  data.max_prompt_length=2048 \
  data.max_response_length=6144 \
  actor_rollout_ref.rollout.multi_turn.format=hermes \
  actor_rollout_ref.rollout.custom.aiops_tools.max_calls=12 \
  actor_rollout_ref.rollout.custom.aiops_tools.turn_tokens=512 \
  actor_rollout_ref.rollout.custom.aiops_tools.verdict_tokens=512 \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=32768 \
  "$@"

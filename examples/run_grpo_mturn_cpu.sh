#!/usr/bin/env bash
# GRPO on two-round triage data on a machine without a GPU, through verl's own main_ppo and the embedded rollout `hf`.
#
#   verl-aiops get-model --out models/SmolLM2-135M-Instruct
#   verl-aiops build-rl --out data/rl.parquet --difficulty easy --max-chars 300 --max-candidates 5
#   MODEL=runs/sft/huggingface TRAIN=data/rl.parquet VAL=data/rl.val.parquet OUT=runs/grpo \
#     bash examples/run_grpo_mturn_cpu.sh [key=value ...]
#
# Start from a model after SFT (examples/run_sft.sh): GRPO learns from differences between a prompt's answers, and an
# untrained small model gives only wrong ones. Arguments are Hydra overrides; later ones win.
set -euo pipefail
. "$(dirname "$0")/hydra_values.sh"
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
TRAIN=${TRAIN:-data/rl.parquet}
VAL=${VAL:-data/rl.val.parquet}
OUT=${OUT:-runs/grpo}
OUT=$(home "$OUT")
PRESET=${PRESET:-grpo_mturn}                # or dr_grpo, ppo_mturn
mkdir -p "$OUT"
export VERL_FILE_LOGGER_PATH=${VERL_FILE_LOGGER_PATH:-$OUT/metrics.jsonl}

# SmolLM2-135M takes about 2.5 minutes a step of 32 answers to prompts of 220 tokens on 2 cores; data.train_batch_size=4
# halves that
# train_batch_size    prompts per step; rollout.n: answers to each; micro batch: answers per forward pass
# round_tokens        tokens the model may write in round 1 and round 2
# use_kl_loss         the term of GRPO's paper needs a reference pass; a short run does without
# save_freq           a checkpoint every so many steps, and at the last one; a killed run goes on from it
# rollout_data_dir    every answer with its rounds and the components of its reward, one file per step
exec python3 -m verl.trainer.main_ppo "+verl_aiops=[$PRESET,cpu]" \
  data.train_files="$(files "$TRAIN")" \
  data.val_files="$(files "$VAL")" \
  data.train_batch_size=8 \
  data.val_max_samples=32 \
  data.max_prompt_length=1024 \
  data.max_response_length=384 \
  actor_rollout_ref.model.path="$(text "$MODEL")" \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4 \
  actor_rollout_ref.actor.use_kl_loss=False \
  actor_rollout_ref.actor.optim.lr=2e-5 \
  actor_rollout_ref.rollout.n=4 \
  actor_rollout_ref.rollout.custom.aiops_mturn.round_tokens='[96,40]' \
  trainer.total_training_steps=20 \
  trainer.test_freq=10 \
  trainer.save_freq=10 \
  trainer.rollout_data_dir="$(text "$OUT/rollouts")" \
  trainer.validation_data_dir="$(text "$OUT/validation")" \
  trainer.logger='[console,file]' \
  trainer.default_local_dir="$(text "$OUT")" \
  "$@"

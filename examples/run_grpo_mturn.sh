#!/usr/bin/env bash
# GRPO with the triage reward on two-round data, through verl's own main_ppo and SGLang.
#
#   verl-aiops build-rl --out data/rl.parquet --num-incidents 5000 --difficulty easy
#   MODEL=Qwen/Qwen2.5-7B-Instruct TRAIN=data/rl.parquet VAL=data/rl.val.parquet GPUS=8 OUT=runs/grpo \
#     bash examples/run_grpo_mturn.sh [key=value ...]
#
# Arguments are Hydra overrides; later ones win. `--cfg job` prints the whole configuration and stops.
# ENGINE=vllm: vLLM instead (run_grpo_mturn_vllm.sh). PRESET=dr_grpo: Dr. GRPO. PRESET=ppo_mturn: run_ppo_mturn.sh.
set -euo pipefail
. "$(dirname "$0")/hydra_values.sh"
MODEL=${MODEL:?path or hub name of the model to start from, best after SFT}
TRAIN=${TRAIN:?two-round data, written by verl-aiops build-rl}
VAL=${VAL:?held-out two-round data}
GPUS=${GPUS:-8}
NODES=${NODES:-1}
OUT=${OUT:-runs/grpo}
OUT=$(home "$OUT")
ENGINE=${ENGINE:-sglang}
PRESET=${PRESET:-grpo_mturn}
BATCH=${BATCH:-64}

args=(
  "+verl_aiops=$PRESET"

  # --- data -------------------------------------------------------------------------------------------------------------
  data.train_files="$(files "$TRAIN")"
  data.val_files="$(files "$VAL")"
  data.train_batch_size="$BATCH"      # prompts per step
  data.max_prompt_length=1536         # tokens of round 1's prompt; longer ones are left out and counted
  data.max_response_length=640        # tokens of all rounds and of the instructions between them

  # --- rollout ----------------------------------------------------------------------------------------------------------
  actor_rollout_ref.rollout.name="$ENGINE"
  actor_rollout_ref.rollout.tensor_model_parallel_size=1
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6
  actor_rollout_ref.rollout.temperature=1.0
  actor_rollout_ref.rollout.custom.aiops_mturn.round_tokens='[320,64]'   # tokens the model may write in rounds 1 and 2

  # --- reward: weights are relative; verl_aiops/rewards/aiops_mturn.py has the formula -----------------------------------
  # +reward.custom_reward_function.reward_kwargs.evidence_weight=0.1

  # --- model and optimizer ----------------------------------------------------------------------------------------------
  actor_rollout_ref.model.path="$(text "$MODEL")"
  actor_rollout_ref.model.enable_gradient_checkpointing=True
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.ppo_mini_batch_size="$BATCH"                   # prompts per optimizer step
  actor_rollout_ref.actor.use_dynamic_bsz=True                           # micro-batches by tokens, those of a prompt counted once
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384

  # --- run --------------------------------------------------------------------------------------------------------------
  trainer.n_gpus_per_node="$GPUS"
  trainer.nnodes="$NODES"
  trainer.total_epochs=3
  trainer.test_freq=20
  trainer.save_freq=50                # a killed run goes on from the last checkpoint in OUT when started again
  trainer.max_actor_ckpt_to_keep=2
  trainer.default_local_dir="$(text "$OUT")"
  trainer.rollout_data_dir="$(text "$OUT/rollouts")"         # every answer, its rounds and the components of its reward
  trainer.validation_data_dir="$(text "$OUT/validation")"
  trainer.logger='[console,tensorboard]'         # add wandb for Weights & Biases
)
if [ "$PRESET" != ppo_mturn ]; then
  args+=(actor_rollout_ref.rollout.n=8)          # answers to each prompt, compared with each other
fi
exec python3 -m verl.trainer.main_ppo "${args[@]}" "$@"

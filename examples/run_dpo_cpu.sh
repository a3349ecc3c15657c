#!/usr/bin/env bash
# Offline DPO on a machine without a GPU, through verl's own main_ppo.
#
#   MODEL=models/SmolLM2-135M-Instruct TRAIN=data/prefs.parquet VAL=data/prefs.val.parquet OUT=runs/dpo \
#     bash examples/run_dpo_cpu.sh [key=value ...]
#
# Arguments are Hydra overrides; later ones win.
set -euo pipefail
. "$(dirname "$0")/hydra_values.sh"
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
TRAIN=${TRAIN:-data/prefs.parquet}
VAL=${VAL:-data/prefs.val.parquet}
OUT=${OUT:-runs/dpo}
OUT=$(home "$OUT")
mkdir -p "$OUT"
export VERL_FILE_LOGGER_PATH=${VERL_FILE_LOGGER_PATH:-$OUT/metrics.jsonl}

# +verl_aiops=[dpo,cpu]   offline DPO; FSDP2 over gloo in float32, logical Ray resources
# train_batch_size        pairs per optimizer step; ppo_micro_batch_size_per_gpu: pairs per forward pass
# max_*_length            tokens; a longer pair is refused (data.truncation=error|left|drop)
# loss_type, loss_weights DPO plus a token-mean SFT term on the chosen answer, so that answers become JSON
# test_freq               held-out loss, accuracy and margin every so many steps; beyond the last step: only at the end
exec python3 -m verl.trainer.main_ppo '+verl_aiops=[dpo,cpu]' \
  data.train_files="$(files "$TRAIN")" \
  data.val_files="$(files "$VAL")" \
  data.train_batch_size=2 \
  data.max_prompt_length=1024 \
  data.max_response_length=128 \
  actor_rollout_ref.model.path="$(text "$MODEL")" \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2 \
  actor_rollout_ref.actor.optim.lr=1e-4 \
  algorithm.dpo.loss_type='[sigmoid,sft]' \
  algorithm.dpo.loss_weights='[1.0,1.0]' \
  trainer.test_freq=1000000 \
  trainer.logger='[console,file]' \
  trainer.default_local_dir="$(text "$OUT")" \
  "$@"

#!/usr/bin/env bash
# KTO: single answers with a yes or a no, on a machine without a GPU, through verl's own main_ppo.
#
#   MODEL=models/SmolLM2-135M-Instruct TRAIN=data/feedback.jsonl VAL=data/feedback.val.jsonl OUT=runs/kto \
#     bash examples/run_kto_cpu.sh [key=value ...]
#
# Arguments are Hydra overrides; later ones win.
set -euo pipefail
. "$(dirname "$0")/hydra_values.sh"
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
TRAIN=${TRAIN:-data/feedback.jsonl}
VAL=${VAL:-data/feedback.val.jsonl}
OUT=${OUT:-runs/kto}
OUT=$(home "$OUT")
mkdir -p "$OUT"
export VERL_FILE_LOGGER_PATH=${VERL_FILE_LOGGER_PATH:-$OUT/metrics.jsonl}

# +verl_aiops=[kto,cpu]   KTO; FSDP2 over gloo in float32, logical Ray resources
# train_batch_size        answers per optimizer step, over which the KL is estimated; ppo_micro_batch_size_per_gpu: answers
#                         per forward pass
# max_*_length            tokens; a longer answer is refused (data.truncation=error|left|drop)
# test_freq               held-out loss every so many steps; beyond the last step: only at the end
exec python3 -m verl.trainer.main_ppo '+verl_aiops=[kto,cpu]' \
  data.train_files="$(files "$TRAIN")" \
  data.val_files="$(files "$VAL")" \
  data.train_batch_size=4 \
  data.max_prompt_length=1024 \
  data.max_response_length=128 \
  actor_rollout_ref.model.path="$(text "$MODEL")" \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
  actor_rollout_ref.actor.optim.lr=1e-5 \
  trainer.test_freq=1000000 \
  trainer.logger='[console,file]' \
  trainer.default_local_dir="$(text "$OUT")" \
  "$@"

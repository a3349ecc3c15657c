#!/usr/bin/env bash
# DPO on a machine without a GPU with TRL's DPOTrainer (extra `trl`): the settings of run_dpo_cpu.sh.
#
#   MODEL=runs/sft/huggingface TRAIN=data/prefs.parquet VAL=data/prefs.val.parquet OUT=runs/trl_dpo \
#     bash examples/run_trl_dpo_cpu.sh [option ...]
#   MODEL=runs/trl_dpo bash examples/run_grpo_mturn_cpu.sh
#
# OUT becomes a plain model folder. Arguments are options of `verl-aiops trl-dpo`; later ones win. Started again after a
# stop, it goes on in OUT.
set -euo pipefail
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
TRAIN=${TRAIN:-data/prefs.parquet}
VAL=${VAL:-data/prefs.val.parquet}
OUT=${OUT:-runs/trl_dpo}

# batch-size, micro-batch   pairs per optimizer step and per forward pass; equal, as the SFT term is averaged over a pass
# max-*-length              tokens; a longer pair is refused (--truncation error|left|drop)
# loss-type, loss-weights   DPO plus a token-mean SFT term on the chosen answer, so that answers become JSON
exec verl-aiops trl-dpo \
  --model "$MODEL" --data "$TRAIN" --val "$VAL" --out "$OUT" \
  --device cpu \
  --loss-type sigmoid sft \
  --loss-weights 1.0 1.0 \
  --lr 1e-4 \
  --batch-size 2 \
  --micro-batch 2 \
  --max-prompt-length 1024 \
  --max-response-length 128 \
  --save-steps 25 \
  "$@"

#!/usr/bin/env bash
# A reward model on a machine without a GPU, with TRL (extra `trl`): LoRA, merged at the end.
#
#   verl-aiops build-prefs --out data/prefs.parquet --val-share 0.2 --max-chars 600
#   MODEL=models/SmolLM2-135M-Instruct DATA=data/prefs.parquet VAL=data/prefs.val.parquet OUT=runs/rm \
#     bash examples/train_rm_cpu.sh [option ...]
#
# Arguments are options of `verl-aiops train-rm`; later ones win. Started again after a stop, it goes on in OUT.
set -euo pipefail
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
DATA=${DATA:-data/prefs.parquet}
VAL=${VAL:-data/prefs.val.parquet}
OUT=${OUT:-runs/rm}

# batch-size      pairs per forward pass, of two conversations each; times grad-accum: pairs per optimizer step
# max-length      tokens of a conversation; longer pairs are left out and counted
# save-steps      optimizer steps between checkpoints
exec verl-aiops train-rm \
  --model "$MODEL" --data "$DATA" --val "$VAL" --out "$OUT" \
  --device cpu \
  --epochs 1 \
  --lr 1e-4 \
  --batch-size 2 \
  --grad-accum 4 \
  --max-length 1024 \
  --lora-rank 16 \
  --lora-alpha 32 \
  --save-steps 25 \
  --seed 1 \
  "$@"

#!/usr/bin/env bash
# A reward model on one GPU, on verl's engines (--backend trl: with TRL): LoRA, merged at the end. docs/reward_model.md says what is written.
#
#   MODEL=runs/sft/huggingface DATA=prefs.parquet VAL=prefs.val.parquet OUT=runs/rm \
#     bash examples/train_rm.sh [option ...]
#
# MODEL: the folder that SFT wrote, or any causal language model with a chat template.
# VAL: held-out pairs, which build-prefs writes beside DATA.
# Arguments are options of `verl-aiops train-rm`; later ones win. Started again after a stop, it goes on in OUT.
set -euo pipefail
MODEL=${MODEL:?path or hub name of the model to start from, best after SFT}
DATA=${DATA:?preference file, parquet or JSONL}
VAL=${VAL:?held-out preference file}
OUT=${OUT:-runs/rm}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}   # one process trains on one GPU

# batch-size        pairs per forward pass, of two conversations each; times grad-accum: pairs per optimizer step
# max-length        tokens of a conversation; longer pairs are left out and counted
# lora-rank         0 trains all weights; then a learning rate ten times smaller or less
# center-rewards    keeps rewards around 0; 0 leaves it out
# dtype             of the weights; float32 is computed under bfloat16 autocast on a GPU
# save-steps        optimizer steps between checkpoints
exec verl-aiops train-rm \
  --model "$MODEL" --data "$DATA" --val "$VAL" --out "$OUT" \
  --device cuda \
  --epochs 1 \
  --lr 1e-4 \
  --batch-size 8 \
  --grad-accum 4 \
  --max-length 2048 \
  --lora-rank 16 \
  --lora-alpha 32 \
  --center-rewards 0.01 \
  --dtype float32 \
  --save-steps 50 \
  --seed 1 \
  "$@"

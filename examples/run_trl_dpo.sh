#!/usr/bin/env bash
# DPO on one GPU with TRL's DPOTrainer (extra `trl`), on the files of run_dpo.sh. docs/trl.md says when to choose it.
#
#   MODEL=runs/sft/huggingface TRAIN=prefs.parquet VAL=prefs.val.parquet OUT=runs/trl_dpo \
#     bash examples/run_trl_dpo.sh [option ...]
#
# OUT becomes a plain model folder: MODEL=runs/trl_dpo bash examples/run_grpo_mturn.sh goes on from it.
# Arguments are options of `verl-aiops trl-dpo`; later ones win. Started again after a stop, it goes on in OUT.
set -euo pipefail
MODEL=${MODEL:?path or hub name of the model to start from, best after SFT}
TRAIN=${TRAIN:?preference file, parquet or JSONL}
VAL=${VAL:?held-out preference file}
OUT=${OUT:-runs/trl_dpo}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}   # one process trains on one GPU

# batch-size        pairs per optimizer step; micro-batch: pairs per forward pass, of two answers each
# max-*-length      tokens; a longer pair is refused (truncation error), or: left (cuts prompts), drop (counts what it leaves out)
# reference         cached scores each pair once, before training; live in every step, with a second model in memory
# lora-rank         0 trains all weights; 16 or so with a learning rate ten times larger
# dtype             of the weights; float32 is computed under bfloat16 autocast on a GPU
# save-steps        optimizer steps between checkpoints; eval-steps: between measurements on VAL
exec verl-aiops trl-dpo \
  --model "$MODEL" --data "$TRAIN" --val "$VAL" --out "$OUT" \
  --device cuda \
  --beta 0.1 \
  --loss-type sigmoid \
  --reference cached \
  --epochs 1 \
  --lr 5e-7 \
  --schedule cosine \
  --warmup 0.1 \
  --batch-size 64 \
  --micro-batch 4 \
  --max-prompt-length 2048 \
  --max-response-length 512 \
  --truncation error \
  --gradient-checkpointing \
  --dtype float32 \
  --save-steps 200 \
  --eval-steps 50 \
  --seed 1 \
  "$@"

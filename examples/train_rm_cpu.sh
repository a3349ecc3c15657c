#!/usr/bin/env bash
# A reward model on a machine without a GPU, on verl's engines (--backend trl: with TRL): examples/train_rm.sh with smaller sizes.
#
#   verl-aiops build-prefs --out data/prefs.parquet --difficulty easy --val-share 0.2 --max-chars 600
#   MODEL=models/SmolLM2-135M-Instruct DATA=data/prefs.parquet VAL=data/prefs.val.parquet OUT=runs/rm \
#     bash examples/train_rm_cpu.sh [option ...]
MODEL=${MODEL:-models/SmolLM2-135M-Instruct} DATA=${DATA:-data/prefs.parquet} VAL=${VAL:-data/prefs.val.parquet} \
  exec bash "$(dirname "$0")/train_rm.sh" --device cpu --batch-size 2 --max-length 1024 --save-steps 25 "$@"

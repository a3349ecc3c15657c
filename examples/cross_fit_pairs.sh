#!/usr/bin/env bash
# Preference pairs of a model's own wrong answers, each from a model that has not seen the incident (docs/own_pairs.md).
#
#   INCIDENTS=incidents.jsonl MODEL=models/SmolLM2-135M-Instruct OUT=runs/own GPUS=0 bash examples/cross_fit_pairs.sh [key=value ...]
#
# For each fold of the training side: SFT on all others, then N sampled answers to the fold's incidents. At the end one
# file of pairs, OUT/own.parquet. Arguments are Hydra overrides of the SFT runs. Started again after a stop, it goes on:
# data files and trained models that are there stay, and the evaluation takes up where it was.
set -euo pipefail
. "$(dirname "$0")/hydra_values.sh"
INCIDENTS=${INCIDENTS:?INCIDENTS: file of incidents (.jsonl, .csv or .parquet)}
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
OUT=$(home "${OUT:-runs/own}")
GPUS=${GPUS:-1}                             # of each SFT run; 0 trains on the CPU
FOLDS=${FOLDS:-3}                           # more folds: models closer to the one that sees everything, more runs
N=${N:-8}                                   # answers to each incident
TEMPERATURE=${TEMPERATURE:-0.8}
ROUND_TOKENS=${ROUND_TOKENS:-120,40}        # most tokens of round 1 and round 2
PROMPTS=${PROMPTS:---max-chars 600}         # of build-sft and build-rl: those of your other files
EVAL=${EVAL:-}                              # more options of `verl-aiops eval`
SPLIT=${SPLIT:---seed 0 --val-share 0.1}    # the split of your other files

folders=() trained=()
for ((fold = 0; fold < FOLDS; fold++)); do
  here=$OUT/fold$fold
  mkdir -p "$here"
  data=(--incidents "$INCIDENTS" --folds "$FOLDS" --fold "$fold")
  # shellcheck disable=SC2086  # options, to be split
  [ -f "$here/sft.parquet" ] || verl-aiops build-sft --out "$here/sft.parquet" "${data[@]}" $PROMPTS $SPLIT
  # shellcheck disable=SC2086
  [ -f "$here/rl.parquet" ] || verl-aiops build-rl --out "$here/rl.parquet" "${data[@]}" $PROMPTS $SPLIT
  if [ ! -d "$here/sft/huggingface" ]; then
    MODEL=$MODEL TRAIN=$here/sft.parquet VAL=$here/sft.val.parquet OUT=$here/sft GPUS=$GPUS \
      bash "$(dirname "$0")/run_sft.sh" "$@"
  fi
  # shellcheck disable=SC2086
  verl-aiops eval --model "$here/sft/huggingface" --data "$here/rl.parquet" --out "$here/answers" \
    --n "$N" --temperature "$TEMPERATURE" --round-tokens "$ROUND_TOKENS" $EVAL
  folders+=("$here/answers") trained+=("$here/sft.parquet")
done
# shellcheck disable=SC2086
verl-aiops build-prefs --from-generations "${folders[@]}" --trained-on "${trained[@]}" --out "$OUT/own.parquet" \
  --overwrite $SPLIT

#!/usr/bin/env bash
# From a fresh clone to a model that DPO has made better at triage, on a machine with Python 3.10 to 3.12 and no GPU.
#
#   bash examples/quickstart.sh                        pairs from the incident simulator
#   INCIDENTS=my.jsonl bash examples/quickstart.sh     pairs from your own incidents (JSONL, CSV or parquet);
#                                                      INCIDENT_COLUMNS=id=ticket_id,symptom=summary,... of a ticket export
#
# In a checkout it makes the environment .venv; where `verl-aiops examples DIR` wrote it, it uses the one that verl-aiops is
# installed in, with models/ and runs/ in the working directory. It converts SmolLM2-135M-Instruct, builds pairs, trains
# through `python -m verl.trainer.main_ppo`, and compares the model before and after on incidents it has not seen.
# PAIRS (default 80) sets how many pairs are trained on: training takes most of the time. What it makes goes to RUN
# (default runs/quickstart); a second time it starts anew, and what was there is kept in RUN.old until the third.
set -euo pipefail
here=$PWD
examples=$(cd "$(dirname "$0")" && pwd)
RUN=${RUN:-runs/quickstart}
PAIRS=${PAIRS:-80}

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

if [ -f "$examples/../scripts/make_env.sh" ]; then
  cd "$examples/.."
  VENV=${VENV:-.venv}
  # a name is first looked for where the command was given
  case "${INCIDENTS:-}" in ""|/*) ;; *) [ ! -e "$here/$INCIDENTS" ] || INCIDENTS="$here/$INCIDENTS" ;; esac
  if [ -n "${INCIDENTS:-}" ] && command -v "${PYTHON:-python3}" >/dev/null; then
    "${PYTHON:-python3}" scripts/check_incidents.py "$INCIDENTS" "${INCIDENT_COLUMNS:-}"
  fi
  step "environment $VENV"
  . scripts/make_env.sh "$VENV" ".[model,plot]"
elif ! command -v verl-aiops >/dev/null; then
  echo 'no command verl-aiops: activate its environment, or pip install "verl-aiops[model,plot]" into this one' >&2
  exit 1
fi
installed=$SECONDS

step "model"
verl-aiops get-model --out models/SmolLM2-135M-Instruct

step "pairs from ${INCIDENTS:-the simulator}"
if [ -n "$(ls -A "$RUN" 2>/dev/null)" ]; then
  for folder in "$RUN" "$RUN.old"; do  # neither is moved or removed but what this script has made
    [ ! -e "$folder" ] || [ -e "$folder/train.log" ] || [ -e "$folder/prefs.parquet" ] || {
      echo "$folder is there and holds no run of this script: name another folder with RUN=FOLDER" >&2; exit 1; }
  done
  rm -rf "$RUN.old"
  mv "$RUN" "$RUN.old"
  echo "the run before this one is in $RUN.old"
fi
mkdir -p "$RUN"
# Simulated ones are easy: a model of this size learns in minutes to read one fault, not to tell several apart.
source=(--difficulty easy)
[ -z "${INCIDENTS:-}" ] || source=(--incidents "$INCIDENTS" ${INCIDENT_COLUMNS:+--columns "$INCIDENT_COLUMNS"})
verl-aiops build-prefs "${source[@]}" --out "$RUN/prefs.parquet" --style direct \
  --max-chars 300 --max-candidates 5 --pairs-per-incident 1

step "DPO through python -m verl.trainer.main_ppo (log: $RUN/train.log)"
MODEL=models/SmolLM2-135M-Instruct TRAIN="$RUN/prefs.parquet" VAL="$RUN/prefs.val.parquet" OUT="$RUN" \
  bash "$examples/run_dpo_cpu.sh" data.train_max_samples="$PAIRS" data.val_max_samples=40 data.max_prompt_length=512 \
  2>&1 | tee "$RUN/train.log" | grep --line-buffered -aoE \
  "verl-aiops: .*[^:]$|Reference log-probs.*|Training Progress.*|actor/loss:[0-9]+\.[0-9]{1,3}|Error: .*|error: .*" || {
    echo "training failed; the log is $RUN/train.log" >&2; exit 1; }

step "before and after on held-out incidents"
verl-aiops before-after --before models/SmolLM2-135M-Instruct --after "$RUN/huggingface" \
  --pairs "$RUN/prefs.val.parquet" --metrics "$RUN/metrics.jsonl" --out "$RUN/report" --questions 24

printf '\nmodel    %s/huggingface\nmetrics  %s/metrics.jsonl\nplot     %s/report/curves.png\nanswers  %s/report/answers.jsonl\n' \
  "$RUN" "$RUN" "$RUN" "$RUN"
printf 'took %s s after installation (%s s)\n' "$((SECONDS - installed))" "$installed"

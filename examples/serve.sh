#!/usr/bin/env bash
# From a model to an OpenAI-compatible endpoint with JSON-schema constrained answers, with SGLang or vLLM (their extras).
#
#   ENGINE=sglang MODEL=runs/grpo/global_step_40 bash examples/serve.sh [flag of the engine's server ...]
#   verl-aiops triage incidents.jsonl --endpoint http://127.0.0.1:8000/v1 --model triage --schema
#
# serve_sglang.sh and serve_vllm.sh are this with their engine. It says when the server is ready, and stops it on
# Ctrl-C. DRY_RUN=1 prints the command and stops. docs/12-serving.md.
# Flags are those of SGLang 0.5.12 and vLLM 0.24.0, which verl 0.9.1 asks for; later ones win.
set -euo pipefail
ENGINE=${ENGINE:?sglang or vllm}
MODEL=${MODEL:?folder of a model (runs/x/huggingface), or a checkpoint of verl (runs/x/global_step_N)}
NAME=${NAME:-triage}                  # what clients call the model
HOST=${HOST:-127.0.0.1}               # 0.0.0.0 opens it to the network: then set API_KEY
PORT=${PORT:-8000}
API_KEY=${API_KEY:-}                  # clients send it from OPENAI_API_KEY; with SGLang, `ps` shows it to users of this machine
TP=${TP:-1}                           # GPUs that share the model
DTYPE=${DTYPE:-auto}                  # auto: as stored, but 16 bits for float32 weights; or bfloat16, float16, float32
CONTEXT=${CONTEXT:-}                  # tokens of prompt and all rounds; empty: the model's own maximum
MEMORY=${MEMORY:-}                    # share of a GPU's memory for weights and cache; empty: 0.9 with vLLM, SGLang's choice
GRAMMAR=${GRAMMAR:-xgrammar}          # xgrammar; SGLang: llguidance, outlines, none (refuses them); vLLM: guidance
CHAT_TEMPLATE=${CHAT_TEMPLATE:-}      # a .jinja file instead of the template in the model's folder
MERGED=${MERGED:-}                    # where a checkpoint is merged to; empty: beside its shards (actor_merged)
WAIT=${WAIT:-900}                     # seconds that it may take to become ready
EXTRA_ARGS=${EXTRA_ARGS:-}            # more flags, split at spaces: EXTRA_ARGS="--enforce-eager"
DRY_RUN=${DRY_RUN:-}

folder=$(python3 -m verl_aiops.models.serving folder "$MODEL" ${MERGED:+--out "$MERGED"} \
  ${CHAT_TEMPLATE:+--template "$CHAT_TEMPLATE"} ${DRY_RUN:+--dry-run})
if [ "$HOST" != 127.0.0.1 ] && [ "$HOST" != localhost ] && [ -z "$API_KEY" ]; then
  echo "serve_$ENGINE: HOST=$HOST without API_KEY: whoever reaches this machine can use the model" >&2
fi
reach=$HOST
if [ "$HOST" = 0.0.0.0 ]; then reach=127.0.0.1; fi

args=(
  --served-model-name "$NAME"
  --host "$HOST"
  --port "$PORT"
  --tensor-parallel-size "$TP"
  --dtype "$DTYPE"
)
# Answers are spelled as in training, or blanks may use up the round's tokens; and sampled as in training, without a
# top-k or penalty out of generation_config.json.
case $ENGINE in
  sglang)
    server=(python3 -m sglang.launch_server --model-path "$folder")
    args+=(--grammar-backend "$GRAMMAR" --constrained-json-disable-any-whitespace --sampling-defaults openai)
    if [ -n "$CONTEXT" ]; then args+=(--context-length "$CONTEXT"); fi
    if [ -n "$MEMORY" ]; then args+=(--mem-fraction-static "$MEMORY"); fi
    if [ -n "$API_KEY" ]; then args+=(--api-key "$API_KEY"); fi
    ;;
  vllm)
    server=(vllm serve "$folder")
    args+=(--structured-outputs-config "{\"backend\": \"$GRAMMAR\", \"disable_any_whitespace\": true}")
    args+=(--generation-config vllm --gpu-memory-utilization "${MEMORY:-0.9}")
    if [ -n "$CONTEXT" ]; then args+=(--max-model-len "$CONTEXT"); fi
    if [ -n "$API_KEY" ]; then export VLLM_API_KEY=$API_KEY; fi
    ;;
  *)
    echo "serve: ENGINE=$ENGINE: expected sglang or vllm" >&2
    exit 2
    ;;
esac
if [ -n "$CHAT_TEMPLATE" ]; then args+=(--chat-template "$CHAT_TEMPLATE"); fi
# shellcheck disable=SC2086 - EXTRA_ARGS is meant to be split
exec python3 -m verl_aiops.models.serving run --url "http://$reach:$PORT" --wait "$WAIT" ${DRY_RUN:+--dry-run} -- \
  "${server[@]}" "${args[@]}" $EXTRA_ARGS "$@"

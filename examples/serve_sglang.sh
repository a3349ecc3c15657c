#!/usr/bin/env bash
# From a model to an OpenAI-compatible endpoint with SGLang (extra `sglang`); examples/serve.sh lists the knobs.
#
#   MODEL=runs/grpo/global_step_40 bash examples/serve_sglang.sh [flag of sglang.launch_server ...]
ENGINE=sglang exec bash "$(dirname "$0")/serve.sh" "$@"

#!/usr/bin/env bash
# From a model to an OpenAI-compatible endpoint with vLLM (extra `vllm`); examples/serve.sh lists the knobs.
#
#   MODEL=runs/grpo/global_step_40 bash examples/serve_vllm.sh [flag of vllm serve ...]
ENGINE=vllm exec bash "$(dirname "$0")/serve.sh" "$@"

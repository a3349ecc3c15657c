#!/usr/bin/env bash
# Makes its own environment and runs the tests:   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/make_env.sh "${VENV:-.venv-test}" ".[dev]" ".[docs,notebook]"
# The tests use the package as installed, not the checkout's copy of it. Two processes, each with a thread of PyTorch's: a
# file's tests stay in one of them, for what they share; runs of main_ppo, which wait for Ray most of the time, come first.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec pytest -p no:cacheprovider -n 2 --dist loadfile --no-loadscope-reorder "$@"

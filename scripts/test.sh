#!/usr/bin/env bash
# Makes its own environment and runs the tests:   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/make_env.sh "${VENV:-.venv-test}" ".[dev]" ".[docs,notebook]"
# The tests use the package as installed, not the checkout's copy of it. Three processes on two cores, each with a thread of
# PyTorch's, as runs of main_ppo wait for Ray most of the time; those come first. A file's tests stay in one process, for
# what they share. TEST_PROCESSES is another number.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec pytest -p no:cacheprovider -n "${TEST_PROCESSES:-3}" --dist loadfile --no-loadscope-reorder "$@"

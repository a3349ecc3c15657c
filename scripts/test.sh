#!/usr/bin/env bash
# Makes its own environment and runs the tests:   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/make_env.sh "${VENV:-.venv-test}" ".[model,plot,test,trl]"
# the tests use the package as installed, not the checkout's copy of it
exec pytest -p no:cacheprovider "$@"

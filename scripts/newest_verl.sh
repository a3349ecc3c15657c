#!/usr/bin/env bash
# Whether the newest release of verl on the package index does for this package, whatever range setup.cfg names: makes an
# environment of its own, puts that release into it, and runs the tests of what of verl is touched and one short run.
#   bash scripts/newest_verl.sh            VENV=FOLDER names the environment, VERL_SPEC=verl==X another release
# The exit code is pytest's. What is said where something is otherwise: docs/verl_versions.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/make_env.sh "${VENV:=.venv-newest-verl}" ".[test]"
# pip names the conflict with our range and goes on: only what is asked for is resolved
python -m pip install --disable-pip-version-check --upgrade -c "$VENV/constraints.txt" "${VERL_SPEC:-verl}"
python -c 'import importlib.metadata as m; print("verl", m.version("verl"))'
verl-aiops doctor || true  # its faults are those that the tests find, in words
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec pytest -p no:cacheprovider -q tests/seam tests/verl_patches tests/doctor/test_touch_points.py tests/test_plugin.py \
  tests/test_missing.py "tests/e2e/test_main_ppo.py::test_bare_adv_estimator_trains" "$@"

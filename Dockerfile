# For CPUs:
#   docker build -t verl-aiops .
#   docker run --rm -it --shm-size 2g -v "$PWD:/work" verl-aiops bash /opt/examples/quickstart.sh
# --build-arg PIP_EXTRA_INDEX_URL=ADDRESS, that of PyTorch's CPU wheel index, makes the image smaller.
FROM python:3.12-slim
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /opt/verl-aiops
COPY . .
RUN export PIP_NO_CACHE_DIR=1 \
    && . scripts/make_env.sh /opt/venv ".[model,plot]" \
    && verl-aiops examples /opt/examples
ENV PATH=/opt/venv/bin:$PATH
# models/ and runs/ of the examples lie here
WORKDIR /work
CMD ["verl-aiops", "doctor"]

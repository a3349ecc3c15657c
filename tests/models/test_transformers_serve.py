"""The client against transformers' own server, as docs/12-serving.md shows it for a laptop."""

import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest
from ports import free_port

from verl_aiops.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tiny_model_dir, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tiny_model_dir)]
    command += ["--device", "cpu", "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def test_the_client_is_answered(served, tiny_model_dir, tmp_path, capsys):
    incident = {
        "id": "my-17",
        "symptom": "Orders fail.",
        "logs": ["10:02 orders-db: disk full"],
    }
    (tmp_path / "incidents.jsonl").write_text(json.dumps(incident) + "\n")
    options = ["--endpoint", served, "--model", str(tiny_model_dir), "--round-tokens", "12,8"]
    # a model of random weights gives no verdict, which is exit code 1
    assert main(["triage", str(tmp_path / "incidents.jsonl"), *options]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert said["id"] == "my-17" and said["error"] is None and said["service"] is None and said["analysis"]

"""Serving: which folder, which flags, a server that is watched, and all the way from a checkpoint to verdicts."""

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from eval_harness import listening_app, verl_run
from ports import free_port
from serving_harness import Model, app_of, stub_sglang
from tiny import make_tiny_model, make_tokenizer

from verl_aiops.models import serving
from verl_aiops.models.folders import ModelFolderError
from verl_aiops.models.serving import ServingError, has_chat_template, run_server, servable_folder

ROOT = Path(__file__).resolve().parents[2]
# read in sglang/srt/server_args.py of SGLang 0.5.12 and in vllm/engine/arg_utils.py and vllm/entrypoints/openai/
# cli_args.py of vLLM 0.24.0, the versions that the extras of verl 0.9.1 name
FLAGS = {
    "sglang": (
        "--model-path --served-model-name --host --port --tensor-parallel-size --dtype --grammar-backend "
        "--constrained-json-disable-any-whitespace --sampling-defaults --context-length --mem-fraction-static "
        "--chat-template --api-key"
    ).split(),
    "vllm": (
        "--served-model-name --host --port --tensor-parallel-size --dtype --gpu-memory-utilization "
        "--structured-outputs-config --generation-config --max-model-len --chat-template"
    ).split(),
}
KNOBS = (
    "MODEL NAME HOST PORT API_KEY TP DTYPE CONTEXT MEMORY GRAMMAR CHAT_TEMPLATE MERGED WAIT EXTRA_ARGS DRY_RUN"
).split()


def environment(**knobs):
    paths = [str(knobs.pop("path", "")), str(ROOT), os.environ.get("PYTHONPATH", "")]
    plain = {name: value for name, value in os.environ.items() if name not in KNOBS}
    plain["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{plain['PATH']}"
    return {**plain, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **{k: str(v) for k, v in knobs.items()}}


def script(engine, *arguments, **knobs):
    command = ["bash", str(ROOT / "examples" / f"serve_{engine}.sh"), *arguments]
    return subprocess.run(command, env=environment(**knobs), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    return verl_run(place / "run", make_tiny_model(place / "plain", dtype="bfloat16", seed=5))


# --- the scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", FLAGS)
def test_scripts_are_sound_bash(engine):
    subprocess.run(["bash", "-n", str(ROOT / "examples" / f"serve_{engine}.sh")], check=True, timeout=30)


@pytest.mark.parametrize("engine", FLAGS)
def test_every_flag_is_one_of_the_engine(engine, tiny_model_dir):
    template = tiny_model_dir / "chat_template.jinja"
    everything = {"API_KEY": "secret", "CONTEXT": 4096, "MEMORY": 0.5, "CHAT_TEMPLATE": template, "TP": 2, "NAME": "m"}
    made = script(engine, "--more", "1", MODEL=tiny_model_dir, DRY_RUN=1, EXTRA_ARGS="--extra a", **everything)
    assert made.returncode == 0, made.stderr
    words = shlex.split(made.stdout)
    assert words[-4:] == ["--extra", "a", "--more", "1"] and "secret" not in made.stdout
    assert sorted(word for word in words[:-4] if word.startswith("--")) == sorted(FLAGS[engine])
    given = dict(zip(words, words[1:]))
    assert given["--tensor-parallel-size"] == "2" and given["--served-model-name"] == "m"
    assert given["--host"] == "127.0.0.1" and given["--chat-template"] == str(template)
    if engine == "sglang":
        assert words[:3] == ["python3", "-m", "sglang.launch_server"] and given["--model-path"] == str(tiny_model_dir)
        assert given["--grammar-backend"] == "xgrammar" and given["--context-length"] == "4096"
        assert given["--mem-fraction-static"] == "0.5"
    else:
        assert words[:3] == ["vllm", "serve", str(tiny_model_dir)] and given["--gpu-memory-utilization"] == "0.5"
        assert given["--max-model-len"] == "4096"
        constrained = json.loads(given["--structured-outputs-config"])
        assert constrained == {"backend": "xgrammar", "disable_any_whitespace": True}


def test_sglang_itself_takes_the_flags(tiny_model_dir):
    arguments = pytest.importorskip("sglang.srt.server_args")
    import argparse

    parser = argparse.ArgumentParser()
    arguments.ServerArgs.add_cli_args(parser)
    made = script("sglang", MODEL=tiny_model_dir, DRY_RUN=1, CONTEXT=4096, MEMORY=0.5, API_KEY="k")
    parser.parse_args(shlex.split(made.stdout)[3:])


@pytest.mark.parametrize("engine", FLAGS)
def test_optional_flags_are_left_out(engine, tiny_model_dir):
    made = script(engine, MODEL=tiny_model_dir, DRY_RUN=1)
    for flag in ("--api-key", "--chat-template", "--context-length", "--max-model-len", "--mem-fraction-static"):
        assert flag not in made.stdout
    assert made.stderr == ""


@pytest.mark.parametrize("engine", FLAGS)
def test_an_open_address_without_a_key_is_told(engine, tiny_model_dir):
    made = script(engine, MODEL=tiny_model_dir, DRY_RUN=1, HOST="0.0.0.0")
    assert made.returncode == 0 and "HOST=0.0.0.0 without API_KEY" in made.stderr
    assert script(engine, MODEL=tiny_model_dir, DRY_RUN=1, HOST="0.0.0.0", API_KEY="k").stderr == ""


@pytest.mark.parametrize("engine", FLAGS)
def test_bad_models_end_the_script_with_one_line(engine, tmp_path):
    assert "MODEL: folder of a model" in script(engine).stderr
    made = script(engine, MODEL=tmp_path)
    assert made.returncode == 2 and made.stderr.startswith("serving: error: --model") and made.stderr.count("\n") == 1


@pytest.mark.parametrize("engine", FLAGS)
def test_a_dry_run_names_the_merged_folder_and_merges_nothing(engine, run_folder, tmp_path):
    actor = run_folder / "global_step_4" / "actor"
    for named in (actor, actor.parent):
        made = script(engine, MODEL=named, DRY_RUN=1)
        assert f" {actor}_merged " in made.stdout
    assert f" {tmp_path / 'x'} " in script(engine, MODEL=actor, MERGED=tmp_path / "x", DRY_RUN=1).stdout
    assert not Path(f"{actor}_merged").exists()


def test_every_knob_stands_in_the_docs_and_in_the_script_of_both_engines(tiny_model_dir):
    page = (ROOT / "docs" / "12-serving.md").read_text(encoding="utf-8")
    text = (ROOT / "examples" / "serve.sh").read_text(encoding="utf-8")
    assert re.findall(r"^([A-Z_]+)=\$\{", text, flags=re.MULTILINE) == ["ENGINE", *KNOBS]
    for engine in FLAGS:
        assert f'ENGINE={engine} exec bash "$(dirname "$0")/serve.sh" "$@"\n' in (
            (ROOT / "examples" / f"serve_{engine}.sh").read_text(encoding="utf-8")
        )
    command = ["bash", str(ROOT / "examples" / "serve.sh")]
    knobs = environment(MODEL=tiny_model_dir, ENGINE="trt", DRY_RUN=1)
    made = subprocess.run(command, env=knobs, capture_output=True, text=True, timeout=60)
    assert made.returncode == 2 and made.stderr == "serve: ENGINE=trt: expected sglang or vllm\n"
    for knob in KNOBS:
        assert f"`{knob}`" in page, knob


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_plain_folder_is_served_as_it_is(tiny_model_dir):
    assert servable_folder(str(tiny_model_dir)) == tiny_model_dir


def test_a_checkpoint_is_merged_once_and_again_when_it_changes(run_folder, tmp_path, capsys):
    import torch
    from safetensors.torch import load_file

    out = tmp_path / "merged"
    assert servable_folder(str(run_folder / "global_step_4"), str(out)) == out
    assert capsys.readouterr().out == ""  # what stands on stdout is the folder's name alone
    plain = load_file(run_folder.parent / "plain" / "model.safetensors")
    merged = load_file(out / "model.safetensors")
    assert set(merged) == set(plain) and all(torch.equal(merged[name], plain[name]) for name in plain)
    assert has_chat_template(out) and not list(out.parent.glob("*.verl-aiops-tmp"))
    first = (out / "model.safetensors").stat().st_mtime_ns
    servable_folder(str(run_folder / "global_step_4"), str(out))
    assert (out / "model.safetensors").stat().st_mtime_ns == first
    note = json.loads((out / serving.NOTE).read_text())
    (out / serving.NOTE).write_text(json.dumps(note | {"fingerprint": "of another step"}))
    servable_folder(str(run_folder / "global_step_4"), str(out))
    assert (out / "model.safetensors").stat().st_mtime_ns > first


def test_a_folder_of_something_else_is_not_merged_into(run_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ServingError, match="was not merged by this command .* MERGED=DIR"):
        servable_folder(str(run_folder / "global_step_4"), str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_what_cannot_be_served_is_refused(tmp_path, run_folder, tiny_model_dir):
    with pytest.raises(ModelFolderError, match="the folder of a run"):
        servable_folder(str(run_folder))
    folder = make_tiny_model(tmp_path / "m", tokenizer=make_tokenizer(chat_template=None))
    with pytest.raises(ServingError, match="no chat template.*CHAT_TEMPLATE=FILE.jinja"):
        servable_folder(str(folder))
    (tmp_path / "t.jinja").write_text("x")
    assert servable_folder(str(folder), template=str(tmp_path / "t.jinja")) == folder
    with pytest.raises(ServingError, match="no such file"):
        servable_folder(str(tiny_model_dir), template=str(tmp_path / "none.jinja"))


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_templates_in_files_of_their_own_count(tmp_path, name):
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / name).write_text("x")
    assert has_chat_template(tmp_path)


# --- the server is watched --------------------------------------------------------------------------------------------

HEALTHY = """
import http.server, signal, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response({status}); self.end_headers()
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
server = http.server.HTTPServer(("127.0.0.1", {port}), Handler)
server.timeout = 0.1
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    server.handle_request()
sys.exit({code})
"""


def small_server(port, *, status=200, seconds=60, code=0):
    return [sys.executable, "-c", HEALTHY.format(port=port, status=status, seconds=seconds, code=code)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(serving, "_POLL_S", 0.05)


def test_a_server_is_ready_when_it_says_so_and_its_exit_code_is_returned(capsys):
    port = free_port()
    assert run_server(small_server(port, seconds=3, code=5), f"http://127.0.0.1:{port}", 30) == 5
    assert re.search(rf"ready after \d+ s: http://127.0.0.1:{port}/v1", capsys.readouterr().err)


def test_a_server_that_never_answers_is_stopped():
    port = free_port()
    started = time.monotonic()
    with pytest.raises(ServingError, match="no answer in 1 s"):
        run_server(small_server(port, status=503), f"http://127.0.0.1:{port}", 1)
    assert time.monotonic() - started < 25 and not serving._listens("127.0.0.1", port)


def test_a_server_that_dies_is_told_at_once():
    with pytest.raises(ServingError, match="ended with exit code 3 before it was ready"):
        run_server([sys.executable, "-c", "raise SystemExit(3)"], f"http://127.0.0.1:{free_port()}", 600)


def test_a_taken_port_and_a_missing_program_are_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServingError, match="something listens there already"):
            run_server(["true"], f"http://127.0.0.1:{taken.getsockname()[1]}", 1)
    with pytest.raises(ServingError, match="is the server installed"):
        run_server(["no-such-program-here"], f"http://127.0.0.1:{free_port()}", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_server_and_all_its_processes(number, tmp_path):
    port = free_port()
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '300']); print(p.pid, flush=True)\n"
    command = [sys.executable, "-c", child + small_server(port)[2]]
    watch = [
        sys.executable,
        "-m",
        "verl_aiops.models.serving",
        "run",
        "--url",
        f"http://127.0.0.1:{port}",
        "--",
        *command,
    ]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        grandchild = int(process.stdout.readline())
        while "ready" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert not serving._listens("127.0.0.1", port)
    for _ in range(100):
        if not Path(f"/proc/{grandchild}").exists() or "Z" in Path(f"/proc/{grandchild}/stat").read_text().split()[2]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the server's own process lives on")


@pytest.mark.parametrize("status", [200, 503], ids=["ready", "not ready yet"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_that_ignores_signals_is_ended_all_the_same(number, status, monkeypatch):
    monkeypatch.setattr(serving, "_STOP_S", 1.0)
    port = free_port()
    deaf = "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nsignal.signal = lambda *_: None\n"
    command = [sys.executable, "-c", deaf + small_server(port, status=status, seconds=300)[2]]

    def ask_to_end():
        while not serving._listens("127.0.0.1", port):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask_to_end)
    asking.start()
    assert run_server(command, f"http://127.0.0.1:{port}", 200) == 128 + number
    asking.join()
    assert not serving._listens("127.0.0.1", port)


# --- from a checkpoint to verdicts ------------------------------------------------------------------------------------


@pytest.fixture
def incidents(tmp_path):
    """Three incidents in a file, and their system's names in another."""
    from verl_aiops.incidents import Simulator, simulator_source, simulator_taxonomy, write_incidents, write_taxonomy

    source = simulator_source(Simulator(seed=3, lang="mix"), 3)
    write_incidents(source.stream(), tmp_path / "incidents.jsonl")
    write_taxonomy(simulator_taxonomy(), tmp_path / "names.json")
    return tmp_path / "incidents.jsonl", tmp_path / "names.json"


CLIENT = ["--max-chars", "200", "--round-tokens", "8,120", "--model", "triage"]


def check_verdicts(printed, incidents):
    """One verdict for each incident, made of its system's names."""
    from verl_aiops.incidents import simulator_taxonomy

    rows = [json.loads(line) for line in incidents.read_text(encoding="utf-8").splitlines()]
    sources = {row["id"]: row["source"] for row in rows}
    verdicts = [json.loads(line) for line in printed.splitlines()]
    assert sorted(verdict["id"] for verdict in verdicts) == sorted(sources)
    for verdict in verdicts:
        system = simulator_taxonomy().systems[sources[verdict["id"]]]
        assert verdict["service"] in system.services and verdict["incident_type"] in system.incident_types
        assert verdict["analysis"] and verdict["error"] is None


def test_the_client_gets_constrained_verdicts_of_a_random_model(incidents, tiny_model_dir, capsys):
    """Which by itself writes no JSON, and no name of the lists."""
    spec = importlib.util.spec_from_file_location("triage_client", ROOT / "examples" / "triage_client.py")
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    file, names = incidents
    with listening_app(app_of(Model(tiny_model_dir), "triage", None)) as port:
        arguments = [str(file), *CLIENT, "--endpoint", f"http://127.0.0.1:{port}/v1"]
        assert client.main([*arguments, "--taxonomy", str(names), "--schema"]) == 0
        check_verdicts(capsys.readouterr().out, file)
        assert client.main([*arguments, "--schema"]) == 0  # without lists any text may stand in the two fields
        assert all(json.loads(line)["service"] for line in capsys.readouterr().out.splitlines())
        assert client.main(arguments) == 1
        assert all(json.loads(line)["service"] is None for line in capsys.readouterr().out.splitlines())


@pytest.mark.slow
def test_from_a_checkpoint_to_an_evaluation_by_script(incidents, run_folder, tmp_path):
    """serve_sglang.sh, the client and the evaluator as commands; the tests' server stands for SGLang's launcher."""
    file, names = incidents
    port = free_port()
    served = environment(
        path=stub_sglang(tmp_path / "stub"),
        MODEL=run_folder / "global_step_4",
        MERGED=tmp_path / "merged",
        PORT=port,
        API_KEY="a-key",
        CUDA_VISIBLE_DEVICES="",
    )
    asked = environment(OPENAI_API_KEY="a-key", CUDA_VISIBLE_DEVICES="")
    endpoint = ["--endpoint", f"http://127.0.0.1:{port}/v1"]

    def python(*arguments):
        command = [sys.executable, *map(str, arguments), *CLIENT, *endpoint]
        return subprocess.run(command, env=asked, cwd=ROOT, capture_output=True, text=True, timeout=300)

    log = (tmp_path / "server.log").open("w+")
    server = subprocess.Popen(["bash", str(ROOT / "examples" / "serve_sglang.sh")], env=served, stderr=log, stdout=log)
    try:
        end = time.monotonic() + 300
        while "ready after" not in (tmp_path / "server.log").read_text():
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        made = python("examples/triage_client.py", file, "--taxonomy", names, "--schema")
        assert made.returncode == 0, made.stderr
        check_verdicts(made.stdout, file)
        run = ["-m", "verl_aiops.cli", "eval", "--incidents", file, "--n", "2", "--temperature", "1"]
        for options, share in ((["--schema"], 1), ([], 0)):
            out = tmp_path / f"eval{share}"
            made = python(*run, *options, "--out", out)
            assert made.returncode == 0, made.stderr
            summary = json.loads((out / "summary.json").read_text())
            assert summary["overall"]["metrics"]["json_ok"]["value"] == share
        server.terminate()
        assert server.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        server.kill()
        log.close()
    assert "a-key" not in (tmp_path / "server.log").read_text()

"""A server that is not there, or dies between two answers, as `verl-aiops triage` and `investigate` tell of it."""

import json
import os
import socket

import pytest
from case_parts import record
from eval_harness import completion, serving

from verl_aiops import http
from verl_aiops.cli.main import main
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.openai_backend import EndpointOptions
from verl_aiops.evaluation.run.server_watch import _GONE, FailuresKept, ServerGone, require_server
from verl_aiops.evaluation.run.verdicts import Verdicts
from verl_aiops.incidents import Simulator, simulator_source, write_incidents

COUNT = 50
VERDICT = {"service": "db", "incident_type": "oom"}


@pytest.fixture(scope="module")
def incidents(tmp_path_factory):
    file = tmp_path_factory.mktemp("watched") / "incidents.jsonl"
    write_incidents(simulator_source(Simulator(seed=0), COUNT).stream(), file)
    return file


@pytest.fixture
def dead():
    """The address of nobody."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


def triage(incidents, url, *more):
    return main(["triage", str(incidents), "--endpoint", url, "--model", "m", "--round-tokens", "9,9", *map(str, more)])


def verdict(body):
    return 200, completion(json.dumps(VERDICT) if len(body["messages"]) > 1 else "Full.")


@pytest.mark.parametrize("command", ["triage", "investigate"])
def test_nobody_at_the_address_is_told_before_anything_is_asked(command, incidents, dead, tmp_path, capsys):
    source = incidents
    if command == "investigate":
        source = tmp_path / "cases.jsonl"
        source.write_text(json.dumps(record()), encoding="utf-8")
    assert main([command, str(source), "--endpoint", dead, "--model", "m"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert f"--endpoint {dead}: no server answers there (GET {dead}/models: " in shown.err
    assert "transformers serve m" in shown.err and "docs/12-serving.md" in shown.err


def test_whoever_listens_is_let_through_whatever_it_says():
    with serving(None) as server:  # knows no /v1/models: 404
        require_server(EndpointOptions(server.url, "m"))
    with pytest.raises(EvaluationError, match="no server answers there"):
        require_server(EndpointOptions(server.url, "m"))


def test_a_server_that_dies_is_told_once_and_the_same_command_goes_on(incidents, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(http, "LONGEST_WAIT_S", 0.01)
    out = tmp_path / "verdicts.jsonl"
    with serving(lambda body, number: verdict(body) if number < 31 else (503, "dead")) as server:
        assert triage(incidents, server.url, "--out", out) == 1
        shown = capsys.readouterr()
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert 0 < len(lines) < COUNT and all(line["error"] is None for line in lines)
        assert shown.out == "" and shown.err.count("\n") == 1 and "HTTP 503" in shown.err
        assert f"{len(lines)} of {COUNT} incidents answered, {COUNT - len(lines)} left; the same command" in shown.err
        # those that were being asked, 16 at a time, and few of the rest
        assert len({body["messages"][0]["content"] for body in server.requests}) <= len(lines) + 16 + _GONE < COUNT
        before = len(server.requests)
        server.reply = lambda body, number: verdict(body)
        assert triage(incidents, server.url, "--out", out) == 0
        again = [body["messages"][0]["content"] for body in server.requests[before:]]
        assert len(set(again)) == COUNT - len(lines)  # what was answered is not asked again
    assert capsys.readouterr().out == f"triage: {len(lines)} of {COUNT} incidents answered in {out} before\n"
    ids = [json.loads(line)["id"] for line in incidents.read_text().splitlines()]
    assert sorted(json.loads(line)["id"] for line in out.read_text().splitlines()) == sorted(ids)
    assert triage(incidents, server.url, "--out", out) == 0  # nothing is left to ask a server


def test_prompts_that_are_refused_one_and_all_have_a_line_each(incidents, capsys):
    """More of them in a row than a server is given: it is there, and reads every one."""
    with serving(lambda body, number: (400, "too long")) as server:
        assert triage(incidents, server.url) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == COUNT > _GONE
    assert shown.err.startswith(f"triage: {COUNT} of {COUNT} incidents got no answer, ")


def test_what_was_refused_for_its_content_has_a_line_and_the_rest_an_answer(incidents, capsys):
    with serving(lambda body, number: (400, "too long") if number % 5 == 0 else verdict(body)) as server:
        assert triage(incidents, server.url) == 1
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    failed = [line for line in lines if line["error"]]
    assert len(lines) == COUNT and shown.err.startswith(f"triage: {len(failed)} of {COUNT} incidents got no answer, ")
    assert 5 < len(failed) < COUNT and all("HTTP 400" in line["error"] for line in failed)


def test_a_name_that_is_not_served_is_told_once(incidents, capsys):
    with serving(lambda body, number: (404, {"error": "no model m"})) as server:
        assert triage(incidents, server.url) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "no model m" in shown.err
    assert f"0 of {COUNT} incidents answered, {COUNT} left; with --out FILE" in shown.err


def test_failures_wait_for_the_answer_that_shows_whose_they_are():
    told = []
    kept = FailuresKept(told.append)
    for number in range(_GONE - 1):
        kept.add(number, f"no {number}", True)
    assert told == [] and len(kept.kept) == _GONE - 1
    kept.add("too long", "400", False)
    assert told == [*range(_GONE - 1), "too long"] and not kept.kept
    for number in range(_GONE - 1):
        kept.add(number, "no", True)
    with pytest.raises(ServerGone, match="gone now"):
        kept.add("last", "gone now", True)
    assert len(kept.kept) == _GONE and len(told) == _GONE
    kept.end()
    assert told[-1] == "last" and len(told) == 2 * _GONE and not kept.kept


def line(name, error=None, **more):
    return json.dumps({"id": name, **VERDICT, "analysis": "x", "error": error, **more})


class Asked:
    def __init__(self, name):
        self.id = name


def test_a_file_of_verdicts_is_taken_up_where_it_ends(tmp_path):
    file = tmp_path / "v.jsonl"
    whole = [line("a"), line("b", "HTTP 400"), line("c", service=None), line("a")]
    file.write_text("\n".join(whole) + "\n" + line("d")[:20], encoding="utf-8")
    verdicts = Verdicts(file, list(VERDICT))
    assert file.read_text() == "\n".join([whole[0], whole[2], whole[3]]) + "\n" and verdicts.without_verdict == 1
    assert [one.id for one in verdicts.missing([Asked(name) for name in "aaabcd"])] == ["a", "b", "d"]
    verdicts.add({"id": "\ud800"})
    verdicts.close()
    assert file.read_text().endswith('{"id": "\\ud800"}\n')


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id,service\n1,db\n", "v.jsonl: expected an object of analysis, error, id"),
        ("a note of mine", "v.jsonl: expected an object of analysis, error, id"),
        (line("a") + "\n" + json.dumps({"id": "b"}) + "\n", "line 2: expected an object of analysis, error, id"),
        (line("a") + "\n{\n", "line 2: not JSON"),
        (line("a", team="x") + "\n", "line 1: expected an object of"),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, text, told):
    file = tmp_path / "v.jsonl"
    file.write_text(text)
    with pytest.raises(EvaluationError, match=told):
        Verdicts(file, list(VERDICT))
    assert file.read_text() == text
    with pytest.raises(EvaluationError, match="expected a file of lines, found a folder"):
        Verdicts(tmp_path, list(VERDICT))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_names_the_file(tmp_path):
    verdicts = Verdicts(tmp_path / "v.jsonl", list(VERDICT))
    verdicts.close()
    (tmp_path / "v.jsonl").unlink()
    verdicts._file = open("/dev/full", "ab")
    with pytest.raises(OSError, match=r"v.jsonl: cannot be written: no space left"):
        verdicts.add({"id": "a"})

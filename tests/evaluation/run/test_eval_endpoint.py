"""Answers from an OpenAI-compatible server: what is sent, and every way in which a server can fail."""

import importlib.util
import json
import socket
import threading
import time
from pathlib import Path

import pytest
from eval_harness import completion, oracle, questions_of, quoting, right_answer, serving

from verl_aiops import http
from verl_aiops.cli import main as cli
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import Job, SamplingOptions
from verl_aiops.evaluation.run.evaluate import EvaluationPlan, evaluate
from verl_aiops.evaluation.run.openai_backend import EndpointBackend, EndpointOptions
from verl_aiops.evaluation.run.questions import offered_names
from verl_aiops.evaluation.run.rename_check import rename_questions
from verl_aiops.incidents import Simulator, simulator_source, write_incidents
from verl_aiops.rollout.rounds.settings import ANSWER_SCHEMA

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def questions():
    return questions_of(6)


def generate(url, questions, sampling=None, **options):
    """{id: generation} of one sample each."""
    fast = {"timeout_s": 5, "deadline_s": 20, "backoff_s": 0.01, **options}
    backend = EndpointBackend(EndpointOptions(url, "m", **fast), sampling or SamplingOptions(round_tokens=(30, 20)))
    made = {}
    backend.check(questions)
    backend.generate([Job(q, 0, 11) for q in questions], lambda job, g: made.__setitem__(job.question.id, g))
    return made


def only(url, questions, **options):
    return next(iter(generate(url, questions[:1], **options).values()))


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_two_rounds_with_the_first_answer_in_the_second(questions):
    with serving(oracle(questions)) as server:
        made = generate(server.url + "/", questions, SamplingOptions(0.7, 0.9, round_tokens=(30, 20)), api_key="secret")
    for question in questions:
        generation = made[question.id]
        assert generation.turns == [quoting(question), right_answer(question)]
        assert generation.cut == [False, False] and generation.tokens == [7, 7] and generation.error is None
        first, second = [r for r in server.requests if r["messages"][0]["content"] == question.messages[0]["content"]]
        assert first == {
            "model": "m",
            "messages": list(question.messages),
            "max_tokens": 30,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 11,
            "stream": False,
        }
        assert second["max_tokens"] == 20 and second["messages"] == [
            *question.messages,
            {"role": "assistant", "content": quoting(question)},
            {"role": "user", "content": question.rounds[0]},
        ]
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}


def test_one_round_of_the_direct_style():
    direct = questions_of(2, style="direct")
    with serving(oracle(direct, round1=right_answer)) as server:
        made = generate(server.url, direct)
    assert [g.turns for g in made.values()] == [[right_answer(q)] for q in direct]
    assert len(server.requests) == 2 and "authorization" not in server.headers[0]


def schema_of(request):
    return request["response_format"]["json_schema"]["schema"]


def test_only_the_last_round_is_constrained(questions):
    with serving(oracle(questions)) as server:
        only(
            server.url,
            questions,
            schema=True,
            sampling=SamplingOptions(chat_template_kwargs={"enable_thinking": False}),
        )
    first, second = server.requests
    assert "response_format" not in first and second["response_format"]["type"] == "json_schema"
    assert second["response_format"]["json_schema"]["strict"] is True
    assert first["chat_template_kwargs"] == second["chat_template_kwargs"] == {"enable_thinking": False}
    assert first["max_tokens"] == 448 and second["max_tokens"] == 64


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("style", ["two_round", "direct"])
def test_the_schema_takes_the_names_that_the_prompt_lists_and_no_others(lang, style):
    listing = questions_of(3, lang=lang, style=style, max_candidates=4)
    with serving(oracle(listing, round1=right_answer)) as server:
        generate(server.url, listing, schema=True, concurrency=1)
    constrained = [request for request in server.requests if "response_format" in request]
    assert len(constrained) == 3
    for question, request in zip(listing, constrained):
        fields = schema_of(request)["properties"]
        names = {name: field["enum"] for name, field in fields.items()}
        # four, and beside them the two answers that name no fault
        assert names == question.ground_truth["candidates"] and len(names["service"]) == 4 + 2
        assert all(name in request["messages"][-1]["content"] for listed in names.values() for name in listed)
        assert schema_of(request) | {"properties": ANSWER_SCHEMA["properties"]} == ANSWER_SCHEMA


@pytest.mark.parametrize("style", ["two_round", "direct"])
def test_the_schema_takes_any_name_where_the_prompt_lists_none(style):
    silent = questions_of(2, style=style, show_candidates=False)
    assert silent[0].ground_truth["candidates"]["service"]  # known, but not shown
    with serving(oracle(silent, round1=right_answer)) as server:
        generate(server.url, silent, schema=True)
    assert [schema_of(r) for r in server.requests if "response_format" in r] == [ANSWER_SCHEMA] * 2


def test_renamed_questions_offer_the_new_names(questions):
    renamed, _ = rename_questions(questions, seed=1)
    assert renamed
    for question in renamed:
        before = next(q for q in questions if q.id == question.id)
        assert offered_names(question) == question.ground_truth["candidates"] != before.ground_truth["candidates"]


REFUSALS = [400, 404, 422, 501]


@pytest.mark.parametrize("status", REFUSALS)
def test_a_server_that_refuses_the_schema_ends_the_run_at_once(questions, status):
    def reply(body, number):
        if "response_format" in body:
            return status, {"error": "Grammar-based generation is not supported"}
        return oracle(questions)(body, number)

    with serving(reply) as server, pytest.raises(EvaluationError) as refused:
        generate(server.url, questions, schema=True, concurrency=1)
    # round 1, the refused round 2, and the same without the schema
    assert len(server.requests) == 3
    assert f"--schema: the server refuses response_format json_schema, and answers without it ({questions[0].id}: " in (
        str(refused.value)
    )
    assert f"HTTP {status}" in str(refused.value) and "Grammar-based generation" in str(refused.value)


def test_a_refusal_that_the_schema_has_no_part_in_fails_its_row_alone(questions):
    bad = questions[1].messages[0]["content"]

    def reply(body, number):
        second = len(body["messages"]) > 1
        if second and body["messages"][0]["content"] == bad:
            return 400, {"error": "longer than the context"}
        return oracle(questions)(body, number)

    with serving(reply) as server:
        made = generate(server.url, questions, schema=True)
    assert [q.id for q in questions if made[q.id].error] == [questions[1].id]
    assert "longer than the context" in made[questions[1].id].error


def test_concurrency_is_bounded_and_used(questions):
    many = questions_of(24)
    with serving(oracle(many), delay=lambda body, number: 0.03) as server:
        generate(server.url, many, concurrency=5)
        assert 3 <= server.most_open <= 5
        generate(server.url, many, concurrency=1)
    assert server.most_open <= 5


def test_a_cut_answer_is_flagged_and_tokens_may_be_missing(questions):
    def reply(body, number):
        answer = completion("x", finish="length")
        del answer["usage"]
        return 200, answer

    with serving(reply) as server:
        made = only(server.url, questions)
    assert made.cut == [True, True] and made.tokens is None and made.error is None


# --- faults -----------------------------------------------------------------------------------------------------------

HTML = (200, "<html><body>Bad gateway</body></html>")
GARBAGE = [
    HTML,
    (200, b"\xff\xfe\x00"),
    (200, ""),
    (200, "[" * 100_000),
    (200, "null"),
    (200, {"choices": []}),
    (200, {"choices": {}}),
    (200, {"choices": [{"message": None}]}),
    (200, {"choices": [{"message": {}}]}),
    (200, {"choices": [{"message": {"content": 3}}]}),
    (200, {"choices": [{"message": {"content": ["x"]}}]}),
    (200, {"error": {"message": "overloaded"}}),
    (500, "oops"),
    (502, HTML[1]),
    (503, ""),
    (429, {"error": "slow down"}),
    (408, ""),
]


@pytest.mark.parametrize("fault", GARBAGE, ids=range(len(GARBAGE)))
def test_a_fault_that_passes_costs_nothing(questions, fault):
    with serving(lambda body, number: fault if number in (0, 2) else oracle(questions)(body, number)) as server:
        made = only(server.url, questions)
    assert made.error is None and made.turns[1] == right_answer(questions[0]) and len(server.requests) == 4


@pytest.mark.parametrize("fault", GARBAGE, ids=range(len(GARBAGE)))
def test_a_fault_that_stays_fails_the_row_after_all_attempts(questions, fault):
    with serving(lambda body, number: fault) as server:
        made = only(server.url, questions, attempts=3)
    assert made.error.endswith("(attempt 3 of 3)") and len(server.requests) == 3
    assert made.turns == [] and made.tokens is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 301])
def test_a_refusal_is_not_asked_again(questions, status):
    with serving(lambda body, number: (status, {"error": "the key secret is wrong"})) as server:
        made = only(server.url, questions, api_key="secret")
    assert len(server.requests) == 1 and f"HTTP {status}" in made.error and "(attempt 1 of 5)" in made.error
    assert "secret" not in made.error and "***" in made.error


def test_a_round_that_fails_keeps_the_one_before(questions):
    def reply(body, number):
        return oracle(questions)(body, number) if len(body["messages"]) == 1 else (500, "no")

    with serving(reply) as server:
        made = only(server.url, questions, attempts=2)
    assert made.turns == [quoting(questions[0])] and "HTTP 500" in made.error and len(server.requests) == 3


def test_a_sleeping_server_costs_the_timeout_and_no_more(questions):
    with serving(lambda body, number: (200, completion("x")), delay=lambda body, number: 60) as server:
        started = time.monotonic()
        made = only(server.url, questions, timeout_s=0.3, attempts=2)
        assert time.monotonic() - started < 5
    assert "no reply within 0.3 s (attempt 2 of 2)" in made.error


def test_the_deadline_ends_retries(questions):
    with serving(lambda body, number: (503, "")) as server:
        started = time.monotonic()
        made = only(server.url, questions, attempts=1000, backoff_s=0.1, deadline_s=1.0)
        assert time.monotonic() - started < 4
    assert "HTTP 503" in made.error and 2 <= len(server.requests) < 20


def test_retry_after_is_heeded_within_the_deadline(questions):
    def reply(body, number):
        return (429, "", {"Retry-After": "0.5"}) if number == 0 else oracle(questions)(body, number)

    with serving(reply) as server:
        assert only(server.url, questions).error is None
        assert server.times[1] - server.times[0] >= 0.5
    with serving(lambda body, number: (429, "", {"Retry-After": "86400"})) as server:
        started = time.monotonic()
        assert "HTTP 429" in only(server.url, questions).error
        assert time.monotonic() - started < 5 and len(server.requests) == 1


@pytest.mark.parametrize("header", ["Wed, 21 Oct 2026 07:28:00 GMT", "nan", "inf", "-5", "x" * 50])
def test_odd_retry_after_is_left_to_the_back_off(questions, header):
    def reply(body, number):
        return (503, "", {"Retry-After": header}) if number == 0 else oracle(questions)(body, number)

    with serving(reply) as server:
        assert only(server.url, questions).error is None


def raw_server(talk):
    """A socket that is no HTTP server: `talk(connection)` in a thread for each connection."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(16)

    def accept():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listening, f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def drip(connection):
    """One byte of a body at a time, for ever."""
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        try:
            connection.sendall(b" ")
        except OSError:
            return
        time.sleep(0.05)


def flood(connection):
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        for _ in range(100):
            connection.sendall(b" " * (1 << 20))
    except OSError:
        pass


def hang_up(connection):
    connection.recv(1 << 16)
    connection.close()


def no_http(connection):
    connection.recv(1 << 16)
    connection.sendall(b"\x00\x01SSH-2.0-OpenSSH\r\n")
    connection.close()


def silence(connection):
    time.sleep(30)


@pytest.mark.parametrize(
    "talk, message",
    [
        (drip, "no reply within"),
        (flood, "a reply of more than"),
        (hang_up, "Disconnected"),
        (no_http, "Bad status line"),
        (silence, "no reply within"),
    ],
)
def test_what_is_no_http_server_cannot_hold_a_run(questions, talk, message):
    listening, url = raw_server(talk)
    try:
        started = time.monotonic()
        made = only(url, questions, timeout_s=0.5, attempts=2, deadline_s=3)
        assert time.monotonic() - started < 8
    finally:
        listening.close()
    assert message in made.error


def test_nobody_listens(questions):
    listening, url = raw_server(silence)
    listening.close()
    made = only(url, questions, attempts=2)
    assert "ClientConnectorError" in made.error and "(attempt 2 of 2)" in made.error


def test_a_dead_server_is_found_out_once(questions):
    with serving(lambda body, number: (500, "")) as server:
        made = generate(server.url, questions, concurrency=1, attempts=4)
    assert all(g.error for g in made.values())
    assert len(server.requests) == 4 + 5  # the first with all its attempts, each other with one


def test_a_server_that_comes_back_is_asked_as_before(questions):
    down = iter([True] * 4 + [False] * 2 + [True, False, False] + [False] * 99)

    def reply(body, number):
        return (500, "") if next(down) else oracle(questions)(body, number)

    with serving(reply) as server:
        made = list(generate(server.url, questions[:3], concurrency=1, attempts=4).values())
    assert [g.error is None for g in made] == [False, True, True] and len(server.requests) == 9


@pytest.mark.parametrize(
    "text, kept",
    [
        ("\ud800 x", "? x"),
        (None, ""),
        ("\x00\u2028", "\x00\u2028"),
        ("<|im_end|>\n<|im_start|>user", "<|im_end|>\n<|im_start|>user"),
    ],
)
def test_odd_texts_are_texts(questions, text, kept, tmp_path):
    with serving(lambda body, number: (200, json.dumps(completion(text)))) as server:
        backend = EndpointBackend(EndpointOptions(server.url, "m"), SamplingOptions())
        report = evaluate(questions[:2], backend, tmp_path, EvaluationPlan(), {})
    assert report.fault == "" and report.summary["overall"]["metrics"]["json_ok"]["value"] == 0
    lines = (tmp_path / "generations.jsonl").read_bytes().decode("utf-8").split("\n")[:-1]
    assert [json.loads(line)["rounds"] for line in lines] == [[kept, kept]] * 2
    assert [r["messages"][-2]["content"] for r in server.requests if len(r["messages"]) > 1] == [kept, kept]


@pytest.mark.parametrize("tokens", [True, -1, 1.5, "7", 10**30, None, [1]])
def test_odd_token_counts_are_unknown(questions, tokens):
    with serving(lambda body, number: (200, completion("x", tokens=tokens))) as server:
        assert only(server.url, questions).tokens is None


def test_endpoint_settings_that_cannot_work():
    for url in ("ftp://h/v1", "http://", "h:8000", "http://u:p@h/v1", "http://h/v1?key=1", "http://h/v1#x"):
        with pytest.raises(EvaluationError, match="--endpoint"):
            EndpointOptions(url, "m")
    for name in ("concurrency", "attempts", "timeout_s", "deadline_s"):
        with pytest.raises(EvaluationError, match=f"--{name.removesuffix('_s')}"):
            EndpointOptions("http://h/v1", "m", **{name: 0})
    assert EndpointOptions("http://h/v1/chat/completions", "m").chat_url == "http://h/v1/chat/completions"


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def incidents(tmp_path):
    source = simulator_source(Simulator(seed=0, lang="mix", difficulty="mix"), 6)
    write_incidents(source.stream(), tmp_path / "incidents.jsonl")
    return tmp_path / "incidents.jsonl"


def command(server, incidents, out, *more):
    arguments = ["eval", "--endpoint", server.url, "--model", "m", "--incidents", incidents, "--max-chars", 400]
    arguments += ["--trim", "evidence"]  # as `questions_of` asks
    return cli.main([*map(str, arguments), "--out", str(out), *map(str, more)])


def test_the_command_from_incidents_to_tables(incidents, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key")
    with serving(oracle(questions_of(6))) as server:
        # the candidate lists of a file's incidents are in round 2; round 1 is that of the same incidents made here
        code = command(server, incidents, tmp_path / "out", "--api-key-env", "MY_KEY")
    shown = capsys.readouterr().out
    assert code == 0 and "both fields right" in shown and "100.0 %" in shown
    assert server.headers[0]["authorization"] == "Bearer secret-key"
    for file in (tmp_path / "out").iterdir():
        assert b"secret-key" not in file.read_bytes()


def test_fields_of_incidents_that_nothing_reads_are_named(incidents, tmp_path, capsys):
    lines = [json.loads(line) for line in Path(incidents).read_text(encoding="utf-8").splitlines()]
    file = tmp_path / "more.jsonl"
    file.write_text("".join(json.dumps({**line, "team": "payments"}) + "\n" for line in lines), encoding="utf-8")
    with serving(oracle(questions_of(6))) as server:
        assert command(server, file, tmp_path / "out") == 0
    assert f"{file}: fields that nothing reads: team 6\n" in capsys.readouterr().out
    asked = ["eval", "--model", "m", "--endpoint", "http://h/v1", "--data", "rl.parquet", "--out", str(tmp_path / "o")]
    assert cli.main([*asked, "--trim", "blind"]) == 2
    assert "--trim: goes with --incidents; rl.parquet has its prompts already" in capsys.readouterr().err


def test_the_command_goes_on_and_refuses_other_settings(incidents, tmp_path, capsys):
    answering = oracle(questions_of(6))
    with serving(lambda body, number: answering(body, number) if number < 5 else (500, "")) as server:
        assert command(server, incidents, tmp_path / "out", "--concurrency", 1, "--attempts", 1) == 1
        assert "answers failed" in capsys.readouterr().err
        count = len(server.requests)
        assert command(server, incidents, tmp_path / "out", "--temperature", 0.5) == 2
        assert "temperature was 0.0, is 0.5" in capsys.readouterr().err
        assert len(server.requests) == count
        server.reply = answering
        assert command(server, incidents, tmp_path / "out") == 0
        # two conversations were whole; the round that a third had is asked for again
        assert len(server.requests) == count + 2 * 4
    lines = (tmp_path / "out" / "generations.jsonl").read_bytes().splitlines()
    assert len(lines) == 6 and all(json.loads(line)["error"] is None for line in lines)


def test_too_many_failures_end_the_command_non_zero(incidents, tmp_path, capsys):
    answering = oracle(questions_of(6))
    bad = questions_of(6)[3].messages[0]["content"]

    def reply(body, number):
        return (400, "too long") if body["messages"][0]["content"] == bad else answering(body, number)

    with serving(reply) as server:
        assert command(server, incidents, tmp_path / "a") == 1
        assert "1 of 6 answers failed (--max-failed-share 0.05)" in capsys.readouterr().err
        assert command(server, incidents, tmp_path / "b", "--max-failed-share", 0.2) == 0
        assert "1 of 6 answers failed and count in no figure" in capsys.readouterr().out


# --- the example ------------------------------------------------------------------------------------------------------


@pytest.fixture
def client():
    spec = importlib.util.spec_from_file_location("triage_client", ROOT / "examples" / "triage_client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_triage_client_prints_verdicts(client, tmp_path, capsys):
    from verl_aiops.incidents import simulator_taxonomy, write_taxonomy

    incident = next(iter(simulator_source(Simulator(seed=0), 1).stream())).to_dict()
    unlabelled = {k: v for k, v in incident.items() if k not in ("service", "incident_type", "evidence", "aliases")}
    unlabelled["source"] += "/eu"
    rows = [incident, {**unlabelled, "id": "mine"}]
    path = tmp_path / "incidents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_taxonomy(simulator_taxonomy(), tmp_path / "names.json")
    verdict = {"service": "db", "incident_type": "oom"}

    def reply(body, number):
        return 200, completion(json.dumps(verdict) if len(body["messages"]) > 1 else "Looks full.")

    with serving(reply) as server:
        arguments = [str(path), "--endpoint", server.url, "--model", "m"]
        assert client.main([*arguments, "--taxonomy", str(tmp_path / "names.json"), "--schema"]) == 0
        shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        wanted = [
            {"id": name, **verdict, "analysis": "Looks full.", "error": None} for name in (incident["id"], "mine")
        ]
        assert sorted(shown, key=lambda line: line["id"]) == sorted(wanted, key=lambda line: line["id"])
        last = [r for r in server.requests if len(r["messages"]) > 1]
        system = simulator_taxonomy().systems[incident["source"]]
        for request in last:
            fields = schema_of(request)["properties"]
            assert sorted(fields["service"]["enum"]) == sorted(system.services)
            assert sorted(fields["incident_type"]["enum"]) == sorted(system.incident_types)
            assert all(name in request["messages"][-1]["content"] for name in system.services)
        assert client.main([*arguments, "--id", "mine"]) == 0
        assert "response_format" not in server.requests[-1] and "Services:" not in str(server.requests[-1])
        assert client.main([*arguments, "--id", "other"]) == 2
        assert client.main([*arguments, "--id", "mine", "--schema"]) == 0
        assert schema_of(server.requests[-1]) == ANSWER_SCHEMA
        server.reply = lambda body, number: (200, completion("no verdict"))
        capsys.readouterr()
        assert client.main([*arguments, "--id", "mine"]) == 1
        shown = capsys.readouterr()
        assert json.loads(shown.out)["service"] is None and shown.err == ""
        assert client.main([*arguments, "--id", "mine", "--schema"]) == 1
        assert "no verdict in spite of --schema, such as that to mine" in capsys.readouterr().err
        server.reply = lambda body, number: reply(body, number) if "mine" in str(body["messages"]) else (401, "")
        rows[1]["symptom"] += " mine"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert client.main(arguments) == 1
        shown = capsys.readouterr()
        assert f"triage: 1 of 2 incidents got no answer, such as {incident['id']}: " in shown.err
        assert len(shown.out.splitlines()) == 2 and "401" in shown.err
        server.reply = lambda body, number: (400, "no grammar") if "response_format" in body else reply(body, number)
        assert client.main([*arguments, "--schema"]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1
        assert "triage_client: error: --schema: the server refuses response_format" in shown.err
    assert client.main([str(tmp_path / "none.jsonl"), "--endpoint", "http://h/v1", "--model", "m"]) == 2


def test_waits_stay_short(questions, monkeypatch):
    """However many attempts, no single wait is longer than `LONGEST_WAIT_S`."""
    monkeypatch.setattr(http, "LONGEST_WAIT_S", 0.05)
    with serving(lambda body, number: (503, "")) as server:
        started = time.monotonic()
        only(server.url, questions, attempts=12, backoff_s=0.02)
        assert time.monotonic() - started < 5 and len(server.requests) == 12


# --- replies without text ---------------------------------------------------------------------------------------------


def wordless(finish="stop", **fields):
    message = {"role": "assistant", "content": None, **fields}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": {"completion_tokens": 12}}


CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
WITHOUT_TEXT = [
    (wordless(reasoning_content="The disk, so db."), "reasoning only", "finish_reason 'stop'"),
    (wordless(reasoning="The disk, so db.", content=""), "reasoning only", "finish_reason 'stop'"),
    (wordless("length", reasoning_content="The disk"), "cut while reasoning", "--round-tokens"),
    (wordless("length", content=" "), "cut before any text", "--round-tokens"),
    (wordless("content_filter"), "filtered", "content_filter"),
    (wordless(refusal="I can not help with that."), "refused", "I can not help"),
    (wordless("tool_calls", tool_calls=CALL), "a call instead of text", "tool_calls"),
    (wordless(function_call={"name": "f", "arguments": "{}"}), "a call instead of text", "function_call"),
    (wordless("abort"), "ended otherwise", "abort"),
]


@pytest.mark.parametrize("reply, sort, detail", WITHOUT_TEXT, ids=range(len(WITHOUT_TEXT)))
@pytest.mark.parametrize("late", [False, True])
def test_a_reply_without_text_is_no_answer_and_says_why(questions, reply, sort, detail, late, tmp_path):
    """In the first round or in the last; it is not asked again."""

    def answer(body, number):
        return (200, reply) if (len(body["messages"]) > 2) == late else oracle(questions)(body, number)

    with serving(answer) as server:
        backend = EndpointBackend(EndpointOptions(server.url, "m", concurrency=1), SamplingOptions())
        report = evaluate(questions[:3], backend, tmp_path, EvaluationPlan(), {})
    assert len(server.requests) == (6 if late else 3)
    assert "3 of 3 answers failed" in report.fault and f"no text: {sort}" in report.fault
    assert report.summary["counts"]["no_text"] == {sort: 3} and report.summary["overall"]["answers"] == 0
    assert f"3 of 3 answers failed and count in no figure; 3 of them replies without text: 3 {sort}" in report.table
    lines = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert all(line["error"].startswith(f"no text: {sort}, ") and detail in line["error"] for line in lines)
    assert all(line["score"] is None and len(line["rounds"]) == late for line in lines)


def test_few_replies_without_text_leave_a_run_whole_and_are_counted_by_their_sort(questions, tmp_path):
    def answer(body, number):
        said = [message["content"] for message in body["messages"]]
        at = next(at for at, q in enumerate(questions) if q.messages[-1]["content"] in said)
        return (200, WITHOUT_TEXT[at * 4][0]) if at < 2 else oracle(questions)(body, number)

    with serving(answer) as server:
        backend = EndpointBackend(EndpointOptions(server.url, "m"), SamplingOptions())
        report = evaluate(questions, backend, tmp_path, EvaluationPlan(max_failed_share=0.5), {})
    assert report.fault == "" and report.summary["counts"]["no_text"] == {"reasoning only": 1, "filtered": 1}
    assert report.summary["overall"]["metrics"]["acc_main"]["value"] == 1.0


def test_text_beside_reasoning_or_a_call_is_an_answer(questions, tmp_path):
    extra = {"reasoning_content": "hm", "tool_calls": CALL, "refusal": None}

    def answer(body, number):
        status, reply = oracle(questions)(body, number)
        reply["choices"][0]["message"] |= extra
        return status, reply

    with serving(answer) as server:
        assert only(server.url, questions).error is None


def test_an_answer_of_nothing_is_counted_as_such(questions, tmp_path):
    with serving(lambda body, number: (200, completion(""))) as server:
        backend = EndpointBackend(EndpointOptions(server.url, "m"), SamplingOptions())
        report = evaluate(questions[:2], backend, tmp_path, EvaluationPlan(), {})
    assert report.summary["overall"]["metrics"]["empty"]["value"] == 1.0
    assert "answers without any text" in report.table

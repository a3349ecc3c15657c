"""An incident reads the same wherever a model is asked about it: validation files, `eval --incidents`, the client."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from eval_harness import completion, serving

from verl_aiops.cli import main as cli
from verl_aiops.incidents import Simulator, simulator_taxonomy, write_incidents, write_taxonomy

ROOT = Path(__file__).resolve().parents[3]
COUNT = 30
# all names, since who does not know the answer cannot leave names out
PROMPTS = ["--max-chars", "450", "--max-candidates", "0"]


@pytest.fixture(scope="module", params=["en", "zh"])
def folder(request, tmp_path_factory):
    """Incidents without aliases, their taxonomy, and the files that each builder makes of them."""
    folder = tmp_path_factory.mktemp(request.param)
    incidents = Simulator(seed=4, lang=request.param, difficulty="hard").stream(COUNT)
    write_incidents(incidents, folder / "i.jsonl")
    write_taxonomy(simulator_taxonomy(), folder / "names.json")
    for command in ("build-rl", "build-prefs", "build-sft"):
        options = ["--incidents", folder / "i.jsonl", "--taxonomy", folder / "names.json", "--val-share", "0.5"]
        assert cli.main([*map(str, [command, *options, *PROMPTS]), "--out", str(folder / f"{command}.parquet")]) == 0
    return folder


def rows(folder, command, side="val."):
    return pq.read_table(folder / f"{command}.{side}parquet").to_pylist()


def asked_of_a_server(run):
    """The user's texts of each incident, the sorted rounds of them, as a server gets them from `run(url)`."""
    with serving(lambda body, number: (200, completion("no verdict"))) as server:
        run(server.url)
    last = [body["messages"] for body in server.requests if len(body["messages"]) == 3]
    return sorted((messages[0]["content"], messages[2]["content"]) for messages in last)


def client(folder, url, *more):
    spec = importlib.util.spec_from_file_location("triage_client", ROOT / "examples" / "triage_client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = [folder / "i.jsonl", "--endpoint", url, "--model", "m", "--taxonomy", folder / "names.json"]
    module.main([*map(str, options), *PROMPTS[:2], *more])


def test_the_same_words_on_all_paths(folder, tmp_path):
    served = asked_of_a_server(lambda url: client(folder, url))
    assert len(served) == COUNT

    def evaluate(url):
        options = ["--model", "m", "--endpoint", url, "--incidents", folder / "i.jsonl", "--out", tmp_path / "eval"]
        cli.main(["eval", *map(str, [*options, "--taxonomy", folder / "names.json"]), *PROMPTS])

    assert asked_of_a_server(evaluate) == served
    built = {
        "build-rl": [(row["prompt"][0]["content"], row["extra_info"]["rounds"][0]) for row in rows(folder, "build-rl")],
        "build-prefs": {
            (row["prompt"][0]["content"], row["prompt"][2]["content"]) for row in rows(folder, "build-prefs")
        },
        "build-sft": [
            (row["messages"][0]["content"], row["messages"][2]["content"]) for row in rows(folder, "build-sft")
        ],
    }
    assert 10 < len(built["build-rl"]) < COUNT
    assert set(built["build-rl"]) <= set(served)
    assert sorted(built["build-rl"]) == sorted(built["build-prefs"]) == sorted(built["build-sft"])


def test_training_is_in_other_words_unless_it_is_asked_to_be_blind(folder, tmp_path):
    served = {first for first, _ in asked_of_a_server(lambda url: client(folder, url))}
    around = {row["prompt"][0]["content"] for row in rows(folder, "build-rl", side="")}
    assert len(around - served) > len(around) / 2
    options = [
        "--incidents",
        folder / "i.jsonl",
        "--trim",
        "blind",
        "--out",
        tmp_path / "r.parquet",
        "--val-share",
        "0.5",
    ]
    assert cli.main(["build-rl", *map(str, options), *PROMPTS]) == 0
    blind = {row["prompt"][0]["content"] for row in pq.read_table(tmp_path / "r.parquet").to_pylist()}
    assert len(blind) == len(around) and blind <= served


def test_where_the_evidence_is_known_all_of_them_can_be_told_to_keep_it(folder, tmp_path):
    """The prompts of training: nobody has to be asked blind who looks at incidents that were looked into already."""
    served = {first for first, _ in asked_of_a_server(lambda url: client(folder, url, "--trim", "evidence"))}
    assert {row["prompt"][0]["content"] for row in rows(folder, "build-rl", side="")} <= served


def test_what_is_served_does_not_depend_on_answer_or_evidence(folder, tmp_path):
    """The client gets the incidents without either, and asks in the same words."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "names.json").write_text((folder / "names.json").read_text())
    lines = [json.loads(line) for line in (folder / "i.jsonl").read_text(encoding="utf-8").splitlines()]
    known = ("service", "incident_type", "evidence", "decoys", "upstream", "fault", "difficulty")
    bare_lines = [{key: value for key, value in line.items() if key not in known} for line in lines]
    (bare / "i.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare_lines), encoding="utf-8")
    assert asked_of_a_server(lambda url: client(bare, url)) == asked_of_a_server(lambda url: client(folder, url))

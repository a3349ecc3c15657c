"""The commands that make data, from the command line to the files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from written_rows import rows_in

from verl_aiops import __version__
from verl_aiops.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


def test_simulate_then_build(tmp_path, capsys):
    incidents, taxonomy = tmp_path / "i.jsonl", tmp_path / "t.json"
    simulate = ["simulate", "--out", str(incidents), "--num-incidents", "30", "--lang", "zh", "--difficulty", "hard"]
    assert main([*simulate, "--topologies", "shop,bank", "--taxonomy-out", str(taxonomy)]) == 0
    assert "30 incidents in" in capsys.readouterr().out
    assert {row["lang"] for row in rows_in(incidents)} == {"zh"}
    assert {row["source"] for row in rows_in(incidents)} == {"simulator/shop", "simulator/bank"}

    prefs = tmp_path / "p.jsonl"
    build = ["build-prefs", "--incidents", str(incidents), "--taxonomy", str(taxonomy), "--out", str(prefs)]
    assert main([*build, "--kinds", "wrong_type=1", "--pairs-per-incident", "1", "--val-share", "0.2"]) == 0
    assert "kinds: wrong_type 100.0%" in capsys.readouterr().out
    assert {row["kind"] for row in rows_in(prefs) + rows_in(tmp_path / "p.val.jsonl")} == {"wrong_type"}

    sft = tmp_path / "s.jsonl"
    assert main(["build-sft", "--incidents", str(incidents), "--out", str(sft), "--style", "direct"]) == 0
    assert [message["role"] for message in rows_in(sft)[0]["messages"]] == ["user", "assistant"]

    rl = tmp_path / "r.jsonl"
    capsys.readouterr()
    assert main(["build-rl", "--incidents", str(incidents), "--out", str(rl), "--val-share", "0.2"]) == 0
    assert f"checked {rl}: {len(rows_in(rl))} rows read back as JSON" in capsys.readouterr().out
    for suffix in ("", ".val"):
        prompts, pairs = rows_in(tmp_path / f"r{suffix}.jsonl"), rows_in(tmp_path / f"p{suffix}.jsonl")
        assert [row["extra_info"]["id"] for row in prompts] == [row["id"].rpartition("#")[0] for row in pairs]


def test_prompt_options_reach_the_prompts(tmp_path):
    out = tmp_path / "p.jsonl"
    options = ["--max-chars", "500", "--no-candidates", "--max-quotes", "1", "--quote-chars", "20"]
    assert main(["build-prefs", "--out", str(out), "--num-incidents", "20", "--val-share", "0", *options]) == 0
    assert not (tmp_path / "p.val.jsonl").exists()
    for row in rows_in(out):
        assert len(row["incident_text"]) <= 500
        assert "Services:" not in row["prompt"][2]["content"]
        assert row["prompt"][1]["content"].count('"') == 2


def test_build_rl_asks_verl_when_given_a_model(tmp_path, tokenizer, capsys):
    tokenizer.save_pretrained(tmp_path / "model")
    build = ["build-rl", "--out", str(tmp_path / "r.parquet"), "--num-incidents", "30", "--model"]
    build += [str(tmp_path / "model"), "--overwrite", "--max-prompt-length"]
    assert main([*build, "4000"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("rows loaded by verl's RLHFDataset; prompts of ") == 2
    assert printed.count("; 0 longer than 4,000") == 2
    assert main([*build, "400"]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("longer than 400\n") == 2
    assert "r.parquet: verl drops " in printed.err and "r.val.parquet: verl drops " in printed.err
    assert "train with data.max_prompt_length=" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build-prefs", "--out", "{tmp}/a.parquet", "--incidents", "{tmp}/none.jsonl"], "no such file"),
        (["build-prefs", "--out", "{tmp}/a.txt"], "cannot write '.txt' files"),
        (["build-prefs", "--out", "{tmp}/a.parquet", "--kinds", "odd=1"], "pair kind 'odd': expected one of"),
        (["build-prefs", "--out", "{tmp}/a.parquet", "--max-candidates", "1"], "would give the answer away"),
        (["build-prefs", "--out", "{tmp}/a.parquet", "--taxonomy", "x"], "--taxonomy goes with --incidents"),
        (
            ["build-sft", "--out", "{tmp}/a.parquet", "--incidents", "x.csv", "--lang", "zh"],
            "--lang belongs to the simulator",
        ),
        (["build-sft", "--out", "{tmp}/taken.parquet"], "pass --overwrite"),
        (["build-sft", "--out", "{tmp}/taken.parquet/a.parquet"], "taken.parquet"),
        (["build-sft", "--out", "{tmp}/a.parquet", "--difficulty", "no"], "difficulty 'no': expected one of easy"),
        (["build-rl", "--out", "{tmp}/taken.parquet"], "pass --overwrite"),
        (["build-rl", "--out", "{tmp}/a.parquet", "--max-prompt-length", "9"], "--max-prompt-length goes with --model"),
        (["build-rl", "--out", "{tmp}/a.parquet", "--model", "{tmp}/none"], "none: no such folder"),
        (["simulate", "--out", "{tmp}/a.csv"], "let the name end in .jsonl"),
        (["simulate", "--out", "{tmp}/a.jsonl", "--num-incidents", "0"], "expected at least 1"),
    ],
)
def test_errors_are_one_line_and_code_2(tmp_path, capsys, arguments, message):
    (tmp_path / "taken.parquet").write_text("mine")
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("verl-aiops: error: ") and printed.err.count("\n") == 1
    assert message in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.parquet"]


def test_bugs_keep_their_traceback(monkeypatch):
    def broken(args):
        raise KeyError("a bug")

    monkeypatch.setitem(COMMANDS, "simulate", COMMANDS["simulate"]._replace(run=broken))
    with pytest.raises(KeyError):
        main(["simulate", "--out", "x.jsonl"])


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "verl_aiops.cli", "build-sft", "--out", str(tmp_path / "s.jsonl")]
    run = subprocess.run([*command, "--num-incidents", "20"], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, b"")
    assert rows_in(tmp_path / "s.jsonl")


def test_help_and_version(capsys):
    for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"verl-aiops {__version__}\n"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def test_the_script_needs_only_a_name(tmp_path):
    out = tmp_path / "prefs.parquet"
    script = ROOT / "scripts" / "aiops_build_prefs.py"
    done = run(sys.executable, str(script), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "preference pairs from simulator" in done.stdout and done.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prefs.parquet", "prefs.val.parquet"]


@pytest.mark.parametrize("command", ["build-prefs", "build-sft", "build-rl"])
def test_the_data_commands_need_neither_torch_nor_verl(tmp_path, command):
    code = (
        "import sys; from verl_aiops.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'verl', 'transformers', 'ray'} & set(sys.modules); sys.exit(code or sorted(heavy) or 0)"
    )
    arguments = [command, "--out", str(tmp_path / "p.parquet"), "--num-incidents", "20"]
    done = run(sys.executable, "-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    done = run(sys.executable, "-m", "verl_aiops.cli", "--help")
    assert done.returncode == 0 and "build-prefs" in done.stdout

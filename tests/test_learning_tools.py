"""benchmarks/learning_tools.py: recipes, the files that it makes, its report, and the whole chain."""

import gzip
import json
import subprocess
import sys

import pytest
from benchmark_folder import FOLDER
from prepared import composed

from verl_aiops.cli.main import main

RECIPES = sorted(path.stem for path in (FOLDER / "recipes" / "tools").glob("*.yaml"))


def read(benchmark, name, *changes):
    module = benchmark("learning_tools")
    return module, module.read_recipe(name, changes, folder=module.RECIPES_OF_TOOLS, sections=module.SECTIONS)


@pytest.mark.parametrize(("name", "device"), [(name, "cpu" if name == "tiny" else "cuda") for name in RECIPES])
def test_every_setting_of_its_commands_is_one_that_verl_has(benchmark, name, device, tmp_path):
    module, recipe = read(benchmark, name)
    for stage in recipe["stages"].values():
        paths = {"model": tmp_path / "model", "data": tmp_path / "rows.parquet", "out": tmp_path / "out"}
        command = module.tools_command(stage, recipe, **paths, seed=3, device=device)
        config = composed(*command[3:])
        assert config.data.max_response_length == recipe["tools"]["response-tokens"]
        if stage["kind"] != "sft":
            asked = config.actor_rollout_ref.rollout.custom.aiops_tools
            assert asked.max_calls == recipe["tools"]["max-calls"]
            assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "aiops_tools"
            assert config.reward.custom_reward_function.path == "pkg://verl_aiops.rewards.aiops_investigation"


def test_unknown_settings_of_its_own_sections_are_refused(benchmark):
    for change, said in (("tools.calls=3", "'calls' is no setting"), ("cases.dev=[]", "'dev' is no setting")):
        with pytest.raises(SystemExit, match=said):
            read(benchmark, "tiny", change)


def test_its_files_keep_sides_apart_and_leave_out_what_the_budget_cannot_hold(benchmark, tmp_path, capsys):
    import pyarrow.parquet as pq

    more = tmp_path / "more"
    more.mkdir()
    for name, source, seed in (("train", "shop", 7), ("asked", "bank", 8)):
        made = ["simulate", "--cases", "--out", str(tmp_path / f"{name}.jsonl"), "--num-incidents", "3"]
        assert main([*made, "--topologies", source, "--seed", str(seed), "--before", "10", "--after", "5"]) == 0
        (more / f"{name}.jsonl.gz").write_bytes(gzip.compress((tmp_path / f"{name}.jsonl").read_bytes()))
    _, recipe = read(benchmark, "tiny")
    folder = tmp_path / "data"
    benchmark("tools_data").build_data(
        recipe, sorted(more.iterdir()), folder, lambda *given: main(list(map(str, given)))
    )
    side = pq.read_table(folder / "side.parquet").to_pylist()
    assert [row["extra_info"]["part"] for row in side] == ["held-out"] * 4 + ["unseen topology"] * 3 + ["public"] * 2
    asked = {row["extra_info"]["id"] for row in side}
    trained = {row["extra_info"]["id"] for row in pq.read_table(folder / "rl.parquet").to_pylist()}
    conversations = [json.loads(line) for line in (folder / "sft.jsonl").read_text().splitlines()]
    trained_on = trained | {row["id"] for row in conversations}
    assert sum("-s7-" in name for name in trained_on) == 3 and not asked & trained_on
    learned = {row["extra_info"]["id"] for row in pq.read_table(folder / "train.parquet").to_pylist()}
    assert learned >= {row["id"] for row in conversations} and not asked & learned
    assert all(sum(m["role"] == "tool" for m in row["chosen"]) <= 3 for row in conversations)
    made = [folder / name for name in ("sft0.jsonl", "more0.jsonl", "more1.jsonl")]
    everything = [json.loads(line) for path in made for line in path.read_text().splitlines()]
    longer = sum(sum(m["role"] == "tool" for m in row["messages"]) > 3 for row in everything)
    assert longer and len(everything) - longer == len(conversations)
    assert f"{len(conversations)} of {len(everything)} conversations have 3 calls at most" in capsys.readouterr().out
    for row in conversations:
        assert [m["role"] for m in row["prompt"]] == ["user"] and row["chosen"][-1]["content"].startswith("{")


def line(number, right, part, label):
    from verl_aiops.evaluation.investigation.asking import CaseJob, Investigated
    from verl_aiops.evaluation.investigation.evaluate import line_of
    from verl_aiops.evaluation.investigation.questions import CaseQuestion

    truth = {"root_causes": [{"component": "db", "reason": "disk_full"}]}
    question = CaseQuestion(f"c{number}", f"g{number}", "shop", "en", part, (), {}, truth)
    verdict = {"root_causes": [{"component": "db" if right else "web", "reason": "disk_full"}]}
    call = {"turn": 0, "name": "t", "arguments": "{}", "ok": True, "result": "db: ``` full", "reply": "db: ``` full"}
    made = Investigated(["ask " + label, json.dumps(verdict)], [False] * 2, [3, 4], [call], [1, 0])
    return line_of(CaseJob(question, 0, 0), made, {})


def test_its_report_is_made_of_kept_answers_and_shows_a_case_that_training_made_right(benchmark, tmp_path):
    report = benchmark("tools_report")
    files = {}
    wrong_of = {"rule": range(0, 12, 2), "base": range(12), "sft": range(8), "grpo": range(4), "online_dpo": range(2)}
    for label, wrong in wrong_of.items():
        lines = [line(n, n not in wrong, ("held-out", "public")[n % 2], label) for n in range(12)]
        if label == "online_dpo":  # its time was over before it was asked about all of the second side
            lines = [one for one in lines if one["part"] == "held-out" or one["id"] == "c1"]
        (tmp_path / "generations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        files[label] = [tmp_path / "answers" / label / "s0.jsonl.gz"]
        report.keep_investigations(tmp_path / "generations.jsonl", files[label][0])
    result, text = report.write_report(tmp_path, files, ("rule",))
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in text.splitlines()[2:]}
    assert list(rows) == ["rule", "base", "sft", "grpo", "online_dpo"]
    # six cases a side: exact set, any service and reward of held-out, then of public
    assert [cell.split(" %")[0] for cell in rows["grpo"][:2]] == ["66.7", "66.7"]
    assert rows["rule"][0].startswith("0.0 %") and rows["rule"][3].startswith("100.0 %")
    assert result["public"]["differences"]["grpo"]["metrics"]["acc_main"]["value"] == pytest.approx(2 / 6)
    assert "; +33.3 [" in rows["grpo"][0] and "; " not in rows["sft"][0]
    assert rows["online_dpo"][0].startswith("83.3 %") and rows["online_dpo"][3] == "-"
    assert "online_dpo" not in result["public"]["runs"]
    assert "grpo - sft" in (tmp_path / "tables" / "public.txt").read_text()
    shown = (tmp_path / "transcript.md").read_text()
    assert shown.startswith(("# c2 ", "# c4 ", "# c6 "))
    assert "## sft: reward" in shown and "ask grpo" in shown and "````\ndb: ``` full\n````" in shown
    assert "rule" not in shown
    with gzip.open(files["sft"][0], "rt") as file:
        kept = {(one := json.loads(text))["id"]: one for text in file}
    assert kept["c0"]["rounds"][0] == "ask sft" and kept["c0"]["tool_calls"][0]["reply"] == "db: ``` full"
    # cases of others: what is kept says nothing of their telemetry, and the same table is made of it
    assert "ask" not in json.dumps(kept["c1"]) and "full" not in json.dumps(kept["c1"]) and kept["c1"]["score"]


@pytest.mark.slow
@pytest.mark.e2e
def test_the_tiny_recipe_goes_from_cases_to_the_report(tmp_path, tiny_model_dir):
    command = [sys.executable, str(FOLDER / "learning_tools.py"), "--recipe", "tiny", "--model", str(tiny_model_dir)]
    command += ["--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    made = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert {"rule", "base", "sft", "grpo", "online_dpo"} <= set(made["sides"]["held-out"]["runs"])
    again = subprocess.run([*command, "--table-only"], capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and json.loads((tmp_path / "out" / "learning.json").read_text()) == made

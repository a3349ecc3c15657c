"""Rows of investigations before Ray starts: cases, ground truth, the rule that scores them, and the model's tools."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from investigation_parts import CASE, PROMPT
from omegaconf import OmegaConf
from tiny import CHATML, make_tokenizer

from verl_aiops.investigation.case import Case
from verl_aiops.investigation.reading import write_cases
from verl_aiops.rewards.aiops_investigation import compute_score
from verl_aiops.rewards.managers.triage import rule
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.common import investigates, is_triage_run
from verl_aiops.trainers.rl.prompt_rows import row_faults
from verl_aiops.trainers.triage.checks import check_reward_settings
from verl_aiops.trainers.triage.investigations import CASES_READ, InvestigationRules, check_tools, right_verdict

TRUTH = {name: CASE[name] for name in ("root_causes", "propagation", "reasons")}


@pytest.fixture
def row(tmp_path):
    file = tmp_path / "cases.jsonl"
    write_cases([Case.from_dict(CASE)], file)
    return {
        "data_source": "aiops_investigation",
        "agent_name": "aiops_tools",
        "prompt": PROMPT,
        "reward_model": {"style": "rule", "ground_truth": json.dumps(TRUTH)},
        "extra_info": {"id": "case-1", "case_file": str(file), "tools": "prompt", "answer_chars": 600},
    }


def test_what_a_row_lacks_is_said(row):
    assert row_faults(row, InvestigationRules()) == []
    wrong = {
        "another case": ({"extra_info": {**row["extra_info"], "id": "case-9"}}, "extra_info: expected a case, got"),
        "no case": ({"extra_info": {}}, "extra_info: expected a case, got extra_info: expected case_file and id"),
        "no file": ({"extra_info": {**row["extra_info"], "case_file": "none.jsonl"}}, "none.jsonl: no such file"),
        "triage truth": (
            {"reward_model": {"ground_truth": '{"service": "a", "incident_type": "b"}'}},
            "reward_model.ground_truth: root_causes: expected at least one",
        ),
        "no truth": ({"reward_model": {}}, "reward_model: expected an object with ground_truth"),
        "no source": ({"data_source": None}, "data_source: expected 'aiops_investigation'"),
    }
    for changes, said in wrong.values():
        faults = row_faults({**row, **changes}, InvestigationRules())
        assert len(faults) == 1 and said in faults[0]
    rules = InvestigationRules(rewarded=False)
    assert row_faults({**row, "reward_model": None}, rules) == []
    # not every case of a large file is read
    rules.read[row["extra_info"]["case_file"]] = CASES_READ
    assert row_faults({**row, "extra_info": {**row["extra_info"], "id": "case-9"}}, rules) == []


def config_of(tmp_path, rows, **reward):
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rl.parquet")
    return OmegaConf.create(
        {
            "data": {"train_files": str(tmp_path / "rl.parquet"), "max_prompt_length": 800, "max_response_length": 900},
            "actor_rollout_ref": {
                "model": {"path": str(tmp_path)},
                "rollout": {
                    "name": "hf",
                    "agent": {"default_agent_loop": "single_turn_agent"},
                    "multi_turn": {"format": "hermes"},
                    "custom": None,
                },
            },
            "reward": {
                "custom_reward_function": {"path": None, "reward_kwargs": reward},
                "reward_manager": {"name": "aiops_mturn"},
            },
        }
    )


def test_a_run_is_known_by_its_rows(row, tmp_path):
    config = config_of(tmp_path, [row])
    assert investigates(config) and is_triage_run(config)
    other = config_of(tmp_path, [{**row, "agent_name": "aiops_mturn", "data_source": "aiops_mturn"}])
    assert not investigates(other) and is_triage_run(other)
    # settings are those of the task's own reward
    check_reward_settings(config_of(tmp_path, [row], causes_weight=0.7))
    with pytest.raises(ConfigError, match="abstain_weight=0.9"):
        check_reward_settings(config_of(tmp_path, [row], abstain_weight=0.9))
    with pytest.raises(ConfigError, match="unknown setting 'service_weight'"):
        check_reward_settings(config_of(tmp_path, [row], service_weight=0.4))


def test_each_row_is_scored_by_the_reward_of_its_task():
    assert rule(data_source="aiops_investigation", solution_str="", ground_truth=TRUTH)["causes"] == 0
    truth = {"service": "a", "incident_type": "b"}
    assert "service_ok" in rule(data_source="aiops_mturn", solution_str="", ground_truth=truth)
    assert "service_ok" in rule(data_source="mine", solution_str="", ground_truth=truth)


@pytest.mark.parametrize(
    "truth", [TRUTH, {"no_fault": True}, {"cannot_tell": True}, {"root_causes": [{"component": "a"}]}]
)
def test_the_right_verdict_is_right(truth):
    for given in (truth, json.dumps(truth)):
        assert compute_score("", right_verdict(given), given)["acc_main"] == 1


def tools_of(config, row, tokenizer):
    rules = InvestigationRules(default_loop="single_turn_agent")
    return check_tools(config, SimpleNamespace(rows=[row], rules=rules, tokenizer=tokenizer))


def test_a_model_that_cannot_investigate_is_told_before_the_run(row, tmp_path, tokenizer):
    config = config_of(tmp_path, [row])
    assert tools_of(config, row, tokenizer) == []
    assert tools_of(config, {**row, "agent_name": "single_turn_agent"}, tokenizer) == []
    for key, value, said in (
        ("data.max_prompt_length", 20, "tokens with its tools, more than data.max_prompt_length=20"),
        ("data.max_response_length", 100, "data.max_response_length=100: expected"),
        ("actor_rollout_ref.rollout.multi_turn.format", "ermes", "expected the name of a tool parser of verl's"),
        ("actor_rollout_ref.rollout.multi_turn.format", "glm", "does not read the call"),
        ("actor_rollout_ref.rollout.custom", {"aiops_tools": {"max_calls": 0}}, "max_calls=0: expected"),
    ):
        changed = config.copy()
        OmegaConf.update(changed, key, value)
        (fault,) = tools_of(changed, row, tokenizer)
        assert said in fault
    by_template = {**row, "extra_info": {**row["extra_info"], "tools": "template"}}
    (fault,) = tools_of(config, by_template, tokenizer)
    assert "would not list them either" in fault
    shows = "{% if tools %}{{ tools | length }} tools{% endif %}" + CHATML
    (fault,) = tools_of(config, by_template, make_tokenizer(chat_template=shows))
    assert "does not read the call" in fault and "the parser of this model's family" in fault
    (fault,) = tools_of(config, row, make_tokenizer(chat_template="{{ raise_exception('no tools') }}"))
    assert "no tools" in fault

"""Every row of the RL files is read before Ray starts; what cannot be asked or scored is refused in one message."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.rl.prompt_rows import check_rows, row_faults
from verl_aiops.trainers.triage.rows import RowRules

TRUTH = {"service": "db", "incident_type": "disk", "evidence": ["disk 100 %"]}


def row(number=0, **changes):
    made = {
        "data_source": "aiops_mturn",
        "agent_name": "aiops_mturn",
        "prompt": [{"role": "user", "content": f"{number}: disk 100 %"}],
        "reward_model": {"style": "rule", "ground_truth": json.dumps(TRUTH)},
        "extra_info": {"id": f"i-{number}", "rounds": ["Now JSON."], "incident_text": f"{number}: disk 100 %"},
    }
    return {**made, **changes}


def truth(text):
    return {"reward_model": {"style": "rule", "ground_truth": text}}


def info(**changes):
    return {"extra_info": {**row()["extra_info"], **changes}}


CANDIDATES = {"service": ["web"], "incident_type": ["disk"]}
FAULTS = {
    "a field is missing": (truth('{"service": "db"}'), "incident_type: expected a non-empty str, got nothing"),
    "broken JSON text": (truth('{"service": "db", '), "expected a mapping or its JSON text"),
    "no ground truth": (truth(None), "ground_truth: expected a mapping or its JSON text"),
    "evidence is no list": (truth(json.dumps({**TRUTH, "evidence": "disk"})), "evidence: expected a list of str"),
    "NaN": (truth('{"service": NaN, "incident_type": "disk"}'), "service: expected a non-empty str, got nan"),
    "another task's": (truth("72"), "ground_truth: expected a mapping or its JSON text, got int"),
    "the truth is not offered": (
        truth(json.dumps({**TRUTH, "candidates": CANDIDATES})),
        "candidates.service: expected the true label among them",
    ),
    "no reward_model": ({"reward_model": None}, "reward_model: expected an object with ground_truth, got nothing"),
    "no data_source": ({"data_source": None}, "data_source: expected 'aiops_mturn'"),
    "text for a prompt": ({"prompt": "disk 100 %"}, "prompt: expected a list of messages"),
    "an empty prompt": ({"prompt": []}, "prompt: expected a list of messages"),
    "an unknown role": ({"prompt": [{"role": "human", "content": "x"}]}, "expected a message with a role of"),
    "a message without text": ({"prompt": [{"role": "user", "content": None}]}, "prompt[0].content: expected text"),
    "an answered prompt": ({"prompt": [{"role": "assistant", "content": "x"}]}, "expected a user's message at the end"),
    "no incident text": (info(incident_text=None), "extra_info.incident_text: expected the data part of the prompt"),
    "rounds of another kind": (info(rounds=[7]), "rounds"),
    "no agent_name in the row": ({"agent_name": None}, "agent_name: expected the name of an agent loop"),
    "a loop without rounds": ({"agent_name": "single_turn_agent"}, "which this loop never asks"),
    "an unknown loop": ({"agent_name": "aiops"}, "expected a registered agent loop"),
    "extra_info is no object": ({"extra_info": "i-0"}, "extra_info: expected an object"),
}


@pytest.mark.parametrize("changes, said", FAULTS.values(), ids=list(FAULTS))
def test_what_a_row_lacks_is_said(changes, said):
    assert row_faults(row(), RowRules()) == []
    faults = row_faults(row(**changes), RowRules())
    assert len(faults) == 1 and said in faults[0]


@pytest.mark.parametrize(
    "changes",
    [
        info(incident_text=None, rounds=None),  # nothing can be quoted in a single round
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        truth(json.dumps({**TRUTH, "candidates": {"service": ["DB", "web"], "incident_type": []}})),
        {"reward_model": {"style": "rule", "ground_truth": {**TRUTH, "aliases": None}}},
        {"extra_info": None},
    ],
)
def test_rows_that_can_be_scored_pass(changes):
    assert row_faults(row(**changes), RowRules()) == []


def test_the_rules_depend_on_the_run():
    no_text = row(**info(incident_text=None))
    assert row_faults(no_text, RowRules(evidence_weight=0.0)) == []
    assert row_faults(row(**truth("72")), RowRules(truth=False)) == []
    assert row_faults(row(reward_model=None), RowRules(truth=False, rewarded=False)) == []
    unnamed = {key: value for key, value in row().items() if key != "agent_name"}
    assert row_faults(unnamed, RowRules()) == []
    assert "default_agent_loop" in row_faults(unnamed, RowRules(default_loop="single_turn_agent"))[0]


@pytest.fixture
def check(tmp_path):
    def run(train, val=None, suffix=".parquet", **data):
        files = {}
        for name, rows in (("train", train), ("val", val or [row()])):
            path = tmp_path / f"{name}{suffix}"
            if suffix == ".parquet":
                pq.write_table(pa.Table.from_pylist(rows), path)
            else:
                path.write_text("".join(json.dumps(one) + "\n" for one in rows))
            files[f"{name}_files"] = str(path)
        return check_rows(OmegaConf.create({"data": {"train_batch_size": 4, **files, **data}}), RowRules())

    return run


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_all_faults_of_all_rows_stand_in_one_message_counted(check, suffix):
    half = truth('{"service": "db"}')
    train = [row(n, **(half if n % 2 else {})) for n in range(600)]
    train[598] = row(598, **info(incident_text=None, id="i-598"))
    with pytest.raises(ConfigError) as error:
        check(train, [row(0, **truth("not JSON"))], suffix)
    said = str(error.value)
    assert "302 of 601 rows" in said and "build-rl" in said
    assert "train" + suffix in said and "i-1: reward_model.ground_truth: incident_type" in said
    assert "(and 299 more rows like it)" in said and "i-598: extra_info.incident_text" in said
    assert "data.val_files: " in said and "'not JSON'" in said
    check([row(n) for n in range(600)], [row()], suffix)


def test_a_message_stays_short_whatever_the_rows_hold(check):
    with pytest.raises(ConfigError) as error:
        check([row(n, **truth(f'{{"service": "x{n}' + "y" * 5000)) for n in range(200)])
    assert len(str(error.value)) < 3000


def test_files_that_cannot_be_used_are_named(check, tmp_path):
    with pytest.raises(ConfigError, match="hold 3 rows to train on, fewer than one batch"):
        check([row(n) for n in range(3)])
    with pytest.raises(ConfigError, match="hold 2 rows to train on"):
        check([row(n) for n in range(8)], train_max_samples=2)
    with pytest.raises(ConfigError, match="data.val_files: .*none.parquet does not exist"):
        check([row(n) for n in range(4)], val_files=str(tmp_path / "none.parquet"))
    with pytest.raises(ConfigError, match="data.val_files is not set"):
        check([row(n) for n in range(4)], val_files=None)


def test_rows_of_another_source_are_said_and_files_elsewhere_too(check):
    assert check([row(n) for n in range(4)]) == []
    (note,) = check([row(n, data_source="mine" if n else "aiops_mturn") for n in range(4)])
    assert "3 of 'mine'" in note
    (note,) = check([row(n) for n in range(4)], val_files="hdfs://cluster/rl.parquet")
    assert "not checked" in note


def test_files_that_ask_in_different_words_are_said(check):
    words = [row(number, **info(wording=name)) for number, name in enumerate(["built-in"] * 5 + ["0123456789ab"] * 2)]
    said = "rows ask in different words (5 in 'built-in', 2 in '0123456789ab'): their files were built with different"
    assert any(note.startswith(said) for note in check(words[:5], words[5:]))
    assert not any("words" in note for note in check(words[:4], words[4:5]))

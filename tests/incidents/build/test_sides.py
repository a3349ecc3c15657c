"""Training, validation, test and unseen systems: no fault on two sides, each trimmed as it is used, each row marked."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from verl_aiops.cli.main import main
from verl_aiops.incidents import (
    IncidentError,
    PromptOptions,
    Simulator,
    build_prefs,
    build_rl,
    build_sft,
    file_source,
    simulator_source,
    trim_incident,
    write_incidents,
)
from verl_aiops.incidents.build.sides import SIDES
from verl_aiops.incidents.text import incident_text

BUILDS = {"rl": build_rl, "prefs": build_prefs, "sft": build_sft}
SPLIT = {"val_share": 0.2, "test_share": 0.2, "hold_out": ["simulator/bank"]}


def mixed(count=400):
    return simulator_source(Simulator(lang="mix", difficulty="mix"), count)


def rows(out, side):
    path = out if side == "train" else out.with_name(f"{out.stem}.{side}{out.suffix}")
    return pq.read_table(path).to_pylist()


def of(row):
    """What a row of any kind says of its incident."""
    return row.get("extra_info") or row


@pytest.fixture(scope="module", params=BUILDS)
def built(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "x.parquet"
    summary = BUILDS[request.param](mixed(), out, **SPLIT)
    return request.param, out, summary


def test_no_fault_and_no_unseen_system_is_on_two_sides(built):
    _, out, summary = built
    assert list(summary.sides) == list(SIDES) and len(summary.written) == 4
    groups = {side: {of(row)["group"] for row in rows(out, side)} for side in SIDES}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 400
    sources = {side: {of(row)["source"] for row in rows(out, side)} for side in SIDES}
    assert sources["unseen"] == {"simulator/bank"}
    assert all("simulator/bank" not in sources[side] and len(sources[side]) == 3 for side in SIDES[:3])
    seen = 400 - len(groups["unseen"])
    assert all(abs(len(groups[side]) / seen - 0.2) < 0.06 for side in ("val", "test"))


def test_rows_say_their_part_and_the_summary_counts_them(built):
    _, out, summary = built
    for side in SIDES:
        parts = Counter(of(row)["part"] for row in rows(out, side))
        assert set(parts) == {"unseen" if side == "unseen" else "simulated"}
        assert {of(row)["answerable"] for row in rows(out, side)} == {"read"}
    said = str(summary)
    assert "400 faults: 400 named by `fault`" in said
    for side in SIDES:
        count = summary.sides[side].incidents
        assert f"  {side}: {summary.sides[side].rows:,} rows of {count:,} incidents ({count:,} faults) in " in said
        assert f"    parts: {'unseen' if side == 'unseen' else 'simulated'} {count}; answers: 0 given away" in said
    assert "incidents around their evidence (" in said.split("  val: ")[0]
    assert "incidents blind, as a model is served (" in said.split("  test: ")[1]


def test_a_test_side_takes_from_training_alone(tmp_path, built):
    kind, out, _ = built
    plain = tmp_path / "x.parquet"
    BUILDS[kind](mixed(), plain, val_share=0.2, hold_out=["simulator/bank"])
    names = {side: [of(row)["id"] for row in rows(plain, side)] for side in ("train", "val", "unseen")}
    assert names["val"] == [of(row)["id"] for row in rows(out, "val")]
    assert set(names["train"]) == {of(row)["id"] for side in ("train", "test") for row in rows(out, side)}


@pytest.mark.parametrize(("trim", "val_trim"), [("evidence", "blind"), ("blind", "evidence"), ("blind", "blind")])
def test_each_side_is_trimmed_as_it_was_asked_for(tmp_path, trim, val_trim):
    out, incidents = tmp_path / "x.parquet", {i.id: i for i in mixed().stream()}
    build_rl(mixed(), out, prompts=PromptOptions(budget=500, trim=trim), val_trim=val_trim, **SPLIT)
    for side in SIDES:
        blind = (trim if side == "train" else val_trim) == "blind"
        lost = 0
        for row in rows(out, side):
            incident, truth = incidents[of(row)["id"]], json.loads(row["reward_model"]["ground_truth"])
            trimmed = trim_incident(incident, 500, whole_evidence=True, blind=blind)
            assert of(row)["incident_text"] == incident_text(trimmed.incident)
            assert truth["evidence"] == list(trimmed.incident.evidence)
            lost += trimmed.evidence_left_out
        assert (lost > 0) == blind


def test_a_budget_without_room_gives_way_on_both_sides_and_says_why(tmp_path):
    said = str(build_rl(mixed(100), tmp_path / "x.parquet", prompts=PromptOptions(budget=60)))
    train, val = said.split("  val: ")
    assert "exceed the budget, since their evidence stays whole" in train
    assert "exceed the budget, which has no room for a line" in val


def test_a_fault_that_reaches_into_a_held_out_system_is_held_out_with_it(tmp_path):
    path = tmp_path / "i.jsonl"
    write_incidents(Simulator(topologies=("shop", "bank")).stream(40), path)
    rows_ = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows_[:10]:
        row["fault"] = "both"
    assert len({row["source"] for row in rows_[:10]}) == 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_))
    build_sft(file_source(path), tmp_path / "s.parquet", hold_out=["simulator/bank"], val_share=0.3)
    unseen = rows(tmp_path / "s.parquet", "unseen")
    assert sum(row["group"] == "both" for row in unseen) == 10
    assert all(row["group"] != "both" for side in ("train", "val") for row in rows(tmp_path / "s.parquet", side))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_share": 1.0}, "test share: expected a share from 0 to below 1, found 1.0"),
        ({"test_share": 0.6, "val_share": 0.4}, "nothing is left to train on"),
        ({"test_share": 1e-9}, "nothing to write for the test from 30 incidents, which are 30 faults"),
        ({"val_share": 1e-9}, "nothing to write for validation .* 30 named by `fault`, .* or 0 for no such file"),
        (
            {"hold_out": ["bank"]},
            "hold out source 'bank': no incident of simulator is of it; there are: simulator/bank,",
        ),
        ({"val_trim": "dark"}, "trim 'dark': expected one of evidence, blind"),
    ],
)
def test_splits_that_cannot_be(tmp_path, change, message):
    with pytest.raises(IncidentError, match=message):
        build_rl(mixed(30), tmp_path / "x.parquet", **change)
    assert not list(tmp_path.iterdir())


def test_a_side_of_an_earlier_build_does_not_stay_beside_another_split(tmp_path):
    out = tmp_path / "x.parquet"
    build_rl(mixed(60), out, test_share=0.2)
    with pytest.raises(IncidentError, match=r"x\.test\.parquet: is of an earlier build"):
        build_rl(mixed(60), out, overwrite=True)
    build_rl(mixed(60), out, overwrite=True, test_share=0.2)


@pytest.mark.parametrize("command", ["build-rl", "build-prefs", "build-sft"])
def test_the_commands(tmp_path, capsys, command):
    out = tmp_path / "x.parquet"
    options = ["--num-incidents", "200", "--test-share", "0.1", "--trim", "blind", "--val-trim", "evidence"]
    options += ["--hold-out-source", "simulator/bank", "--hold-out-source", "simulator/shop"]
    assert main([command, "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert [side for side in SIDES if f"\n  {side}: " in said] == list(SIDES)
    assert "blind, as a model is served" in said.split("  val: ")[0]
    assert {of(row)["source"] for row in rows(out, "unseen")} == {"simulator/bank", "simulator/shop"}
    assert main([command, "--out", str(tmp_path / "y.parquet"), "--hold-out-source", "nowhere"]) == 2
    assert "hold out source 'nowhere'" in capsys.readouterr().err

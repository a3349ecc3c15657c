"""Preference pairs and SFT files: near misses that are wrong, balanced sides, one split for all files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
from written_rows import rows_in

from verl_aiops.incidents import (
    DEFAULT_KINDS,
    Incident,
    IncidentError,
    OutputExistsError,
    PairMaker,
    PairOptions,
    PromptOptions,
    Simulator,
    System,
    Taxonomy,
    build_case,
    build_prefs,
    build_sft,
    fault_id,
    file_source,
    parse_kinds,
    read_incidents,
    simulator_source,
    simulator_taxonomy,
    split_side,
    write_incidents,
)
from verl_aiops.incidents.build.pairs import KINDS


def answers(row: dict) -> tuple[dict, dict]:
    return json.loads(row["chosen"][0]["content"]), json.loads(row["rejected"][0]["content"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """2,000 pairs of a mixed simulation, with their summary."""
    out = tmp_path_factory.mktemp("prefs") / "prefs.parquet"
    source = simulator_source(Simulator(lang="mix", difficulty="mix"), 1000)
    summary = build_prefs(source, out, val_share=0.2)
    return out, summary


def test_columns_and_shapes(built):
    out, _ = built
    train = rows_in(out)
    assert list(train[0]) == [
        *("prompt", "chosen", "rejected", "id", "group", "weight"),
        *("kind", "lang", "source", "part", "answerable", "wording", "ground_truth", "incident_text"),
    ]
    for row in train:
        assert [message["role"] for message in row["prompt"]] == ["user", "assistant", "user"]
        assert [message["role"] for message in row["chosen"] + row["rejected"]] == ["assistant"] * 2
        assert row["weight"] == 1.0 and row["incident_text"] in row["prompt"][0]["content"]
    assert len({row["id"] for row in train}) == len(train)
    frame = pd.read_parquet(out)
    assert frame["chosen"][0][0]["content"] == train[0]["chosen"][0]["content"]


def test_chosen_is_right_and_rejected_is_a_near_miss(built):
    out, _ = built
    systems = simulator_taxonomy().systems
    for row in rows_in(out):
        truth = json.loads(row["ground_truth"])
        chosen, rejected = answers(row)
        assert chosen == {name: truth[name] for name in ("service", "incident_type")}
        assert list(rejected) == ["service", "incident_type"] and rejected != chosen
        system = systems[row["source"]]
        assert rejected["service"] in system.services and rejected["incident_type"] in system.incident_types
        wrong = [name for name in chosen if chosen[name] != rejected[name]]
        kind = {"upstream": ["service"], "wrong_service": ["service"], "wrong_type": ["incident_type"]}
        assert wrong == kind.get(row["kind"], ["service", "incident_type"])
        for name in ("service", "incident_type"):
            assert rejected[name] in truth["candidates"][name]
            assert rejected[name] in row["prompt"][2]["content"]
            assert rejected[name] not in truth["aliases"][name]


def test_kinds_follow_their_shares(built):
    out, summary = built
    counts = Counter(row["kind"] for row in rows_in(out))
    assert counts == summary.makers["train"].kinds
    for kind, share in DEFAULT_KINDS.items():
        assert abs(counts[kind] / counts.total() - share) < 0.02


def test_length_and_labels_tell_nothing(built):
    _, summary = built
    maker = summary.makers["train"]
    chosen, rejected = maker.lengths
    assert abs(chosen - rejected) / chosen < 0.005
    assert abs(maker.rejected_longer - maker.rejected_shorter) / maker.pairs < 0.08
    for name in {*maker.right, *maker.wrong}:
        right, wrong = maker.right[name], maker.wrong[name]
        assert right + wrong < 10 or 0.25 < right / (right + wrong) < 0.75, name


def test_hard_negatives_stand_in_the_text():
    source = simulator_source(Simulator(), 300)

    def named_share(hard_share: float) -> float:
        maker = PairMaker(source.taxonomy, PairOptions(1, {"wrong_service": 1.0}, hard_share))
        found = []
        for incident in source.stream():
            case = build_case(incident, source.taxonomy.system_of(incident), PromptOptions(max_candidates=0))
            (pair,) = maker.make(case)
            found.append(bool(System((json.loads(pair.rejected)["service"],), ()).services_in(case.text)))
        return sum(found) / len(found)

    assert named_share(1.0) == 1.0
    assert named_share(0.0) < 0.8


def test_upstream_and_swapped_use_what_the_simulator_knows():
    source = simulator_source(Simulator(), 200)
    for kind in ("upstream", "swapped"):
        maker = PairMaker(source.taxonomy, PairOptions(1, {kind: 1.0}))
        made = 0
        for incident in source.stream():
            case = build_case(incident, source.taxonomy.system_of(incident))
            for pair in maker.make(case):
                if pair.kind != kind:
                    continue
                made += 1
                wrong = json.loads(pair.rejected)
                if kind == "upstream":
                    assert wrong["incident_type"] == incident.incident_type
                    assert not incident.upstream or wrong["service"] in incident.upstream
                else:
                    assert (wrong["service"], wrong["incident_type"]) in incident.decoys
        assert made > 150


def test_never_right_under_an_alias():
    incident = Incident(
        *("x-1", "s", "db", "oom", "Slow.", ("db killed",)),
        service_aliases=("Database", "ＰＧ"),
        type_aliases=("out_of_memory",),
    )
    system = System(("DB", "api", "database", "db", "pg"), ("OOM", "crash", "oom", "out_of_memory"))
    maker = PairMaker(Taxonomy({"s": system}), PairOptions(pairs_per_incident=50))
    pairs = maker.make(build_case(incident, system, PromptOptions(max_candidates=0)))
    assert {pair.rejected for pair in pairs} == {
        '{"service": "api", "incident_type": "oom"}',
        '{"service": "db", "incident_type": "crash"}',
        '{"service": "api", "incident_type": "crash"}',
    }
    assert maker.short_incidents == 1


def test_an_alias_among_the_candidates_is_never_the_rejected_answer():
    """Lists that a caller has made himself may have other names of the truth, which the builder's own leave out."""
    incident = Incident(
        *("x-1", "s", "db", "oom", "Slow.", ("db killed",)),
        service_aliases=("Database", "pg"),
        type_aliases=("out_of_memory",),
        upstream=("pg", "api"),
        decoys=(("pg", "crash"), ("api", "out_of_memory"), ("api", "crash")),
    )
    listed = System(("DB", "api", "database", "db", "pg"), ("OOM", "crash", "oom", "out_of_memory"))
    case = replace(build_case(incident, listed), candidates=listed)
    for kind, wrong in {
        "wrong_service": {("api", "oom")},
        "wrong_type": {("db", "crash")},
        "both": {("api", "crash")},
        "upstream": {("api", "oom")},
        "swapped": {("api", "crash")},
    }.items():
        assert set(KINDS[kind].propose(case)) == wrong
    # and not where another system has such a name either
    other = System(("PG", "disk"), ("Out_Of_Memory", "full"))
    maker = PairMaker(Taxonomy({"s": System(("db",), ("oom",)), "other": other}), PairOptions(pairs_per_incident=9))
    pairs = maker.make(build_case(incident, System(("db",), ("oom",))))
    assert [pair.rejected for pair in pairs] == ['{"service": "disk", "incident_type": "full"}']


def test_a_system_with_one_answer_falls_back_to_other_systems():
    incident = Incident("x-1", "lonely", "db", "oom", "Slow.", ("db killed",))
    lonely = System(("db",), ("oom",))
    other = System(("api", "db"), ("crash", "oom"))
    maker = PairMaker(Taxonomy({"lonely": lonely, "other": other}), PairOptions(pairs_per_incident=3))
    pairs = maker.make(build_case(incident, lonely))
    assert [pair.kind for pair in pairs] == ["other_system"]
    assert json.loads(pairs[0].rejected) == {"service": "api", "incident_type": "crash"}
    alone = PairMaker(Taxonomy({"lonely": lonely}))
    assert alone.make(build_case(incident, lonely)) == [] and alone.short_incidents == 1


def test_same_seed_same_file_another_seed_another(tmp_path):
    def build(name: str, seed: int) -> list[dict]:
        build_prefs(simulator_source(Simulator(seed=1), 100), tmp_path / name, seed=seed)
        return rows_in(tmp_path / name)

    first = build("a.parquet", 0)
    assert first == build("b.parquet", 0) == build("c.jsonl", 0)
    assert first != build("d.parquet", 1)


def test_no_incident_on_both_sides(built):
    out, _ = built
    train, val = rows_in(out), rows_in(out.with_name("prefs.val.parquet"))
    assert train and val
    for key in ("group", "incident_text"):
        assert {row[key] for row in train}.isdisjoint(row[key] for row in val)
    assert 0.1 < len(val) / (len(val) + len(train)) < 0.3
    assert all(split_side(row["group"], 0.2, 0) == "val" for row in val)


def test_sft_has_the_same_split_prompts_and_answers(built, tmp_path):
    out, _ = built
    source = simulator_source(Simulator(lang="mix", difficulty="mix"), 1000)
    build_sft(source, tmp_path / "sft.parquet", val_share=0.2)
    for suffix in ("", ".val"):
        prefs = rows_in(out.with_name(f"prefs{suffix}.parquet"))
        conversations = {row["id"]: row["messages"] for row in rows_in(tmp_path / f"sft{suffix}.parquet")}
        assert set(conversations) == {row["id"].rpartition("#")[0] for row in prefs}
        for row in prefs:
            assert conversations[row["id"].rpartition("#")[0]] == row["prompt"] + row["chosen"]


def test_a_file_of_simulated_incidents_gives_the_same_pairs(tmp_path):
    source = simulator_source(Simulator(seed=2), 80)
    write_incidents(source.stream(), tmp_path / "i.jsonl")
    build_prefs(source, tmp_path / "a.jsonl")
    build_prefs(file_source(tmp_path / "i.jsonl"), tmp_path / "b.jsonl")
    assert rows_in(tmp_path / "a.jsonl") == rows_in(tmp_path / "b.jsonl")


def test_records_of_one_fault_stay_together(tmp_path):
    one = next(iter(Simulator().stream(1)))
    records = []
    for fault in range(40):
        for record in range(3):
            row = {**one.to_dict(), "id": f"lab-f{fault:03d}-{record}", "evidence": []}
            row["symptom"] += f" {fault}-{record}"  # else all would be one fault by their data
            records.append(Incident.from_dict({name: value for name, value in row.items() if name != "fault"}))
    write_incidents(records, tmp_path / "i.jsonl")
    build_sft(file_source(tmp_path / "i.jsonl"), tmp_path / "s.jsonl", val_share=0.3)
    sides = [{row["id"].rpartition("-")[0] for row in rows_in(tmp_path / name)} for name in ("s.jsonl", "s.val.jsonl")]
    assert all(sides) and sides[0].isdisjoint(sides[1])


def test_files_are_protected_and_whole(tmp_path):
    source = simulator_source(Simulator(), 30)
    out, val = tmp_path / "p.parquet", tmp_path / "p.val.parquet"
    val.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"p\.val\.parquet: is already there; pass --overwrite"):
        build_prefs(source, out)
    assert val.read_text() == "mine" and not out.exists()
    build_prefs(source, out, overwrite=True, val_share=0.3)
    assert rows_in(val)
    # One incident in training and none held out is refused, so that no validation file of an earlier build stays beside
    # another's training file.
    before = out.read_bytes()
    with pytest.raises(
        IncidentError, match="nothing to write for validation from 1 incident, which are 1 fault: 1 named"
    ):
        build_prefs(simulator_source(Simulator(), 1), out, overwrite=True, val_share=0.01)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.parquet", "p.val.parquet"]


def test_an_error_half_way_leaves_nothing(tmp_path):
    path = tmp_path / "i.jsonl"
    write_incidents(Simulator().stream(5), path)
    source = file_source(path)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(IncidentError, match="line 6"):
        build_prefs(source, tmp_path / "p.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["i.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_share": 1.0}, "val share: expected a share from 0 to below 1"),
        ({"out": "p.txt"}, r"cannot write '\.txt' files; name it with one of \.parquet, \.jsonl"),
        ({"val_out": "p.parquet"}, "two outputs have the same name"),
        ({"val_out": "v.parquet", "val_share": 0}, "a validation share of 0 leaves nothing for it"),
    ],
)
def test_bad_outputs(tmp_path, change, message):
    arguments = {"out": "p.parquet", **change}
    arguments.update({name: tmp_path / arguments[name] for name in ("out", "val_out") if name in arguments})
    with pytest.raises(IncidentError, match=message):
        build_prefs(simulator_source(Simulator(), 3), **arguments)


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(IncidentError, match="nothing to write for training from 1 incident"):
        build_prefs(simulator_source(Simulator(), 1), tmp_path / "p.parquet", val_share=0.9999999)
    with pytest.raises(IncidentError, match="number of incidents: expected at least 1"):
        simulator_source(Simulator(), 0)


def test_kinds_are_read_and_checked():
    assert parse_kinds("wrong_type=2, both=1,upstream") == {"wrong_type": 2.0, "both": 1.0, "upstream": 1.0}
    with pytest.raises(IncidentError, match="expected name=share"):
        parse_kinds("both=lots")
    for kinds, message in (
        ({"sideways": 1}, "pair kind 'sideways': expected one of wrong_service, wrong_type"),
        ({"both": -1}, "share of 0 or more"),
        ({"both": float("nan")}, "share of 0 or more"),
        ({"both": 0}, "at least one share above 0"),
    ):
        with pytest.raises(IncidentError, match=message):
            PairOptions(kinds=kinds)
    with pytest.raises(IncidentError, match="pairs per incident"):
        PairOptions(pairs_per_incident=0)
    with pytest.raises(IncidentError, match="hard share"):
        PairOptions(hard_share=1.1)


def test_summary_tells_what_was_made(built):
    text = str(built[1])
    for piece in ("preference pairs from simulator", "train: ", "val: ", "languages: en", "kinds: ", "right / wrong"):
        assert piece in text


def test_collected_incidents(collected, tmp_path):
    source = file_source(collected.path, Taxonomy.load(collected.taxonomy))
    out = tmp_path / "pairs.parquet"
    summary = build_prefs(source, out, val_share=0.2, prompts=PromptOptions(budget=600))
    train, val = rows_in(out), rows_in(tmp_path / "pairs.val.parquet")
    faults = {incident.id: fault_id(incident) for incident in read_incidents(collected.path)}
    sides = [{faults[row["id"].rpartition("#")[0]] for row in side} for side in (train, val)]
    assert sides[0].isdisjoint(sides[1])
    assert len(train) + len(val) == 2 * collected.count
    for row in train + val:
        chosen, rejected = answers(row)
        assert chosen != rejected and len(row["incident_text"]) <= 600
    maker = summary.makers["train"]
    assert abs(maker.lengths[0] - maker.lengths[1]) / maker.lengths[0] < 0.02
    # Two systems have a single answer each; all others but those of one service find near misses among their own names.
    other = {row["source"] for row in train + val if row["kind"] == "other_system"}
    assert collected.one_answer <= other <= collected.one_service

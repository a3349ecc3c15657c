"""What is said of an incident: which part of the data it is, and whether its answer can be read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from verl_aiops.evaluation.run.questions import fingerprint, incident_questions, read_pair_questions, read_rl_questions
from verl_aiops.incidents import Incident, PromptOptions, System, build_case, build_prefs, build_rl, file_source
from verl_aiops.incidents import write_incidents as write
from verl_aiops.incidents.marks import part_of

MANY, ONE = ("cart", "db"), ("db",)


@pytest.mark.parametrize(
    ("services", "types", "text", "listed", "expected"),
    [
        (MANY, ("oom", "slow"), "db: no space", True, "read"),
        (MANY, ("oom",), "cart waits", True, "read"),  # a wrong candidate is named: there is something to read
        (MANY, ("oom", "slow"), "disk of the ledger full", True, "remembered"),
        (MANY, ("oom", "slow"), "ledger-db: no space", True, "remembered"),
        (ONE, ("oom",), "db: no space", True, "given_away"),
        (ONE, ("oom",), "no space", True, "given_away"),
        (ONE, ("oom",), "no space", False, "remembered"),  # nothing is listed, so nothing is given away
        (ONE, ("oom", "slow"), "no space", True, "remembered"),  # the type is still to be found
    ],
)
def test_how_an_answer_can_be_found(services, types, text, listed, expected):
    incident = Incident("x1x", "s", "db", "oom", "Slow.", (text,))
    case = build_case(incident, System(services, types), PromptOptions(show_candidates=listed))
    assert case.answerable == expected


def test_parts():
    parts = [part_of(source) for source in ("simulator/shop", "simulator", "simulators/x", "loghub/BGL", "user")]
    assert parts == ["simulated", "real", "real", "real", "real"]
    assert part_of("simulator/shop", unseen=True) == part_of("user", unseen=True) == "unseen"


def test_a_cut_that_takes_the_names_away_makes_it_remembered():
    logs = tuple(f"ERROR {letter * 30} failed" for letter in "abcdefgh") + ("db waits",)
    incident = Incident("x1x", "s", "db", "oom", "Slow.", logs, evidence=("db waits",))
    options = [PromptOptions(budget=200, trim=trim) for trim in ("evidence", "blind")]
    assert [build_case(incident, System(MANY, ("oom",)), o).answerable for o in options] == ["read", "remembered"]


def test_files_of_earlier_builds_are_marked_when_they_are_read(tmp_path):
    """Rows without the two columns: part and way are told from source, text and candidates."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    incidents = [
        Incident(f"x{n}x", "one" if n % 3 == 0 else "two", "db", "oom" if n % 2 else "slow", "Slow.", (text,))
        for n, text in enumerate(["db: full", "nothing", "cart waits"] * 4)
    ]
    incidents += [Incident("y1y", "two", "cart", "oom", "Slow.", ("db waits",))]
    incidents += [Incident("z1z", "sole", "db", "oom", "Slow.", ("db waits",))]
    write(incidents, tmp_path / "i.jsonl")
    source = file_source(tmp_path / "i.jsonl")
    build_rl(source, tmp_path / "r.parquet", val_share=0)
    build_prefs(source, tmp_path / "p.parquet", val_share=0)
    asked = incident_questions(source, PromptOptions(trim="blind"))
    assert {q.answerable for q in asked} == {"read", "remembered", "given_away"}
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    for row in rows:
        del row["extra_info"]["part"], row["extra_info"]["answerable"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "old.parquet")
    old = read_rl_questions(str(tmp_path / "old.parquet"))
    assert old == asked == read_rl_questions(str(tmp_path / "r.parquet"))
    # so that an evaluation goes on, and own pairs are taken, where it was asked before
    assert fingerprint(old) == fingerprint(asked) == fingerprint([replace(q, part="unseen") for q in asked])
    pairs = pq.read_table(tmp_path / "p.parquet").drop_columns(["part", "answerable"])
    pq.write_table(pairs, tmp_path / "oldp.parquet")
    by_group = {q.group: (q.part, q.answerable) for q in asked}
    read = read_pair_questions(str(tmp_path / "oldp.parquet"))
    assert {q.group: (q.part, q.answerable) for q in read}.items() <= by_group.items()
    assert {q.answerable for q in read} >= {"read", "remembered"}

"""Further views of training incidents: other lines, swapped names, other orders; what cannot be is counted."""

import json
from collections import Counter, defaultdict

import pytest

from verl_aiops.cli.main import main
from verl_aiops.incidents import Incident, IncidentError, PromptOptions, System, build_case
from verl_aiops.incidents.build.views import Views, parse_view, renamed_incident
from verl_aiops.rewards.aiops_mturn import compute_score

SYSTEM = System(("cart", "db", "db-proxy", "payment"), ("oom", "slow_query"))


def incident(**changes):
    given = {
        "id": "i-1",
        "source": "shop",
        "service": "db",
        "incident_type": "oom",
        "symptom": "checkout fails since 10:02",
        "logs": (
            "10:01 db killed: out of memory",
            "10:02 DB restarts",
            "10:03 cart: no answer from db-proxy",
            "ok " * 40,
        ),
        "trace": "cart -> db-proxy -> db 500",
        "evidence": ("db killed: out of memory",),
        "upstream": ("cart",),
    }
    return Incident(**{**given, **changes})


def rows_of(path):
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_names_are_swapped_everywhere_and_back_again():
    """Each service gets another's name, in data, evidence and answer alike; twice the same copy is the same."""
    given = incident()
    copy = renamed_incident(given, SYSTEM)
    assert copy == renamed_incident(given, SYSTEM) != renamed_incident(given, SYSTEM, seed=1)
    new = copy.service
    assert new != "db" and new in SYSTEM.services
    assert copy.logs[0] == f"10:01 {new} killed: out of memory" and copy.logs[1] == f"10:02 {new.upper()} restarts"
    assert copy.evidence == (f"{new} killed: out of memory",)
    first, proxy, last = copy.trace.removesuffix(" 500").split(" -> ")
    assert last == new and first == copy.upstream[0] and len({first, proxy, last}) == 3
    assert first != "cart" and proxy != "db-proxy"
    assert (copy.incident_type, copy.symptom, copy.id) == (given.incident_type, given.symptom, given.id)


@pytest.mark.parametrize(
    "changes",
    [
        {"logs": ("10:01 killed: out of memory",), "trace": None, "evidence": ()},  # nothing names the culprit
        {"service_aliases": ("the database",), "symptom": "the database is gone, checkout fails"},
        {"evidence": ("b killed: out of memory",)},  # begins within a name
        {"service": "ledger"},  # no service of the system
    ],
)
def test_a_copy_whose_answer_nothing_tells_is_none(changes):
    assert [renamed_incident(incident(**changes), SYSTEM, seed) for seed in range(8)] == [None] * 8


def test_a_new_name_that_meets_its_neighbours_is_none():
    """`proxy-db-proxy` would read `db-proxy` where proxy is called db and db-proxy is called proxy."""
    system = System(("db", "db-proxy", "proxy"), ("oom",))
    given = incident(logs=("db killed: out of memory", "proxy-db-proxy fails"), trace=None, upstream=())
    copies = [renamed_incident(given, system, seed) for seed in range(20)]
    assert None in copies
    assert {copy.logs for copy in copies if copy is not None} == {("proxy killed: out of memory", "db-proxy-db fails")}


def test_one_service_alone_has_no_other_name():
    assert renamed_incident(incident(trace=None, upstream=()), System(("db",), ("oom",))) is None


def test_what_trimming_leaves_has_to_name_the_culprit():
    """The whole data name it, the prompt's would not: no such copy, and it is counted as one that cannot be."""
    long = incident(
        logs=("10:01 INFO db: checkpoint written", *(f"ERROR FATAL exception {n} failed" for n in range(60))),
        trace=None,
        evidence=(),
    )
    options = PromptOptions(budget=300, trim="blind")
    assert "db" not in build_case(long, SYSTEM, options).named
    made = list(Views(renamed=3).cases(long, SYSTEM, options))
    assert made == [("renamed", None)] * 3
    assert all(case is not None for _, case in Views(renamed=3).cases(long, SYSTEM, PromptOptions(budget=0)))


def test_views_are_rows_of_the_training_side_alone_and_of_the_same_faults(tmp_path, capsys):
    arguments = ["--num-incidents", "60", "--difficulty", "medium", "--val-share", "0.3", "--trim", "blind"]
    more = ["--view", "trim=evidence", "--view", "max-chars=500,max-quotes=1", "--renamed", "2", "--shuffled", "1"]
    assert main(["build-rl", "--out", str(tmp_path / "plain.parquet"), *arguments]) == 0
    capsys.readouterr()
    assert main(["build-rl", "--out", str(tmp_path / "more.parquet"), *arguments, *more]) == 0
    said = capsys.readouterr().out
    plain, rows = rows_of(tmp_path / "plain.parquet"), rows_of(tmp_path / "more.parquet")
    assert rows_of(tmp_path / "plain.val.parquet") == rows_of(tmp_path / "more.val.parquet")
    ids = [row["extra_info"]["id"] for row in rows]
    assert len(set(ids)) == len(ids) and [row["extra_info"]["index"] for row in rows] == list(range(len(rows)))
    by_kind = defaultdict(dict)
    for row in rows:
        name, _, kind = row["extra_info"]["id"].partition("#")
        by_kind[kind][name] = row
    assert list(by_kind) == ["", "view1", "view2", "renamed1", "renamed2", "shuffled1"]
    assert [
        {**row, "extra_info": {**row["extra_info"], "index": n}} for n, row in enumerate(by_kind[""].values())
    ] == plain
    for kind, copies in by_kind.items():
        assert {row["extra_info"]["group"] for row in copies.values()} <= {row["extra_info"]["group"] for row in plain}
        assert len(copies) == len(plain) or kind.startswith("renamed")
    assert max(len(row["extra_info"]["incident_text"]) for row in by_kind["view2"].values()) <= 500
    counts = Counter(kind.rstrip("12") for kind, copies in by_kind.items() for _ in copies)
    assert (
        f"{counts['view']:,} in other views, {counts['renamed']:,} under other names, {len(plain):,} with the" in said
    )
    left = 2 * len(plain) - counts["renamed"]
    assert left > 0 and f"{left:,} copies under other names left out" in said
    orders = [json.loads(one["reward_model"]["ground_truth"])["candidates"]["service"] for one in plain]
    other = [
        json.loads(one["reward_model"]["ground_truth"])["candidates"]["service"]
        for one in by_kind["shuffled1"].values()
    ]
    assert sum(a != b for a, b in zip(orders, other)) > len(plain) / 2


def test_a_renamed_row_pays_its_own_answer_as_the_first_one_pays_the_first(tmp_path):
    arguments = ["--num-incidents", "40", "--difficulty", "easy", "--renamed", "1", "--val-share", "0.1"]
    assert main(["build-rl", "--out", str(tmp_path / "rl.parquet"), *arguments]) == 0
    rows = {row["extra_info"]["id"]: row for row in rows_of(tmp_path / "rl.parquet")}
    pairs = [(rows[name.removesuffix("#renamed1")], row) for name, row in rows.items() if name.endswith("#renamed1")]
    assert len(pairs) > 20
    for first, copy in pairs:
        scores, truths = [], [json.loads(row["reward_model"]["ground_truth"]) for row in (first, copy)]
        for truth, row in zip(truths, (first, copy)):
            extra = {"turns": row["extra_info"]["answers"], "incident_text": row["extra_info"]["incident_text"]}
            scores.append(compute_score("", "", truth, extra))
        assert scores[0]["acc_main"] == scores[1]["acc_main"] == 1 and scores[1]["invented"] == 0
        assert truths[0]["service"] != truths[1]["service"] in copy["extra_info"]["incident_text"]
        old = compute_score(
            "", "", truths[1], {"turns": first["extra_info"]["answers"], "incident_text": extra["incident_text"]}
        )
        assert old["service_ok"] == 0


def test_sft_shows_the_same_views(tmp_path):
    out = tmp_path / "sft.jsonl"
    arguments = ["--num-incidents", "30", "--renamed", "1", "--view", "max-chars=400", "--folds", "2", "--fold", "0"]
    assert main(["build-sft", "--out", str(out), *arguments]) == 0
    rows = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    kinds = Counter(row["id"].partition("#")[2] for row in rows)
    assert kinds[""] == kinds["view1"] >= kinds["renamed1"] > 0


def test_ids_stay_names_however_long_they_are():
    (_, case), (_, other) = (
        next(iter(Views(shuffled=1).cases(incident(id=end * 200), SYSTEM, PromptOptions()))) for end in "ab"
    )
    assert len(case.incident.id) == 200 and case.incident.id.endswith("#shuffled1")
    assert case.incident.id[-20:] != other.incident.id[-20:]


@pytest.mark.parametrize(
    "text, part",
    [
        ("max-char=7", "max-char=7"),
        ("max-chars", "max-chars"),
        ("max-chars=-3", "max-chars=-3"),
        ("trim=blind,", ""),
        ("max-chars=٣", "max-chars=٣"),
    ],
)
def test_a_view_that_says_nothing_known_is_refused(text, part):
    with pytest.raises(IncidentError, match="expected KEY=VALUE") as caught:
        parse_view(text)
    assert str(caught.value).endswith(f"found {part!r}")


@pytest.mark.parametrize(
    "options, said",
    [
        (["--view", "trim=all"], "trim 'all': expected one of evidence, blind"),
        (["--renamed", "-1"], "--renamed: expected 0 copies or more, found -1"),
        (["--task", "investigation", "--view", "trim=blind"], "--view belongs to --task triage"),
    ],
)
def test_views_that_cannot_be_leave_no_file(options, said, tmp_path, capsys):
    assert main(["build-sft", "--out", str(tmp_path / "sft.jsonl"), "--num-incidents", "20", *options]) != 0
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_another_number_of_candidates_stands_instead_of_a_range():
    view = parse_view("max-candidates=2,trim=blind")
    ranged = PromptOptions(candidates_range=(3, 4))
    ((_, case),) = Views((view,)).cases(incident(), SYSTEM, ranged)
    assert len(case.candidates.services) == 2

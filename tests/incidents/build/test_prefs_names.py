"""Near misses whose names contain each other, and kinds that the data cannot tell."""

import json
import re
from collections import Counter
from dataclasses import replace

from verl_aiops.incidents import (
    Incident,
    PairMaker,
    PairOptions,
    PromptOptions,
    System,
    Taxonomy,
    build_case,
    build_prefs,
    file_source,
    write_incidents,
)
from verl_aiops.incidents.names import overlap
from verl_aiops.incidents.prompts import lists_candidates


def foreign(count, upstream=()):
    """Incidents of a taxonomy whose names hold commas and each other, as status pages have them."""
    services = ("DNS", "DNS infrastructure", "EC2, EBS", "EC2", "RDS", "jenkins.io", "ci.jenkins.io")
    types = ("outage", "partial outage", "latency")
    system = System(tuple(sorted(services)), tuple(sorted(types)))
    made = []
    for at in range(count):
        service, kind = services[at % len(services)], types[at % len(types)]
        logs = tuple(f"{name}: error" for name in services)
        calls = tuple(name for name in upstream if name != service)
        made.append(Incident(f"p-{at}", "page", service, kind, "Slow.", logs, upstream=calls))
    return system, made


def pairs_of(options, count=140, upstream=()):
    system, incidents = foreign(count, upstream)
    maker = PairMaker(Taxonomy({"page": system}), options)
    made = [(case, pair) for case in (build_case(i, system) for i in incidents) for pair in maker.make(case)]
    return maker, made


def overlapping(case, pair):
    said, right = json.loads(pair.rejected), json.loads(case.answer)
    return any(said[name] != right[name] and overlap(said[name], right[name]) for name in right)


def test_names_that_contain_each_other_are_not_rejected_for_each_other_unless_asked():
    maker, made = pairs_of(PairOptions())
    assert made and not any(overlapping(case, pair) for case, pair in made)
    # RDS stands in no other name, and latency in none
    assert maker.overlapping == sum(not (at % 7 == 4 and at % 3 == 2) for at in range(140))
    asked, both = pairs_of(PairOptions(overlapping=True))
    share = sum(overlapping(case, pair) for case, pair in both) / len(both)
    assert 0.1 < share < 0.6 and asked.overlapping == maker.overlapping


def test_nor_are_names_of_another_system():
    right = Incident("x-1", "lonely", "DNS", "outage", "Slow.", ("db killed",))
    other = System(("DNS infrastructure", "api"), ("crash", "partial outage"))
    lonely = System(("DNS",), ("outage",))
    for options, count in ((PairOptions(9), 1), (PairOptions(9, overlapping=True), 4)):
        maker = PairMaker(Taxonomy({"lonely": lonely, "other": other}), options)
        assert len(maker.make(build_case(right, lonely))) == count


def test_upstream_is_said_only_where_the_data_know_who_calls_whom():
    maker, made = pairs_of(PairOptions())
    kinds = Counter(pair.kind for _, pair in made)
    assert "upstream" not in kinds and kinds == maker.kinds and maker.instead["upstream"] > 40
    # what is made for it is a wrong service, and both shares are as asked; there is nothing swapped here
    assert abs(kinds["wrong_service"] / kinds.total() - 0.45 / 0.9) < 0.03
    only, made = pairs_of(PairOptions(1, {"upstream": 1.0}, hard_share=0.0))
    for case, pair in made:
        said = json.loads(pair.rejected)
        assert pair.kind == "wrong_service"
        assert said["service"] in case.named and said["incident_type"] == case.incident.incident_type
    known, made = pairs_of(PairOptions(), upstream=("RDS", "EC2"))
    assert known.kinds["upstream"] and not known.instead["upstream"]
    assert all(json.loads(p.rejected)["service"] in ("RDS", "EC2") for _, p in made if p.kind == "upstream")


def test_where_the_system_knows_its_calls_an_incident_without_any_has_no_upstream():
    """The fault is at the entry: nothing lies above it."""
    system, incidents = foreign(140, ("RDS", "EC2"))
    entry = [replace(incident, upstream=()) if at % 4 == 1 else incident for at, incident in enumerate(incidents)]
    maker = PairMaker(Taxonomy({"page": system}), PairOptions())
    made = [(case, pair) for case in (build_case(i, system) for i in entry) for pair in maker.make(case)]
    assert not maker.instead["upstream"]
    assert all(case.incident.upstream for case, pair in made if pair.kind == "upstream")
    assert abs(maker.kinds["upstream"] / maker.pairs - 0.2 / 0.9) < 0.03


def test_the_summary_says_what_stands_for_upstream_and_which_names_were_left_out(tmp_path):
    system, incidents = foreign(60)
    write_incidents(incidents, tmp_path / "page.jsonl")
    source = file_source(tmp_path / "page.jsonl", Taxonomy({"page": system}))
    said = str(build_prefs(source, tmp_path / "p.jsonl", val_share=0.0))
    assert "upstream 0.0% (asked 20%)" in said
    assert re.search(r"\d+ asked as upstream are a wrong_service that is named: no data on who calls whom", said)
    assert re.search(r"names that contain the right one or lie in it, never rejected .*: in 57 incidents", said)


def test_a_list_of_names_is_read_back_as_it_was():
    """Names hold commas, quotes and brackets, and stand in the prompt as in the answer."""
    system = System(("EC2, EBS", "EC2", 'the "old" API', "[cron]", "支付、结算"), ("down, slow", "down"))
    for lang, heads in (("en", ("Services: ", "Incident types: ")), ("zh", ("服务：", "故障类型："))):
        incident = Incident("x-1", "s", "EC2", "down", "Slow.", ("EC2, EBS: error",), lang=lang)
        case = build_case(incident, system, PromptOptions(max_candidates=0))
        lines = case.rounds[-1]["content"].splitlines()[-2:]
        for line, head, names in zip(lines, heads, (system.services, system.incident_types)):
            assert line.startswith(head) and sorted(json.loads(line.removeprefix(head))) == sorted(names)
        assert case.named == {"EC2, EBS"}
        assert lists_candidates(case.rounds[-1]["content"], case.candidates)
        assert not lists_candidates(case.rounds[-1]["content"], System(("EC2", "EBS"), ("down",)))

"""The simulator: repeatable, streamable, honest about what it knows, and not answerable from the symptom."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from string import Formatter

import pytest

from verl_aiops.incidents import (
    Difficulty,
    Incident,
    IncidentError,
    Simulator,
    fault_id,
    incident_text,
    normalise_label,
    simulator_taxonomy,
)
from verl_aiops.incidents.simulator import DIFFICULTIES, FAULTS, TOPOLOGIES
from verl_aiops.incidents.simulator.faults import looks
from verl_aiops.incidents.simulator.noise import noise
from verl_aiops.incidents.simulator.values import values
from verl_aiops.incidents.taxonomy import ABSTENTIONS, names_in

GIVEN = {"op", "callee", "flow", "time", "until", "service", "since", "other"}
ALL_SERVICES = {service for topology in TOPOLOGIES.values() for service in topology.services}


@pytest.fixture(scope="module")
def many() -> list[Incident]:
    return list(Simulator(seed=1, lang="mix", difficulty="mix").stream(2000))


def wordings():
    """Every wording of the simulator with what it belongs to."""
    for fault in FAULTS.values():
        for voice in (fault.own, fault.remote, fault.mild):
            yield from ((fault.name, text) for text in (*voice.en, *voice.zh))
        yield from ((fault.name, text) for text in (*fault.metrics, *fault.mild_metrics))
    around = noise()
    levelled = [voice for _, voice in (*around.background, *around.unrelated)]
    for voice in (*levelled, *(voice for _, voice in telling()), *around.changes.values(), around.placements):
        yield from (("noise", text) for text in (*voice.en, *voice.zh))
    yield from (("noise", text) for text in (*around.quiet_metrics, *around.caller_metrics.values()))


def telling():
    """The lists of wordings that tell of a fault, shared by all incident types, with what they are for."""
    around = noise()
    yield from looks().items()
    for part in ("callers", "blind", "symptoms"):
        yield from ((f"{part} {effect}", voice) for effect, voice in getattr(around, part).items())
    yield "gaps", around.gaps


def has_a_cause(incidents):
    """Those in which something is wrong, and can be named."""
    return [incident for incident in incidents if incident.service not in ABSTENTIONS]


def test_size_and_the_three_cues(many):
    taxonomy = simulator_taxonomy()
    assert len(ALL_SERVICES) >= 25 and len(FAULTS) >= 15
    assert sum(len({*system.services} - {"none", "unknown"}) for system in taxonomy.systems.values()) == len(
        ALL_SERVICES
    )
    for service, incident_type in (("api", "latency_spike"), ("db", "error_rate_spike"), ("cache", "oom")):
        assert TOPOLOGIES["shop"].kinds[service] in FAULTS[incident_type].kinds
    for incident in many:
        assert taxonomy.system_of(incident)


def test_same_seed_same_incidents_whatever_came_before():
    simulator = Simulator(seed=5, lang="mix", difficulty="mix")
    stream = list(simulator.stream(40))
    assert stream == list(Simulator(seed=5, lang="mix", difficulty="mix").stream(40))
    assert simulator.incident(33) == stream[33]
    assert list(simulator.stream(10, start=30)) == stream[30:]
    assert stream != list(Simulator(seed=6, lang="mix", difficulty="mix").stream(40))


def test_a_known_incident_stays_what_it_is():
    """Seeds are part of published results: a change of the simulator that moves them has to be seen here."""
    incident = Simulator().incident(0)
    assert (incident.id, incident.service, incident.incident_type) == (
        "sim-shop-s0-f000000-1",
        "orders",
        "credential_rejected",
    )


# sha256 of 60 incidents each, as JSON
DIGESTS = {
    ("en", "medium", "shop+bank+media+fleet", 0): "68bb3297d7fcaad19595ad8081ca7d0e320a5aff660d981d920c97a32c18f2a1",
    ("en", "easy", "shop", 1): "5d4dd26ed19c63bc7dde11be6d5048e6319b72e5ec64f6039555591f9d8c8cd6",
    ("zh", "hard", "bank", 2): "5f8c98dec520bc03ac67f45637244f0afa528c516e3296a234ef28a5e0a943c4",
    ("mix", "mix", "shop+bank+media+fleet", 3): "5dde9ed9869aa29598d86ae0c2d4ebfc1bf990483c7ea93bbcfe1a01aa9392af",
    ("mix", "hard", "media", 4): "6caaaaef3edacadc401cc5f233bce814f3529d8588acc3eca27b65b7a7a281e2",
    ("zh", "easy", "fleet", 5): "03e7be9cc16d7062a37e5a9105113f7257a724ec0c5cbe566de3411d0cb8eafb",
    ("mix", "medium", "fleet+shop", 1): "ce1664c162b589fd994fcfc9870b54b0f5000e642542d1e382ed5f9e07727ead",
}


@pytest.mark.parametrize("lang, difficulty, systems, seed", DIGESTS)
def test_what_a_seed_gives_stays_byte_by_byte(lang, difficulty, systems, seed):
    """Whoever has published a seed, a file's digest or figures on either can make it again."""
    topologies = tuple(systems.split("+"))
    simulator = Simulator(seed=seed, lang=lang, difficulty=difficulty, topologies=topologies)
    digest = hashlib.sha256()
    for incident in simulator.stream(60, start=1000 * seed):
        digest.update(json.dumps(incident.to_dict(), ensure_ascii=False).encode())
    assert digest.hexdigest() == DIGESTS[lang, difficulty, systems, seed]


def test_every_incident_is_whole(many):
    ids = [incident.id for incident in many]
    assert len(set(ids)) == len(ids)
    for incident in many:
        assert incident.evidence, incident.id
        assert fault_id(incident) == incident.fault
        assert fault_id(Incident.from_dict({**incident.to_dict(), "fault": None})) == incident.fault
        assert incident.service not in incident.upstream
        if incident.service in ABSTENTIONS:
            assert incident.incident_type == incident.service and not incident.upstream
        for service, incident_type in incident.decoys:
            assert service != incident.service and service not in incident.upstream
            assert incident_type != incident.incident_type


def test_symptoms_name_neither_service_nor_type(many):
    for incident in many:
        assert not names_in(incident.symptom, ALL_SERVICES), incident.symptom
        for name in FAULTS:
            assert not re.search(rf"\b{name.replace('_', '[_ ]')}\b", incident.symptom, re.IGNORECASE)


def test_labels_are_never_written_into_the_data(many):
    for incident in many:
        for name in (incident.incident_type, *incident.type_aliases):
            if "_" in name:
                assert name not in incident_text(incident)


def test_evidence_is_about_the_faulty_service(many):
    """Its own lines or, where these are missing, what its callers say of it; its metrics; what was changed at it."""
    hidden = 0
    for incident in has_a_cause(many):
        for line in incident.evidence:
            assert names_in(line, [incident.service]), line
        logs = [line for line in incident.evidence if not line.startswith(("metric ", "change "))]
        callers = [line for line in logs if names_in(line, incident.upstream)]
        hidden += len(callers) == len(logs)
        moved = {line.split()[5] for line in incident.evidence if "+1m" in line}
        assert moved == (set(FAULTS[incident.incident_type].moves) if incident.difficulty != "easy" else set())
    assert 0.08 < hidden / len(many) < 0.25


def test_what_proves_that_no_fault_can_be_named(many):
    """The figures of the alert's own flow: never out of their range, or out of it, and nothing arrives from below."""
    seen = Counter()
    for incident in many:
        if incident.service in ABSTENTIONS:
            seen[incident.service] += 1
            entry = TOPOLOGIES[incident.source.partition("/")[2]].entries[operation_of(incident)]
            flow = next(line for line in incident.evidence if line.startswith("metric "))
            assert f" {entry} {operation_of(incident)} " in flow
            gaps = [line for line in incident.evidence if line.startswith("collector ")]
            assert len(gaps) >= 2 if incident.service == "unknown" else not gaps
            values, low, top = re.search(r"([\d ]+) \(usual (\d+)-(\d+)\)", flow).groups()
            outside = [value for value in map(int, values.split()) if not int(low) <= value <= int(top)]
            assert bool(outside) is (incident.service == "unknown")
    assert min(seen["none"], seen["unknown"]) > 30


def test_effects_travel_up_the_calls(many):
    for incident in has_a_cause(many):
        topology = TOPOLOGIES[incident.source.partition("/")[2]]
        callee = incident.service
        for caller in incident.upstream:
            assert callee in topology.calls[caller]
            assert any(names_in(line, [caller]) and names_in(line, [callee]) for line in incident.logs)
            callee = caller
        if incident.trace and incident.difficulty == "easy":
            assert f"-> {incident.service} " in incident.trace


def operation_of(incident: Incident) -> str:
    """The request of the alert."""
    return re.search(r"[(（]([A-Z]+ \S+?)[)）]", incident.symptom)[1]


def test_the_alert_is_of_the_flow_that_fails(many):
    """Its request is in the lines that prove the verdict, and its flow uses the faulty service."""
    for incident in many:
        topology = TOPOLOGIES[incident.source.partition("/")[2]]
        flow = next(flow for flow in topology.flows if flow.operation == operation_of(incident))
        assert (flow.zh if incident.lang == "zh" else flow.en) in incident.symptom
        assert {*incident.upstream} <= flow.through
        if incident.service not in ABSTENTIONS:
            assert incident.service in flow.through
            lines = (*incident.logs, *incident.trace_lines)
            assert incident.difficulty == "easy" or any(flow.operation in line for line in lines)


def test_causes_and_their_rivals_write_alike(many):
    """Levels, wordings and metrics of a hard incident's cause are those of the others in it: none is its mark."""
    levels = {"cause": Counter(), "others": Counter()}
    for incident in has_a_cause(Simulator(seed=8, difficulty="hard").stream(600)):
        for line in incident.logs:
            found = re.search(r"\b(ERROR|WARN|FATAL|error|warn|fatal)\b", line)
            if found and not line.startswith(("metric", "change", "collector", "node")):
                about = line in incident.evidence and not names_in(line, incident.upstream)
                levels["cause" if about else "others"][found[1].upper()] += 1
    shares = {who: {level: n / counts.total() for level, n in counts.items()} for who, counts in levels.items()}
    for level in ("ERROR", "WARN", "FATAL"):
        assert abs(shares["cause"][level] - shares["others"][level]) < 0.08, shares


def test_no_wording_of_a_hard_incident_belongs_to_one_type():
    types = {name: {fault.name for fault in FAULTS.values() if name in fault.looks} for name in looks()}
    assert all(len(owners) >= 2 or name == "stale" for name, owners in types.items()), types
    # but the metrics that move and what was changed do
    signs = [(frozenset(fault.moves), fault.after) for fault in FAULTS.values()]
    assert len(set(signs)) == len(signs) and all(moves for moves, _ in signs)
    own = {wording for fault in FAULTS.values() for voice in (fault.own, fault.remote) for wording in voice.en}
    marks = [max(re.split(r"\{\w+\}", wording), key=len).strip() for wording in own]
    for incident in Simulator(seed=2, difficulty="hard").stream(300):
        for line in incident.evidence:
            assert not any(len(mark) > 14 and mark in line for mark in marks), line


def test_wordings_vary(many):
    seen: dict[str, set[str]] = {}
    for incident in has_a_cause(many):
        for line in incident.evidence:
            seen.setdefault(incident.incident_type, set()).add(re.sub(r"[\d:.]+", "#", line))
    assert set(seen) == set(FAULTS)
    assert all(len(lines) >= 20 for lines in seen.values())


def test_wordings_fill_and_name_no_service():
    for owner, text in wordings():
        names = {name for _, name, _, _ in Formatter().parse(text) if name}
        assert names <= {*values(), *GIVEN}, (owner, text)
        assert not names_in(text, ALL_SERVICES | {*ABSTENTIONS}), (owner, text)
    for topology in TOPOLOGIES.values():
        for text in (*topology.operations, *(word for flow in topology.flows for word in flow[:3])):
            assert not names_in(text, ALL_SERVICES), text


def test_topologies_are_call_graphs_without_cycles():
    for topology in TOPOLOGIES.values():
        assert set(topology.calls) <= set(topology.kinds)
        assert {name for called in topology.calls.values() for name in called} <= set(topology.kinds)

        def depth(service: str, above: tuple[str, ...] = (), calls=topology.calls) -> int:
            assert service not in above
            return 1 + max((depth(name, (*above, service)) for name in calls.get(service, ())), default=0)

        assert max(map(depth, topology.kinds)) >= 4


def test_aliases_are_no_other_class():
    names = [normalise_label(name) for fault in FAULTS.values() for name in (fault.name, *fault.aliases)]
    assert len(set(names)) == len(names)


def test_languages():
    for lang in ("en", "zh"):
        assert {incident.lang for incident in Simulator(lang=lang).stream(50)} == {lang}
    counts = Counter(incident.lang for incident in Simulator(lang="mix", zh_share=0.25).stream(1000))
    assert 180 < counts["zh"] < 320
    chinese = re.compile("[\u4e00-\u9fff]")
    for incident in Simulator(lang="zh").stream(50):
        assert chinese.search(incident.symptom) and chinese.search("".join(incident.logs))
    for incident in Simulator(lang="en").stream(50):
        assert not chinese.search(incident_text(incident))


def test_difficulty_knobs():
    lengths = {
        name: sum(len(incident.logs) for incident in Simulator(difficulty=name).stream(200)) for name in DIFFICULTIES
    }
    assert lengths["easy"] < lengths["medium"] < lengths["hard"]
    bare = Difficulty(
        **{name: (0, 0) for name in ("noise", "decoys", "alarms", "depth", "rivals", "signs", "changes")},
        **{name: 0 for name in ("echo", "hidden", "trace", "flood", "nothing", "untold")},
        evidence=(2, 2),
    )
    for incident in Simulator(difficulty=bare).stream(50):
        assert {*incident.logs} == {*incident.evidence} and 2 <= len(incident.logs) <= 3
        assert (incident.upstream, incident.decoys, incident.trace) == ((), (), None)
    all_hidden = Difficulty(depth=(1, 3), hidden=1.0)
    for incident in Simulator(difficulty=all_hidden).stream(50):
        if incident.upstream:
            logs = [line for line in incident.evidence if not line.startswith(("metric ", "change "))]
            assert logs and all(names_in(line, incident.upstream[:1]) for line in logs)
    for name, service in (("nothing", "none"), ("untold", "unknown")):
        sure = Difficulty(**{"nothing": 0, "untold": 0, name: 1.0})
        assert {incident.service for incident in Simulator(difficulty=sure).stream(20)} == {service}
    assert {incident.difficulty for incident in Simulator(difficulty="mix").stream(60)} == set(DIFFICULTIES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lang": "fr"}, "lang 'fr': expected one of en, zh, mix"),
        ({"difficulty": "brutal"}, "difficulty 'brutal': expected one of easy, medium, hard, mix"),
        ({"topologies": ("shop", "zoo")}, "topology 'zoo': expected one of shop, bank"),
        ({"topologies": ()}, "topologies: expected at least one"),
        ({"zh_share": 2}, "zh_share: expected a share from 0 to 1, found 2"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(IncidentError, match=message):
        Simulator(**settings)


def test_bad_difficulty():
    with pytest.raises(IncidentError, match=r"difficulty noise: expected a range .* found \(3, 1\)"):
        Difficulty(noise=(3, 1))
    with pytest.raises(IncidentError, match="difficulty evidence"):
        Difficulty(evidence=(0, 1))
    with pytest.raises(IncidentError, match="difficulty hidden: expected a share"):
        Difficulty(hidden=1.5)
    with pytest.raises(IncidentError, match="nothing and untold: expected shares of 1 at most together, found 0.6 and"):
        Difficulty(nothing=0.6, untold=0.5)

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
from verl_aiops.incidents.simulator.noise import noise
from verl_aiops.incidents.simulator.values import values
from verl_aiops.incidents.taxonomy import names_in

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
    for voice in (*levelled, *around.callers.values(), *around.symptoms.values(), around.echoes):
        yield from (("noise", text) for text in (*voice.en, *voice.zh))
    yield from (("noise", text) for text in (*around.quiet_metrics, *around.caller_metrics.values()))


def test_size_and_the_three_cues(many):
    taxonomy = simulator_taxonomy()
    assert len(ALL_SERVICES) >= 25 and len(FAULTS) >= 15
    assert sum(len(system.services) for system in taxonomy.systems.values()) == len(ALL_SERVICES)
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
        "latency_spike",
    )


# sha256 of 60 incidents each, as JSON
DIGESTS = {
    ("en", "medium", "shop+bank+media+fleet", 0): "2d53452b7b16d1ecba7c10c92de25b0076f3813ce4ba25ba9c7c37c54639db40",
    ("en", "easy", "shop", 1): "cde0a31c115af44515f032dabeab9dc85c00dfb003a87b54d4f6b895a5ae1a8f",
    ("zh", "hard", "bank", 2): "71bd15ac74a97be3bcdd76482b3cc7fe8c15c44b478b57e8c8df5127e5c9b7e8",
    ("mix", "mix", "shop+bank+media+fleet", 3): "4f0e2db29c5d4654b1cc8d2be7a94507e4bab39c842c23139dd8680a9f64d295",
    ("mix", "hard", "media", 4): "c07e9f2da1cee06596dc6bbc205ddf3d76844a2ae10fcd42f13519c52da07881",
    ("zh", "easy", "fleet", 5): "85831da4444193f253c9e266776c83f13abcdfdde9dd57ec35b5608542a1d9d5",
    ("mix", "medium", "fleet+shop", 1): "9919725bb3cfdbc3dc41e3203d0c0a2814845cfe57374f6fe21a0c258e81eef8",
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


def test_evidence_comes_from_the_faulty_service_or_names_it(many):
    hidden = 0
    for incident in many:
        for line in incident.evidence:
            assert names_in(line, [incident.service]), line
        callers = [line for line in incident.evidence if names_in(line, incident.upstream)]
        if callers:
            hidden += 1
            assert len(callers) == len(incident.evidence)
    assert 0.1 < hidden / len(many) < 0.3


def test_effects_travel_up_the_calls(many):
    for incident in many:
        topology = TOPOLOGIES[incident.source.partition("/")[2]]
        callee = incident.service
        for caller in incident.upstream:
            assert callee in topology.calls[caller]
            assert any(names_in(line, [caller]) and names_in(line, [callee]) for line in incident.logs)
            callee = caller
        if incident.trace:
            assert f"-> {incident.service} " in incident.trace


def test_wordings_vary(many):
    seen: dict[str, set[str]] = {}
    for incident in many:
        for line in incident.evidence:
            seen.setdefault(incident.incident_type, set()).add(re.sub(r"[\d:.]+", "#", line))
    assert set(seen) == set(FAULTS)
    assert all(len(lines) >= 20 for lines in seen.values())


def test_wordings_fill_and_name_no_service():
    for owner, text in wordings():
        names = {name for _, name, _, _ in Formatter().parse(text) if name}
        assert names <= {*values(), "op", "callee", "flow", "time", "what"}, (owner, text)
        assert not names_in(text, ALL_SERVICES), (owner, text)
    for topology in TOPOLOGIES.values():
        for text in (*topology.operations, *(word for flow in topology.flows for word in flow)):
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
        noise=(0, 0), decoys=(0, 0), alarms=(0, 0), depth=(0, 0), evidence=(2, 2), echo=0, hidden=0, trace=0
    )
    for incident in Simulator(difficulty=bare).stream(50):
        assert incident.logs == incident.evidence and len(incident.logs) == 2
        assert (incident.upstream, incident.decoys, incident.trace) == ((), (), None)
    all_hidden = Difficulty(depth=(1, 3), hidden=1.0)
    for incident in Simulator(difficulty=all_hidden).stream(50):
        if incident.upstream:
            assert all(names_in(line, incident.upstream[:1]) for line in incident.evidence)
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

"""The simulator's data files: read when needed, checked with the place of what is wrong, open to additions."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from verl_aiops.incidents import IncidentError, Simulator, System, simulator_taxonomy
from verl_aiops.incidents.simulator import FAULTS, TOPOLOGIES, Difficulty, load_faults, load_topologies
from verl_aiops.incidents.simulator.noise import noise
from verl_aiops.incidents.simulator.values import fill, values

FAULT = """
leap_second:
  kinds: [db]
  effects: [errors]
  own: {en: ["kernel: clock stepped back {few} s on {node}"], zh: ["内核：{node} 时钟回拨 {few} 秒"]}
  remote: {en: ["{callee} refuses {op}: its clock went back"], zh: ["{callee} 拒绝 {op}：时钟回拨"]}
  mild: {en: ["clock in step, offset {few} ms"], zh: ["时钟同步，偏移 {few} ms"]}
  metrics: ["clock_steps_1m={few} (usual 0)"]
  aliases: [clock_step]
"""
SYSTEM = """
radio:
  services: {front: edge, mixer: app, tape: db}
  calls: {front: [mixer], mixer: [tape]}
  flows: [{en: "Listening live", zh: "收听直播"}]
  operations: ["GET /live"]
"""


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A fault and a system out of files of a user's own, beside those of the package."""
    (tmp_path / "faults.yaml").write_text(FAULT, encoding="utf-8")
    (tmp_path / "systems.yaml").write_text(SYSTEM, encoding="utf-8")
    for name, fault in load_faults(tmp_path / "faults.yaml").items():
        monkeypatch.setitem(FAULTS, name, fault)
    for name, topology in load_topologies(tmp_path / "systems.yaml").items():
        monkeypatch.setitem(TOPOLOGIES, name, topology)


def test_a_fault_and_a_system_of_ones_own_are_one_entry_each(added):
    assert simulator_taxonomy().systems["simulator/radio"].services == ("front", "mixer", "none", "tape", "unknown")
    assert isinstance(simulator_taxonomy().systems["simulator/shop"], System)
    simulator = Simulator(topologies=("radio",), lang="mix", difficulty=Difficulty(depth=(1, 1), hidden=0.3))
    made = [incident for incident in simulator.stream(600) if incident.incident_type == "leap_second"]
    assert len(made) > 5 and {incident.service for incident in made} == {"tape"}
    assert all(incident.type_aliases == ("clock_step",) and incident.evidence for incident in made)
    sources = Counter(incident.source for incident in Simulator().stream(200))
    assert len(sources) == 5 and sources["simulator/radio"] > 20


def test_what_was_taken_away_again_gives_the_old_incidents():
    assert "leap_second" not in FAULTS and "radio" not in TOPOLOGIES
    assert Simulator().topologies == tuple(TOPOLOGIES) == ("shop", "bank", "media", "fleet")


@pytest.mark.parametrize(
    "change, said",
    [
        (("few} s", "fwe} s"), r"key 'leap_second\.own\.en\.0': expected braces that name a value of .*'fwe' is none"),
        (("stepped back {few} s", "{callee} {few} s"), r"own\.en\.0': expected braces .*values.yaml, or op, found"),
        (("offset {few} ms", "offset {few ms"), r"key 'leap_second\.mild\.en\.0': expected text with braces in pairs"),
        (
            ("[db]", "[database]"),
            r"key 'leap_second\.kinds\.0': expected one of edge, app, db, cache, queue, store, found",
        ),
        (("[errors]", "[]"), r"key 'leap_second\.effects': expected a list with at least one item"),
        (("[errors]", "[loud]"), r"key 'leap_second\.effects\.0': expected one of slow, errors, stale"),
        (("mild:", "milde:"), r"key 'leap_second\.(mild|milde)': expected"),
        (("aliases:", "alias:"), r"key 'leap_second\.alias': expected one of the keys kinds, effects"),
        (('en: ["clock in', 'fr: ["clock in'), r"key 'leap_second\.mild\.en': expected this key"),
        (("leap_second:", '"<|leap|>":'), "expected a name of .* without spaces around it or chat-template marks"),
    ],
)
def test_a_wrong_fault_names_file_and_key(tmp_path, change, said):
    path = tmp_path / "faults.yaml"
    assert change[0] in FAULT
    path.write_text(FAULT.replace(*change, 1), encoding="utf-8")
    with pytest.raises(IncidentError, match=f"faults.yaml, .*{said}"):
        load_faults(path)


@pytest.mark.parametrize(
    "change, said",
    [
        (("tape: db", "tape: tap"), r"key 'radio\.services\.tape': expected one of edge, app"),
        (("[tape]", "[tapes]"), r"key 'radio\.calls\.mixer\.0': expected one of front, mixer, tape, found str 'tapes'"),
        (("mixer: [tape]", "mixr: [tape]"), r"key 'radio\.calls\.mixr': expected one of front, mixer, tape"),
        (("mixer: [tape]", "mixer: [tape], tape: [front]"), "key 'radio.calls': expected calls without a cycle"),
        (('"GET /live"', ""), r"key 'radio\.operations': expected a list with at least one item"),
        ((", zh:", ", cn:"), r"key 'radio\.flows\.0\.zh': expected this key"),
    ],
)
def test_a_wrong_system_names_file_and_key(tmp_path, change, said):
    path = tmp_path / "systems.yaml"
    assert change[0] in SYSTEM
    path.write_text(SYSTEM.replace(*change, 1), encoding="utf-8")
    with pytest.raises(IncidentError, match=f"systems.yaml, .*{said}"):
        load_topologies(path)


def test_faults_of_the_package_strike_and_are_seen_somewhere():
    kinds = {kind for topology in TOPOLOGIES.values() for kind in topology.kinds.values()}
    for fault in FAULTS.values():
        assert kinds & set(fault.kinds), fault.name
        assert set(fault.effects) <= noise().symptoms.keys()
    assert replace(FAULTS["oom"], name="oom") == FAULTS["oom"]


def test_facts_stay_and_other_values_vary():
    from random import Random

    rng, facts = Random(0), {}
    texts = {fill("{pool} {node} {version}", rng, facts) for _ in range(50)}
    assert len(texts) == 1 and len({fill("{rid}", rng, facts) for _ in range(50)}) == 50
    assert {name for name, value in values().items() if value.fact} == {
        *("pool", "mib", "node", "version", "table", "key", "cls", "file", "volume", "partner", "days")
    }


def test_the_data_are_read_when_they_are_needed():
    code = (
        "import verl_aiops.incidents\n"
        "from verl_aiops.incidents.simulator import noise, topology, values\n"
        "from verl_aiops.incidents.simulator.faults import faults\n"
        "from verl_aiops.incidents.simulator.topology import topologies\n"
        "assert not any(f.cache_info().currsize for f in (faults, topologies, noise.noise, values.values))\n"
        "verl_aiops.incidents.Simulator().incident(0)\n"
        "assert all(f.cache_info().currsize for f in (faults, topologies, noise.noise, values.values))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

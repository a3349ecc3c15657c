"""Wordings that training never sees: told apart in every list, whatever the seed, and used by a stream of their own."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from verl_aiops.cli.main import main
from verl_aiops.incidents import (
    IncidentError,
    Simulator,
    Wordings,
    build_rl,
    file_source,
    incident_text,
    simulator_source,
)
from verl_aiops.incidents.simulator import FAULTS
from verl_aiops.incidents.simulator.faults import looks
from verl_aiops.incidents.simulator.noise import noise

SHARE = 0.3


def lists():
    """Every list of wordings of a kind of line that tells of a fault."""
    around = noise()
    voices = [*looks().values(), *around.callers.values(), *around.blind.values(), *around.symptoms.values()]
    voices += [around.gaps, *around.changes.values(), *(fault.own for fault in FAULTS.values())]
    return [texts for voice in voices for texts in (voice.en, voice.zh)]


def marks(texts):
    """Of each wording its longest stretch without braces, which a line in that wording has in it."""
    return [max(re.split(r"\{\w+\}", text), key=len).strip() for text in texts]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_every_list_that_tells_of_a_fault_is_divided(share):
    for texts in lists():
        kept, held = (Wordings(share, held_out).allowed(texts) for held_out in (False, True))
        assert kept and held and sorted((*kept, *held)) == sorted(texts)


def test_a_list_of_one_has_nothing_to_hold_out_and_no_share_holds_out_nothing():
    assert Wordings(0.5).allowed(("a",)) == ("a",) and Wordings(0.5, held_out=True).allowed(("a",)) == ()
    assert Wordings().allowed(("a", "b")) == ("a", "b")
    assert Wordings(0.5).allowed(()) == Wordings(0.5, held_out=True).allowed(()) == ()


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_no_stream_has_a_wording_of_the_other(difficulty):
    """Alerts and lines: those of training in wordings that are left for it, those of the other in the others."""
    kept, held = (Wordings(SHARE, held_out) for held_out in (False, True))
    themes = [texts for fault in FAULTS.values() for v in (fault.mild, fault.remote) for texts in (v.en, v.zh)]
    pools = [*lists(), *themes]
    only = {
        True: marks(text for texts in pools for text in held.allowed(texts)),
        False: marks(text for texts in pools for text in kept.allowed(texts)),
    }
    for held_out in (False, True):
        seen = 0
        for seed in (1, 2):
            simulator = Simulator(seed=seed, lang="mix", difficulty=difficulty, wordings=Wordings(SHARE, held_out))
            for incident in simulator.stream(60):
                for line in incident_text(incident).split("\n"):
                    known = any(mark in line for mark in only[held_out])
                    seen += known
                    # a short mark may be a part of a longer one
                    assert known or not any(mark in line for mark in only[not held_out]), line
        assert seen > 300


def test_the_two_streams_of_a_source_stand_apart(tmp_path):
    simulator = Simulator(seed=3, difficulty="hard", wordings=Wordings(SHARE))
    source = simulator_source(simulator, 100)
    made = list(source.stream())
    assert source.count == len(made) == 110 and len({incident.id for incident in made}) == 110
    new = {incident.source for incident in made[100:]}
    assert set(source.hold_out) == new and all(name.endswith("/new-wordings") for name in new)
    assert not new & {incident.source for incident in made[:100]}
    # without the switch there is one stream, and it is as it was
    plain = simulator_source(replace(simulator, wordings=Wordings()), 100)
    assert plain.count == 100 and plain.hold_out == ()
    assert list(plain.stream()) == list(Simulator(seed=3, difficulty="hard").stream(100))
    summary = build_rl(source, tmp_path / "rl.jsonl")
    assert summary.sides["unseen"].incidents == 10 and summary.files["unseen"].endswith("rl.unseen.jsonl")
    assert summary.sides["train"].incidents + summary.sides["val"].incidents == 100


def test_commands_write_the_unseen_side(tmp_path, capsys):
    out = tmp_path / "made.jsonl"
    assert main(["simulate", "--out", str(out), "--num-incidents", "40", "--hold-out-wordings", "0.3"]) == 0
    assert "4 in held-out wordings in" in capsys.readouterr().out
    files = [file_source(path) for path in (out, tmp_path / "made.unseen.jsonl")]
    assert [file.count for file in files] == [40, 4]
    # candidates are those of the system whose wordings are new
    name = next(iter(files[1].taxonomy.systems))
    assert {"none", "unknown"} < {*files[1].taxonomy.systems[name].services}
    assert main(["build-sft", "--out", str(tmp_path / "sft.jsonl"), "--hold-out-wordings", "0.3"]) == 0
    assert len((tmp_path / "sft.unseen.jsonl").read_text().splitlines()) == 100
    capsys.readouterr()
    asked = ["build-sft", "--out", str(tmp_path / "b.jsonl"), "--incidents", str(out), "--hold-out-wordings", "0.3"]
    assert main(asked) != 0 and "--hold-out-wordings belongs to the simulator" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((1.0,), "share of wordings held out: expected a share from 0 to below 1, found 1.0"),
        ((0.0, True), "0 holds none"),
    ],
)
def test_bad_shares(settings, message):
    with pytest.raises(IncidentError, match=message):
        Wordings(*settings)

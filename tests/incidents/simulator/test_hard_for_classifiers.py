"""How far a classifier comes without reasoning: on easy incidents all the way, on hard ones not far."""

from __future__ import annotations

import pytest

from verl_aiops.evaluation.baseline.run import baseline
from verl_aiops.evaluation.run.results import read_lines
from verl_aiops.incidents import PromptOptions, Simulator, build_rl, simulator_source


@pytest.mark.parametrize(("difficulty", "least", "most"), [("easy", 0.9, 1.0), ("hard", 0.1, 0.5)])
def test_words_near_a_name_do_not_tell_the_cause_of_hard_incidents(difficulty, least, most, tmp_path):
    """The candidate-line classifier on whole prompts. One system alone, so that few incidents teach it much: it gets
    what 2,600 would give it of all four."""
    pytest.importorskip("sklearn")
    simulator = Simulator(seed=5, lang="mix", difficulty=difficulty, topologies=("shop",))
    out = tmp_path / "rl.jsonl"
    build_rl(simulator_source(simulator, 900), out, val_share=0.28, prompts=PromptOptions(budget=0, max_candidates=0))
    baseline(str(out), str(tmp_path / "rl.val.jsonl"), tmp_path / "baseline", ["linear"])
    answers = list(read_lines(tmp_path / "baseline" / "linear" / "generations.jsonl"))
    assert len(answers) > 220
    assert least <= sum(line["score"]["acc_main"] for line in answers) / len(answers) <= most

"""Agent loops that a run brings itself: found where verl's workers will find them, refused before Ray where not."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.rl.agent_loops import known_loop, own_loops
from verl_aiops.trainers.rl.prompt_rows import PromptRules, row_faults
from verl_aiops.trainers.rl.scored_trainer import ScoredTrainer

ROW = {"prompt": [{"role": "user", "content": "1+1?"}], "agent_name": "my_own_loop"}


def config(path):
    return OmegaConf.create({"actor_rollout_ref": {"rollout": {"agent": {"agent_loop_config_path": path}}}})


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(text): a run whose file of loops has this text; `my_loops.Mine` can be imported."""
    (tmp_path / "loops_of_a_user.py").write_text("class Mine:\n    pass\n")
    (tmp_path / "broken_loops.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "loops.yaml").write_text(text)
        return config(str(tmp_path / "loops.yaml"))

    return write


def test_rows_may_name_loops_of_the_runs_own_file(written):
    loops = own_loops(written("- name: my_own_loop\n  _target_: loops_of_a_user.Mine\n"))
    assert loops == {"my_own_loop"} and own_loops(config(None)) == frozenset()
    assert row_faults(ROW, PromptRules(loops=loops)) == []
    (fault,) = row_faults(ROW, PromptRules())
    assert "agent_loop_config_path names, got 'my_own_loop'" in fault
    assert known_loop("single_turn_agent") and not known_loop("my_own_loop")


@pytest.mark.parametrize(
    "text, said",
    [
        ("name: a\n", "expected a list of {name, _target_}, found dict"),
        ("- name: a\n", "entry 1: expected name: NAME and _target_: MODULE.CLASS, found {'name': 'a'}"),
        ("- {name: a, _target_: Mine}\n", "entry 1: expected name: NAME and _target_: MODULE.CLASS"),
        ("- {name: a, _target_: loops_of_a_user.Nine}\n", "loops_of_a_user.Nine cannot be imported: AttributeError"),
        (
            "- {name: a, _target_: nowhere_at_all.Mine}\n",
            "No module named 'nowhere_at_all'. Its folder must be on",
        ),
        ("- {name: a, _target_: broken_loops.Mine}\n", "broken_loops.Mine cannot be imported: ZeroDivisionError"),
        ("- {name: a\n", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(written, text, said):
    with pytest.raises(ConfigError) as error:
        own_loops(written(text))
    assert said in str(error.value) and "agent_loop_config_path=" in str(error.value)


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml: cannot be read"):
        own_loops(config(str(tmp_path / "none.yaml")))


def test_a_loop_that_hides_what_the_engine_said_is_named_in_the_first_step():
    tags = [{"is_padding": True}, {"min_global_steps": None}]
    with pytest.raises(RuntimeError, match=r"extra_fields=\{\*\*output.extra_fields"):
        ScoredTrainer._compute_metrics(None, SimpleNamespace(tags=tags), {}, {}, 1, 0)

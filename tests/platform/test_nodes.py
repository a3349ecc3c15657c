"""Paths that one node of a cluster sees and another does not."""

import os

import pytest

from verl_aiops.platform import nodes
from verl_aiops.platform.nodes import check_paths, seen_here

HERE, THERE = "10.0.0.1 (head, 0a0a0a0a)", "10.0.0.2 (worker, 0b0b0b0b)"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return str(folder)


def sees(*hidden):
    """A second node that sees nothing below these folders; what was asked for, and that it was there then."""
    asked = []

    def ask(paths):
        asked.extend(paths)
        assert seen_here(paths) == []
        return {HERE: [], THERE: [path for path in paths if path.startswith(hidden)]}

    ask.asked = asked
    return ask


def test_what_all_nodes_see_is_no_fault_and_leaves_nothing(tmp_path, model):
    runs = tmp_path / "runs"
    ask = sees(str(tmp_path / "elsewhere"))
    assert check_paths({"a": model}, {"b": str(runs / "new" / "run")}, ask) == []
    # a folder that is not there yet is asked for where it will be made, and not made for it
    assert [os.path.dirname(path) for path in ask.asked] == [str(tmp_path), str(tmp_path)]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_one_node_lacks_is_told_with_node_and_path(model):
    (fault,) = check_paths({"actor_rollout_ref.model.path": model, "x": os.sep}, {}, sees(model))
    assert fault == (
        f"actor_rollout_ref.model.path={model}: not there on node {THERE}, and every node reads it. Put it into a "
        "folder that all nodes share, or copy it to the same place on each."
    )


def test_a_run_folder_of_one_nodes_own_is_told_with_node_and_path(tmp_path):
    (fault,) = check_paths({}, {"trainer.default_local_dir": str(tmp_path)}, sees(str(tmp_path)))
    assert fault.startswith(
        f"trainer.default_local_dir={tmp_path}: what this process writes there is not seen on node {THERE}"
    )
    assert not list(tmp_path.iterdir())


def test_all_nodes_that_lack_it_are_named(model):
    (fault,) = check_paths({"a": model}, {}, lambda paths: {HERE: paths, THERE: paths})
    assert f"on nodes {HERE}, {THERE}" in fault


def test_the_marks_are_taken_away_when_nobody_answers(tmp_path):
    def silent(paths):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        check_paths({}, {"a": str(tmp_path)}, silent)
    assert not list(tmp_path.iterdir())


def test_a_node_is_called_by_what_tells_it_from_others():
    node = {"NodeManagerAddress": "10.0.0.2", "NodeManagerHostname": "worker", "NodeID": "0b0b0b0b" + "1" * 48}
    assert nodes._called(node) == THERE

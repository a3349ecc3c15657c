"""A run that ends because a node of its cluster did."""

import pytest

from verl_aiops.trainers.runs import lost_nodes as module
from verl_aiops.trainers.runs.lost_nodes import alive_nodes, lost_nodes

RESET = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:29621: Connection reset by peer.")


def node(name, alive=True):
    return {
        "NodeID": name * 8,
        "NodeManagerAddress": f"10.0.0.{ord(name)}",
        "NodeManagerHostname": name,
        "Alive": alive,
    }


BEFORE = alive_nodes([node("a"), node("b"), node("c", alive=False)])


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time that passes by sleeping alone."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_nodes_that_were_dead_before_are_none_of_the_runs():
    assert list(BEFORE.values()) == ["10.0.0.97 (a)", "10.0.0.98 (b)"]


def test_the_node_is_named_once_ray_knows(clock):
    answers = iter([[node("a"), node("b")]] * 3 + [[node("a"), node("b", alive=False)]])
    said = lost_nodes(RESET, BEFORE, lambda: next(answers))
    assert said == "node 10.0.0.98 (b) of the Ray cluster died, with the workers that ran there."
    assert clock[0] == 3
    both = lost_nodes(RESET, BEFORE, lambda: [node("d")])
    assert both.startswith("nodes 10.0.0.97 (a), 10.0.0.98 (b) of")


@pytest.mark.parametrize(
    "error",
    [
        RESET,
        type("ActorDiedError", (Exception,), {})("The actor died unexpectedly before finishing this task."),
        type("ActorUnavailableError", (Exception,), {})("The actor 0f80dada is unavailable: RpcError: Socket closed"),
        RuntimeError("ray::WorkerDict.actor_update(): The actor 0f80dada is temporarily unavailable"),
        type("WorkerCrashedError", (Exception,), {})("The worker died unexpectedly while executing this task."),
        type("NodeDiedError", (Exception,), {})("The node failed"),
        RuntimeError("NCCL error: remote process exited or there was a network error"),
        RuntimeError("Broken pipe"),
    ],
)
def test_whatever_failed_first(error):
    assert lost_nodes(error, BEFORE, lambda: [node("a")])


def test_an_error_of_a_cluster_that_lives_is_none(clock):
    assert lost_nodes(RESET, BEFORE, lambda: [node("a"), node("b")]) is None
    assert 30 < clock[0] < 60  # as long as Ray needs to notice


def test_other_errors_and_runs_of_one_node_do_not_wait(clock):
    def asked():
        raise AssertionError

    assert lost_nodes(ValueError("loss is not finite"), BEFORE, asked) is None
    assert lost_nodes(RESET, {"a": "10.0.0.97 (a)"}, asked) is None
    assert clock[0] == 0


def test_a_head_that_is_gone_cannot_be_asked():
    def silent():
        raise ConnectionError

    assert lost_nodes(RESET, BEFORE, silent) == "the Ray cluster of the run does not answer any more."

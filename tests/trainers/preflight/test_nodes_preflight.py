"""Runs on several nodes: which of the settings' paths each node is asked for."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from prepared import composed

from verl_aiops.trainers.preflight import nodes

MODEL = "actor_rollout_ref.model"


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name in ("model/config.json", "train.jsonl", "val/a.jsonl", "ref/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodes, "existing_ray_address", lambda: "10.0.0.1:6379")
    return composed(
        "+verl_aiops=dpo",
        "trainer.nnodes=2",
        f"{MODEL}.path={tmp_path / 'model'}",
        f"data.train_files=[{tmp_path / 'train.jsonl'}]",
        "data.val_files=val/a.jsonl",
        f"algorithm.dpo.reference_path={tmp_path / 'ref'}",
        f"trainer.default_local_dir={tmp_path / 'run'}",
    )


def test_what_nodes_read_is_made_absolute_and_what_is_on_a_hub_is_theirs(config, tmp_path):
    assert nodes.paths_read(config) == {
        f"{MODEL}.path": str(tmp_path / "model"),
        "algorithm.dpo.reference_path": str(tmp_path / "ref"),
        "data.train_files[0]": str(tmp_path / "train.jsonl"),
        "data.val_files[0]": str(tmp_path / "val" / "a.jsonl"),
    }
    config.actor_rollout_ref.model.path = "some/name-on-a-hub"
    assert f"{MODEL}.path" not in nodes.paths_read(config)


@pytest.fixture
def asked(monkeypatch):
    calls = []

    def ask(paths, address):
        calls.append((sorted(paths), address))
        return {"10.0.0.2 (worker, 0b)": [path for path in paths if path.endswith("model")]}

    monkeypatch.setattr(nodes, "ask_nodes", ask)
    return calls


def test_a_path_that_a_node_does_not_see_is_refused(config, asked, tmp_path):
    (fault,) = nodes.check_nodes(config, SimpleNamespace())
    assert fault.startswith(f"{MODEL}.path={tmp_path / 'model'}: not there on node 10.0.0.2 (worker, 0b)")
    ((paths, address),) = asked
    assert address == "10.0.0.1:6379" and len(paths) == 5


@pytest.mark.parametrize("change", [{"trainer.nnodes": 1}, {"ray_kwargs.ray_init.address": "local"}])
def test_a_run_of_one_node_asks_nobody(config, asked, change):
    for key, value in change.items():
        OmegaConf.update(config, key, value, force_add=True)
    assert nodes.check_nodes(config, SimpleNamespace()) == [] and asked == []


def test_nodes_that_do_not_answer_are_told(config, monkeypatch):
    def silent(paths, address):
        raise TimeoutError(f"not every node of the Ray cluster at {address} answers within 60 s")

    monkeypatch.setattr(nodes, "ask_nodes", silent)
    (fault,) = nodes.check_nodes(config, SimpleNamespace())
    assert fault.startswith("trainer.nnodes=2: not every node") and "ray status" in fault


def test_it_is_one_of_the_checks_of_every_run():
    from verl_aiops.trainers.preflight.basics import MACHINE

    (check,) = (check for check in MACHINE if check.look is nodes.check_nodes)
    assert check.what == "what each node sees"

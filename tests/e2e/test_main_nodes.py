"""Two nodes of Ray on one machine: offline DPO with a worker on each, one of them killed, and the run resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from verl_aiops.platform.nodes import ask_nodes, check_paths

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS, KEPT = 12, 2
# workers and trainer stand in the cluster, which has the environment that it was started in: no word of a platform
NODE = {"num_cpus": 16, "num_gpus": 1, "object_store_memory": 200 << 20}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VERL_PLATFORM", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            yield nodes
        finally:
            nodes.shutdown()


@pytest.fixture(scope="module")
def second(cluster):
    """second(): the node beside the head, started where there is none."""
    found = []

    def have():
        if not found or found[-1] not in cluster.list_all_nodes():
            found.append(cluster.add_node(**NODE))
            cluster.wait_for_nodes()
        return found[-1]

    return have


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"prompt": f"Service s{i % 5} fails.", "chosen": f"s{i % 5}", "rejected": f"s{(i + 1) % 5}", "group": f"g{i}"}
        for i in range(24)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl"


@pytest.fixture
def start(cluster, second, data, tiny_model_dir):
    def begin(out, platform="cpu"):
        out.mkdir(exist_ok=True)
        second()
        overrides = [
            *("algorithm.adv_estimator=dpo", f"data.train_files={data}", "data.train_batch_size=4"),
            *("data.max_prompt_length=256", f"actor_rollout_ref.model.path={tiny_model_dir}"),
            *("actor_rollout_ref.actor.optim.lr=1e-3", f"trainer.total_training_steps={STEPS}"),
            *("trainer.nnodes=2", "trainer.n_gpus_per_node=1", f"trainer.save_freq={KEPT}"),
            *("trainer.logger=[console,file]", f"trainer.default_local_dir={out}"),
        ]
        more = {"RAY_ADDRESS": cluster.address, "VERL_PLATFORM": platform, "VERL_AIOPS_CACHE": str(out / "cache")}
        more |= {"VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl"), "RAY_DEDUP_LOGS": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "verl.trainer.main_ppo", *overrides],
            env={**os.environ, **more},
            cwd=out,
            stdout=open(out / "log", "a"),
            stderr=subprocess.STDOUT,
        )

    return begin


def losses(out):
    entries = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {entry["step"]: entry["data"]["actor/loss"] for entry in entries if "actor/loss" in entry["data"]}


def test_a_killed_node_ends_the_run_with_the_reason_and_the_next_start_goes_on(cluster, second, start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(timeout=240) == 0, (whole / "log").read_text()[-4000:]
    assert sorted(losses(whole)) == list(range(1, STEPS + 1))

    run = start(killed)
    try:
        until = time.monotonic() + 200
        while not (killed / "latest_checkpointed_iteration.txt").exists():
            assert run.poll() is None and time.monotonic() < until, (killed / "log").read_text()[-4000:]
            time.sleep(0.1)
        cluster.remove_node(second(), allow_graceful=False)
        assert run.wait(timeout=90) == 1
    finally:
        run.kill()
    said = (killed / "log").read_text()
    told = [line for line in said.splitlines() if line.startswith("verl-aiops: error: ")]
    assert len(told) == 1, said[-6000:]
    (told,) = told
    assert "of the Ray cluster died" in told and "Last checkpoint: " in told and "global_step_" in told
    assert "Traceback (most recent call last)" not in said.rpartition("verl-aiops: error: ")[2]

    assert start(killed).wait(timeout=240) == 0, (killed / "log").read_text()[-4000:]
    assert (killed / "log").read_text().count("verl-aiops: training: steps 1 to") == 1
    assert losses(killed) == losses(whole)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the nodes have GPUs")
def test_a_run_that_would_take_the_declared_gpus_for_real_ones_ends_before_it_begins(start, tmp_path):
    assert start(tmp_path / "run", platform="").wait(timeout=120) == 1
    said = (tmp_path / "run" / "log").read_text()
    assert "declares 2 GPUs, but none of its nodes has one" in said and "set VERL_PLATFORM=cpu" in said
    assert "Traceback" not in said and "ray init kwargs" not in said


@pytest.fixture
def blind_node(cluster, tmp_path):
    """A node that does not see what lies in the folder returned: it has another mounted there, and its own /tmp/ray."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    folder = tmp_path / "unseen"
    folder.mkdir()
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    start = f"'{ray}' start --address={cluster.address} --num-cpus=1 --num-gpus=0 --block"
    mount = " && ".join(f"mount -t tmpfs none '{place}'" for place in ("/tmp/ray", folder))
    with open(tmp_path / "node.log", "w") as log:
        node = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"{mount} && exec {start}"],
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
    try:
        until = time.monotonic() + 90
        while "Ray runtime started" not in (tmp_path / "node.log").read_text():
            assert node.poll() is None and time.monotonic() < until, (tmp_path / "node.log").read_text()
            time.sleep(0.2)
        yield folder
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait(timeout=60)


def test_a_node_that_does_not_see_what_a_run_names_is_told(cluster, blind_node, tmp_path):
    model, runs = blind_node / "model", blind_node / "runs"
    model.mkdir()
    ask = partial(ask_nodes, address=cluster.address)
    lacks, writes = check_paths({"model": str(model), "data": str(tmp_path)}, {"runs": str(runs)}, ask)
    assert lacks.startswith(f"model={model}: not there on node ") and ", " not in lacks.partition(" (")[0]
    assert writes.startswith(f"runs={runs}: what this process writes there is not seen on node ")
    assert sorted(path.name for path in blind_node.iterdir()) == ["model"]

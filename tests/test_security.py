"""What comes from elsewhere is data: no code in a folder runs, no link leads out, no server gets what is another's."""

import asyncio
import json
import os
import pickle
import zipfile
from types import SimpleNamespace

import pytest
import torch
from aiohttp import web
from fastapi.testclient import TestClient
from omegaconf import OmegaConf

from verl_aiops.models.checkpoint_pickle import TRUST, ForeignCodeError, foreign_code, refuse_foreign_code
from verl_aiops.models.folders import merge_checkpoint
from verl_aiops.rewards.model.client import RewardModelClient, RewardModelError, longest_input
from verl_aiops.rollout.hf import scoring_api
from verl_aiops.rollout.hf.scoring_api import Scored, build_app
from verl_aiops.trainers.preflight.reward_model import _code_faults
from verl_aiops.trainers.triage.combined import _tokenizer_faults

# --- checkpoints ------------------------------------------------------------------------------------------------------


class Runs:
    """Pickles as a call."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def malicious(path, touched, protocol=2):
    torch.save({"w": torch.ones(3), "x": Runs(os.system, f"touch {touched}")}, path, pickle_protocol=protocol)
    return path


@pytest.fixture
def touched(tmp_path):
    return tmp_path / "touched"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_calls_something_is_found(tmp_path, touched, protocol):
    file = malicious(tmp_path / "x.pt", touched, protocol)
    assert foreign_code(file)
    with pytest.raises(ForeignCodeError, match=f"x.pt: reading it would run code .*{TRUST}=1"):
        refuse_foreign_code([file])
    assert not touched.exists()
    torch.load(file, weights_only=False)  # it was no dud
    assert touched.exists()


def test_the_name_of_what_would_be_called_is_shown(tmp_path, touched):
    assert foreign_code(malicious(tmp_path / "x.pt", touched)) in ("posix.system", "os.system")


def test_old_formats_and_bare_pickles_are_no_checkpoint(tmp_path, touched):
    torch.save(Runs(os.system, f"touch {touched}"), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Runs(os.system, f"touch {touched}")))
    (tmp_path / "inst.pt").write_bytes(b"")
    for name in ("old.pt", "bare.pt", "inst.pt"):
        assert "no plain file of torch.save" in foreign_code(tmp_path / name)
    assert not touched.exists()


@pytest.mark.parametrize(
    "stream",
    [b"(S'touch x'\nios\nsystem\n.", b"cos\nsystem\n(S'touch x'\ntR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93."],
)
def test_instructions_that_torch_never_writes(tmp_path, touched, stream):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("archive/data.pkl", stream)
        file.writestr("archive/version", "3\n")
    assert foreign_code(tmp_path / "x.pt")


def test_what_verl_writes_is_read(tmp_path):
    """Sharded tensors of FSDP, an optimizer's state, a schedule, and the random states of torch, numpy and random."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
        weights = torch.nn.Parameter(distribute_tensor(torch.randn(4, 4), mesh))
        optimizer = torch.optim.AdamW([weights])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        weights.sum().backward()
        optimizer.step()
        extra = {"lr_scheduler": schedule.state_dict(), "rng": BaseCheckpointManager.get_rng_state()}
        for name, content in {"model": {"w": weights}, "optim": optimizer.state_dict(), "extra": extra}.items():
            torch.save(content, tmp_path / f"{name}.pt")
            assert foreign_code(tmp_path / f"{name}.pt") is None, name
    finally:
        torch.distributed.destroy_process_group()


def test_whoever_trusts_a_file_may_read_it(tmp_path, touched, monkeypatch):
    file = malicious(tmp_path / "x.pt", touched)
    monkeypatch.setenv(TRUST, "1")
    refuse_foreign_code([file])
    monkeypatch.setenv(TRUST, "0")
    assert foreign_code(file)


@pytest.fixture
def checkpoint(tmp_path, tiny_model_dir, touched):
    """A checkpoint as verl leaves it, whose shard calls something."""
    actor = tmp_path / "global_step_3" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    for file in tiny_model_dir.iterdir():
        if file.suffix != ".safetensors":
            (actor / "huggingface" / file.name).write_bytes(file.read_bytes())
    (actor / "fsdp_config.json").write_text(json.dumps({"world_size": 1}))
    malicious(actor / "model_world_size_1_rank_0.pt", touched)
    return actor.parent


def test_nothing_runs_where_a_checkpoint_is_merged(checkpoint, touched, tmp_path, capsys):
    from verl_aiops.models import serving

    with pytest.raises(ForeignCodeError):
        merge_checkpoint(str(checkpoint / "actor"), str(tmp_path / "merged"), trust_remote_code=False)
    assert serving.main(["folder", str(checkpoint)]) == 2
    assert "would run code" in capsys.readouterr().err
    assert not touched.exists() and not list(checkpoint.glob("*_merged"))


def test_nothing_runs_where_a_checkpoint_is_evaluated(checkpoint, touched, tmp_path, capsys):
    from verl_aiops.cli.main import main

    command = ["eval", "--model", str(checkpoint), "--out", str(tmp_path / "out"), "--num-incidents", "2"]
    incidents = tmp_path / "incidents.jsonl"
    assert main(["simulate", "--out", str(incidents), "--num-incidents", "3"]) == 0
    command = ["eval", "--model", str(checkpoint), "--out", str(tmp_path / "out"), "--incidents", str(incidents)]
    assert main([*command, "--style", "direct"]) == 2
    assert "would run code" in capsys.readouterr().err and not touched.exists()


def test_nothing_runs_where_a_run_is_resumed(checkpoint, touched):
    from verl_aiops.trainers.runs.checkpoint_health import damage

    config = OmegaConf.create(
        {
            "trainer": {"n_gpus_per_node": 1, "nnodes": 1},
            "actor_rollout_ref": {"actor": {"strategy": "fsdp2", "checkpoint": {"load_contents": ["model"]}}},
            "algorithm": {"adv_estimator": "grpo"},
        }
    )
    malicious(checkpoint / "data.pt", touched)
    faults = damage(checkpoint, config, preference=False)
    assert [fault.split()[0] for fault in faults] == ["actor/model_world_size_1_rank_0.pt", "data.pt"]
    assert all("would run code" in fault for fault in faults) and not touched.exists()


# --- reward models with code of their own -----------------------------------------------------------------------------


@pytest.fixture
def with_code(tmp_path, tiny_model_dir, touched):
    """A folder whose configuration and tokenizer are classes of its own, which write a file when they are loaded."""
    folder = tmp_path / "rm"
    folder.mkdir()
    for file in tiny_model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    code = f"open({str(touched)!r}, 'w').close()\nfrom transformers import PretrainedConfig, PreTrainedTokenizerFast\n"
    code += "class C(PretrainedConfig):\n    model_type = 'own'\nclass T(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "own.T"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def reward_config(folder, policy="org/policy", trust=False, enable=True):
    return OmegaConf.create(
        {
            "actor_rollout_ref": {"model": {"path": str(policy), "tokenizer_path": None, "trust_remote_code": trust}},
            "reward": {
                "reward_model": {"model_path": str(folder), "enable": enable, "rollout": {"max_model_len": None}}
            },
            "data": {"max_prompt_length": 8, "max_response_length": 8},
        }
    )


def test_code_in_a_reward_models_folder_does_not_run(with_code, touched):
    (fault,) = _tokenizer_faults("reward.reward_model.model_path", str(with_code), reward_config(with_code))
    assert "cannot be loaded" in fault
    with pytest.raises(ValueError, match="trust_remote_code"):
        longest_input(str(with_code), None)
    assert not touched.exists()
    longest_input(str(with_code), None, trust_remote_code=True)  # it was no dud
    assert touched.exists()


def test_code_that_verl_would_run_is_refused_before_ray(with_code, tiny_model_dir, touched):
    (fault,) = _code_faults(reward_config(with_code))
    assert fault.startswith(f"reward.reward_model.model_path={with_code}: its tokenizer_config.json names code")
    (fault,) = _code_faults(reward_config("x", policy=with_code))
    assert fault.startswith(f"actor_rollout_ref.model.path={with_code}")
    assert _code_faults(reward_config(with_code, trust=True)) == []
    assert _code_faults(reward_config(with_code, enable=False)) == []
    assert _code_faults(reward_config(tiny_model_dir, policy=tiny_model_dir)) == []
    assert not touched.exists()


def test_verl_still_trusts_whatever_it_scores_with():
    """The reason for the refusal; where verl follows the setting one day, it can go."""
    import inspect

    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    assert inspect.getsource(RewardLoopWorker).count("trust_remote_code=True") == 2


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_licence_that_is_a_link_out_of_the_folder_is_not_followed(tmp_path):
    from verl_aiops.incidents.importers.run import _authors_notices

    (tmp_path / "secret").write_text("my key")
    root = tmp_path / "data"
    (root / "docs").mkdir(parents=True)
    source = SimpleNamespace(licence_files=("LICENSE", "NOTICE"))
    (root / "LICENSE").symlink_to(tmp_path / "secret")
    (root / "docs" / "terms").write_text("the terms")
    (root / "NOTICE").symlink_to(root / "docs" / "terms")
    said = _authors_notices(root, source)
    assert "my key" not in said and "LICENSE is a link out of the folder read, and was not followed" in said
    assert "the terms" in said
    (tmp_path / "link to data").symlink_to(root)
    assert "the terms" in _authors_notices(tmp_path / "link to data", source)


# --- the embedded reward server ---------------------------------------------------------------------------------------


async def one(text):
    return Scored(0.5, 1)


def test_without_the_key_nothing_is_scored():
    client = TestClient(build_app(one, "rm", "s3cret"))
    ask = {"input": "x"}
    for path in ("/classify", "/v1/embeddings"):
        for headers in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer é"},
        ):
            sent = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = client.post(path, json=ask, headers=sent)
            assert answer.status_code == 401 and "s3cret" not in answer.text
        assert client.post(path, json=ask, headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert client.get("/health").status_code == 200
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert client.get(path).status_code == 404


def test_bodies_and_lists_have_a_limit(monkeypatch):
    monkeypatch.setattr(scoring_api, "LONGEST_BODY", 1000)
    monkeypatch.setattr(scoring_api, "MOST_INPUTS", 3)
    client = TestClient(build_app(one, "rm"))
    assert client.post("/classify", json={"input": "x" * 900}).status_code == 200
    assert client.post("/classify", json={"input": "x" * 1000}).status_code == 413
    assert client.post("/classify", json={"input": ["x"] * 3}).status_code == 200
    assert client.post("/classify", json={"input": ["x"] * 4}).status_code == 413

    read = []

    def endless():
        for _ in range(10_000):
            read.append(1)
            yield b"x" * 100

    assert client.post("/v1/embeddings", content=endless()).status_code == 413


def test_each_run_has_a_key_of_its_own(tmp_path):
    import subprocess
    import sys

    # processes of their own, of one that has imported verl, but nothing of this
    code = """
import os, sys
import verl.workers.rollout.replica
name = "verl_aiops.rollout.hf.replica"
assert name not in sys.modules
for given in ("", "", "mine"):
    sys.stdout.flush()
    if os.fork() == 0:
        if given:
            os.environ["VERL_AIOPS_SCORER_KEY"] = given
        __import__(name)
        print("KEY", sys.modules[name]._REWARD_KEY, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    env = {key: value for key, value in os.environ.items() if key != "VERL_AIOPS_SCORER_KEY"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    keys = {line.partition("KEY ")[2].strip() for line in done.stdout.splitlines() if "KEY " in line}
    assert len(keys) == 3 and "mine" in keys and min(len(key) for key in keys - {"mine"}) > 40


# --- the client -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_client_follows_no_redirect(status):
    """To another host, port or path: what is scored is for the server that was named."""

    async def go():
        seen = []

        async def elsewhere(request):
            seen.append(await request.json())
            return web.json_response({"data": [{"probs": [1.0]}]})

        async def redirect(request):
            seen.append(request.headers.get("Authorization"))
            return web.Response(status=status, headers={"Location": str(request.url.with_path("/elsewhere"))})

        app = web.Application()
        app.router.add_post("/classify", redirect)
        app.router.add_route("*", "/elsewhere", elsewhere)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        limits = {"timeout_s": 2, "deadline_s": 5, "attempts": 3, "backoff_s": 0.01, "concurrency": 1}
        client = RewardModelClient(f"127.0.0.1:{runner.addresses[0][1]}", "hf", "rm", key="k", **limits)
        try:
            with pytest.raises(RewardModelError, match=f"HTTP {status}: a redirect to .* not followed"):
                await client.score("text")
        finally:
            await client.close()
            await runner.cleanup()
        assert seen == ["Bearer k"]  # once, and with the key

    asyncio.run(go())

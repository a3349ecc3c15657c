"""What a run will write is tried, and compared with the space there is, before Ray starts."""

import errno
import os
import shutil
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight import storage
from verl_aiops.trainers.preflight.storage import check_storage, parameters_in, space_needed

GB = 10**9


@pytest.fixture
def model(tmp_path):
    """A folder with 1,000 numbers in two files."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.zeros((30, 20), np.float32)}, folder / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"b": np.zeros(399, np.float16), "c": np.zeros((), np.float32)}, folder / "model-2.safetensors")
    return folder


@pytest.fixture
def config(tmp_path, model, monkeypatch):
    monkeypatch.setenv("VERL_AIOPS_CACHE", str(tmp_path / "cache"))

    def make(
        contents=("model", "optimizer", "extra"),
        dtype="fp32",
        estimator="dpo",
        lora=0,
        export=True,
        check_space=True,
        **trainer,
    ):
        defaults = {"default_local_dir": str(tmp_path / "out"), "save_freq": -1, "total_training_steps": None}
        defaults |= {"rollout_data_dir": None, "validation_data_dir": None, "nnodes": 1, "max_actor_ckpt_to_keep": None}
        actor = {"checkpoint": {"save_contents": list(contents)}, "fsdp_config": {"model_dtype": dtype}}
        return OmegaConf.create(
            {
                "trainer": {**defaults, **trainer},
                "actor_rollout_ref": {
                    "model": {"path": str(model), "lora_rank": lora, "lora_adapter_path": None},
                    "actor": actor,
                },
                "critic": {**actor, "model": {"path": str(model)}},
                "algorithm": {
                    "adv_estimator": estimator,
                    "dpo": {
                        "reference": "cached",
                        "reference_cache_dir": None,
                        "export_model": export,
                        "check_space": check_space,
                    },
                },
            }
        )

    return make


@pytest.fixture
def free(monkeypatch):
    def have(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=count))

    return have


def test_the_numbers_of_a_model_are_counted(model, tmp_path):
    assert parameters_in(str(model)) == 1000
    assert parameters_in("org/name") is None and parameters_in("") is None
    (model / "model-3.safetensors").write_bytes(b"\xff" * 100)
    assert parameters_in(str(model)) is None


@pytest.mark.parametrize(
    "settings, checkpoint, export",
    [
        ({}, 12000, 2000),
        ({"dtype": "bf16"}, 6000, 2000),
        ({"lora": 8}, 4000, 2000),
        ({"contents": ("model",), "export": False}, 4000, 0),
        ({"contents": ("model", "optimizer", "hf_model")}, 14000, 2000),
        ({"estimator": "gae"}, 24000, 2000),
    ],
)
def test_weights_and_moments_are_what_takes_space(config, settings, checkpoint, export):
    needed = space_needed(config(save_freq=5, **settings), preference=True)
    assert (needed.checkpoint, needed.export) == (checkpoint, export)


def test_without_saves_the_model_is_all_that_is_written(config):
    assert space_needed(config(), preference=True) == storage.Needed(0, 2000)
    # else the run would leave nothing
    assert space_needed(config(export=False), preference=True) == storage.Needed(12000, 0)
    assert space_needed(config(estimator="gae"), preference=False).checkpoint == 24000


def test_a_real_checkpoint_takes_what_was_said(config, tmp_path):
    """torch's own file of the same model and optimizer."""
    import torch

    layer = torch.nn.Linear(999, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(999)).backward()
    optimizer.step()
    torch.save(layer.state_dict(), tmp_path / "m.pt")
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    size = sum((tmp_path / name).stat().st_size for name in ("m.pt", "o.pt"))
    assert 12000 < size < 12000 + 5000  # what the zip takes


def test_the_space_is_said_and_too_little_is_refused(config, free, tmp_path):
    free(5 * GB)
    (line,) = check_storage(config(save_freq=5), preference=True)
    assert line.startswith(
        f"space in {tmp_path}/out: 0.0 MB a checkpoint, 0.0 MB the model at the end; 5.0 GB are free"
    )
    free(13999)
    with pytest.raises(ConfigError, match="no room for one checkpoint.*Free up space"):
        check_storage(config(save_freq=5), preference=True)
    free(14000)
    check_storage(config(save_freq=5), preference=True)
    check_storage(config(save_freq=5, nnodes=2), preference=True)


def test_a_model_that_has_no_room_is_refused_with_both_numbers_or_warned_of(config, free, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "parameters_in", lambda folder: 7_600_000_000)
    free(15 * GB)
    said = (
        f"trainer.default_local_dir={tmp_path}/out: no room for the trained model (15.2 GB the model at the end; "
        "15.0 GB are free)"
    )
    with pytest.raises(ConfigError) as error:
        check_storage(config(), preference=True)
    assert str(error.value) == (
        f"{said}. Free up space, name another folder, or keep no model (algorithm.dpo.export_model=false). "
        "algorithm.dpo.check_space=false goes on all the same."
    )
    assert check_storage(config(check_space=False), preference=True) == [f"warning: {said}"]
    free(15.2 * GB)
    assert check_storage(config(), preference=True) == [
        f"space in {tmp_path}/out: 15.2 GB the model at the end; 15.2 GB are free"
    ]


@pytest.mark.parametrize(
    "trainer, warned",
    [
        ({"save_freq": 10, "total_training_steps": 50}, True),  # 5 x 12000 + 2000
        ({"save_freq": 25, "total_training_steps": 50}, False),
        ({"save_freq": 10, "total_training_steps": 50, "max_actor_ckpt_to_keep": 2}, False),
        ({"save_freq": 10, "max_actor_ckpt_to_keep": 4}, True),
        ({"save_freq": 10, "max_actor_ckpt_to_keep": 1}, False),
        ({"save_freq": -1, "total_training_steps": 50}, False),
    ],
)
def test_all_checkpoints_together(config, free, trainer, warned):
    free(30000)
    (line,) = check_storage(config(**trainer), preference=True)
    assert line.startswith("warning") == warned and ("max_actor_ckpt_to_keep" in line) == warned


def test_all_are_kept_where_nobody_says_otherwise(config, free):
    free(30000)
    (line,) = check_storage(config(save_freq=10), preference=True)
    assert "all of them are kept" in line


def test_a_run_of_rl_that_saves_nothing_needs_no_space(config, free):
    free(0)
    assert check_storage(config(estimator="grpo"), preference=False) == []
    with pytest.raises(ConfigError, match="no room"):
        check_storage(config(estimator="grpo", save_freq=5), preference=False)


@pytest.mark.parametrize("key", ["default_local_dir", "rollout_data_dir", "validation_data_dir"])
@pytest.mark.parametrize("place", ["/proc/nowhere/out", "FILE/out", "FILE"])
def test_a_folder_that_cannot_be_written_is_refused(config, tmp_path, key, place):
    (tmp_path / "file").touch()
    place = place.replace("FILE", str(tmp_path / "file"))
    with pytest.raises(ConfigError) as error:
        check_storage(config(**{key: place}), preference=True)
    assert str(error.value).startswith(f"trainer.{key}={place}: ") and "Name a folder" in str(error.value)


def test_a_full_or_read_only_disk_is_tried(config, monkeypatch):
    for number, said in ((errno.EROFS, "read-only file system"), (errno.ENOSPC, "free up space")):

        def refuse(*args, number=number, **kwargs):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
        with pytest.raises(ConfigError, match=f"cannot be written .*{said}"):
            check_storage(config(), preference=True)


def test_trying_leaves_nothing(config, tmp_path, model):
    check_storage(config(rollout_data_dir=str(tmp_path / "a" / "b")), preference=True)
    assert [path.name for path in tmp_path.iterdir()] == [model.name]
    (tmp_path / "out").mkdir()
    check_storage(config(), preference=True)
    assert not list((tmp_path / "out").iterdir())


def test_the_home_folder_is_understood(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = config(default_local_dir="~/runs/x")
    check_storage(made, preference=True)
    assert made.trainer.default_local_dir == f"{tmp_path}/runs/x"


def test_a_cache_that_cannot_be_written_is_a_warning(config, monkeypatch):
    monkeypatch.setenv("VERL_AIOPS_CACHE", "/proc/cache")
    lines = check_storage(config(), preference=True)
    assert len([line for line in lines if line.startswith("warning: cache /proc/cache/")]) == 2
    assert storage._probe_caches(config(estimator="online_dpo")) == []

"""The files of a vision-language model's processor go with it."""

import pytest
from omegaconf import OmegaConf

from verl_aiops.models import processor
from verl_aiops.models.processor import keep_processor
from verl_aiops.trainers.dpo import checkpoints


@pytest.fixture
def start(tmp_path):
    folder = tmp_path / "start"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "processor_config.json", "preprocessor_config.json"):
        (folder / name).write_text(f"{name} of the start")
    return folder


def test_the_processors_files_alone_are_copied_and_none_is_replaced(start, tmp_path):
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "preprocessor_config.json").write_text("its own")
    assert keep_processor(str(start), trained) == ["processor_config.json"]
    assert sorted(path.name for path in trained.iterdir()) == ["preprocessor_config.json", "processor_config.json"]
    assert (trained / "preprocessor_config.json").read_text() == "its own"


def test_of_a_name_on_a_hub_they_are_those_fetched_before(start, tmp_path, monkeypatch):
    asked = []

    def fetched(name, file):
        asked.append(name)
        return str(start / file) if (start / file).exists() else None

    monkeypatch.setattr(processor, "try_to_load_from_cache", fetched)
    trained = tmp_path / "trained"
    trained.mkdir()
    assert keep_processor("owner/name", trained) == ["processor_config.json", "preprocessor_config.json"]
    assert set(asked) == {"owner/name"}
    assert keep_processor("hdfs://some/where", trained) == keep_processor("no/such/folder", trained) == []


def test_an_exported_model_has_them(start, tmp_path, monkeypatch):
    config = OmegaConf.create(
        {
            "trainer": {"default_local_dir": str(tmp_path / "run")},
            "actor_rollout_ref": {"model": {"path": str(start), "trust_remote_code": False}},
        }
    )
    for name in ("check_model_folder", "write_card"):
        monkeypatch.setattr(checkpoints, name, lambda *arguments: None)
    monkeypatch.setattr(checkpoints, "model_bytes", lambda path: None)
    (tmp_path / "run").mkdir()

    def write(folder):
        (tmp_path / folder / "config.json").write_text("{}")

    target = checkpoints.export_model("global_step_1", config, write=write)
    assert (tmp_path / target / "processor_config.json").exists()
    assert not (tmp_path / target / "tokenizer.json").exists()

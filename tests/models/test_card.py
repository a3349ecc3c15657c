"""The card beside an exported model, and its way to a hub."""

import json
import types

import httpx
import huggingface_hub
import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from omegaconf import OmegaConf

from verl_aiops.cli.main import main
from verl_aiops.models.card import Card, card_text
from verl_aiops.models.folders import ModelFolderError
from verl_aiops.models.push import PushError, check_push, push_model
from verl_aiops.trainers.dpo import checkpoints


def config(tmp_path, **more):
    return OmegaConf.create(
        {
            "algorithm": {"adv_estimator": "dpo", "dpo": {"beta": 0.1, "loss_type": ["sigmoid", "sft"]}},
            "data": {"train_files": [str(tmp_path / "pairs.jsonl")], "val_files": "hdfs://x/held out.parquet"},
            "actor_rollout_ref": {
                "model": {"path": "org/Base-1B", "lora_rank": 16, "trust_remote_code": False},
                "actor": {"optim": {"lr": 3e-5}},
            },
            "trainer": {"default_local_dir": str(tmp_path), "nnodes": 1, "n_gpus_per_node": 2},
            **more,
        }
    )


def logged(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "da')
    return path


def test_data_settings_and_figures(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    metrics = logged(
        tmp_path / "metrics.jsonl",
        {"step": 0, "data": {"val/loss": 0.693147, "val/logps/accuracies": 0.5, "val/odd": None}},
        {"step": 4, "data": {"actor/loss": 0.4, "val/loss": 0.5}},
        {"step": 8, "data": {"val/loss": 0.25, "val/logps/accuracies": 0.75}},
        {"step": 8, "data": {"actor/loss": 0.3}},
    )
    text = card_text(config(tmp_path), "global_step_8", metrics)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/Base-1B" and front["tags"] == ["dpo", "verl", "verl-aiops"]
    assert "# Base-1B, trained by dpo" in text and "`global_step_8`" in text
    # sha256 of "{}\n", as sha256sum says it
    digest = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert f"- trained on: `pairs.jsonl`, 3 bytes, sha256 {digest}" in text
    assert "- held out: `held out.parquet`\n" in text and str(tmp_path) not in text
    for row in ("| `algorithm.dpo.beta` | `0.1` |", "| `actor_rollout_ref.actor.optim.lr` | `3e-05` |"):
        assert row in text
    assert "| `actor_rollout_ref.model.lora_rank` | `16` |" in text and "clip_grad" not in text
    assert "| `val/loss` | 0.693147 | 0.25 |" in text and "| `val/logps/accuracies` | 0.5 | 0.75 |" in text


def test_settings_of_lora_stand_there_where_there_is_lora(tmp_path):
    made = config(tmp_path)
    made.actor_rollout_ref.model.merge_with({"lora_rank": 0, "lora_alpha": 16, "target_modules": "all-linear"})
    assert "lora_alpha" not in card_text(made, "global_step_1") and "target_modules" not in card_text(made, "x")
    made.actor_rollout_ref.model.lora_rank = 4
    assert "| `actor_rollout_ref.model.lora_alpha` | `16` |" in card_text(made, "global_step_1")
    made.actor_rollout_ref.model.lora = {"base_format": "nf4"}
    assert "| `actor_rollout_ref.model.lora.base_format` | `nf4` |" in card_text(made, "global_step_1")


def test_of_a_trainer_that_logs_no_such_file_figures_are_given():
    made = Card("reward", "org/Base", "Made so.", figures={"accuracy": 0.75}, tags=("trl",), use=("use it so",))
    text = made.text()
    assert yaml.safe_load(text.split("---")[1])["tags"] == ["reward", "trl", "verl-aiops"]
    assert "| `accuracy` | 0.75 |" in text and "use it so" in text and "AutoModelForCausalLM" not in text


def test_a_run_that_logged_nothing_held_out_says_so(tmp_path):
    for metrics in (
        None,
        tmp_path / "none.jsonl",
        logged(tmp_path / "m.jsonl", {"step": 1, "data": {"actor/loss": 1}}),
    ):
        assert "None: nothing held out was validated" in card_text(config(tmp_path), "global_step_1", metrics)


def test_no_name_breaks_the_page(tmp_path):
    made = config(tmp_path)
    made.actor_rollout_ref.model.path = "/models/a\n---\n# <b>`|"
    made.data.train_files = "/x/a|b`c\nd.jsonl"
    text = card_text(made, "global_step_1")
    assert yaml.safe_load(text.split("\n---\n")[0].removeprefix("---")).keys() == {"library_name", "tags"}
    assert text.count("\n---\n") == 1 and "\n# \\<b" not in text and "<b>" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("- trained on"))
    assert line.count("`") == 2 and "|" not in line


def test_the_exporter_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "merge_checkpoint", lambda actor, target, trust_remote_code: None)
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)
    logged(tmp_path / "metrics.jsonl", {"step": 2, "data": {"val/loss": 0.125}})
    folder = checkpoints.export_model(str(tmp_path / "global_step_2"), config(tmp_path))
    with open(f"{folder}/README.md", encoding="utf-8") as file:
        assert "| `val/loss` | 0.125 | 0.125 |" in file.read()


class Hub:
    """Of huggingface_hub's HfApi what a push calls."""

    fails = None

    def __init__(self):
        Hub.seen = []

    def create_repo(self, name, **how):
        if Hub.fails is not None:
            raise Hub.fails
        Hub.seen.append((name, how))

    def upload_folder(self, **how):
        Hub.seen.append(how)
        return types.SimpleNamespace(commit_url="the commit")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "fails", None)
    return Hub


def test_a_push_makes_a_private_repository_and_uploads_the_folder(hub, tiny_model_dir):
    assert push_model(tiny_model_dir, "me/model") == "the commit"
    (name, made), upload = hub.seen
    assert (name, made["private"], made["exist_ok"]) == ("me/model", True, True)
    assert upload["repo_id"] == "me/model" and str(upload["folder_path"]) == str(tiny_model_dir)


@pytest.mark.parametrize(
    "error, said",
    [
        (
            HfHubHTTPError("401 Unauthorized", response=httpx.Response(401, request=httpx.Request("GET", "http://h"))),
            "hf auth login",
        ),
        (OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
        (httpx.ConnectError("no route"), "no hub is reached: no route"),
        (ConnectionError("refused"), "no hub is reached: refused"),
    ],
)
def test_what_a_hub_says_is_told(hub, tiny_model_dir, monkeypatch, error, said):
    monkeypatch.setattr(hub, "fails", error)
    with pytest.raises(PushError, match=said):
        push_model(tiny_model_dir, "me/model")


def test_what_keeps_a_push_from_working_is_told_before_a_run(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    check_push("me/model")
    for name in ("model", "me/mo del", "a/b/c"):
        with pytest.raises(PushError, match=f"--push {name}: expected OWNER/NAME"):
            check_push(name)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(PushError, match="nobody is logged in"):
        check_push("me/model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        check_push("me/model")


def test_the_command(hub, tiny_model_dir, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    assert main(["push", str(tiny_model_dir), "me/model", "--public", "--message", "said"]) == 0
    assert capsys.readouterr().out == "the commit\n"
    (_, made), upload = hub.seen
    assert made["private"] is False and upload["commit_message"] == "said"


def test_another_error_is_none_of_the_user_s(hub, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(hub, "fails", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        push_model(tiny_model_dir, "me/model")


def test_a_folder_without_a_model_is_not_pushed(hub, tmp_path):
    with pytest.raises(ModelFolderError):
        push_model(tmp_path, "me/model")
    assert not getattr(hub, "seen", None)

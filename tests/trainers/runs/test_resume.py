"""A run goes on from what lies in its folder, or says before Ray starts why it does not."""

import copy
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from prepared import prepare_offline

from verl_aiops.trainers.config import ConfigError, DPOConfig
from verl_aiops.trainers.dpo.checkpoints import PreferenceCheckpoints, exported_from, write_reference_note
from verl_aiops.trainers.preflight import entry as preflight
from verl_aiops.trainers.preflight.common import load_tokenizer
from verl_aiops.trainers.runs.note import RunNote, compare, read_note, run_settings, write_note
from verl_aiops.trainers.runs.resume import NothingLeft, start_folder, start_model
from verl_aiops.trainers.worker.optimizer import use_settings

pytestmark = pytest.mark.usefixtures("platform")

MODEL, OPTIM = "actor_rollout_ref.model", "actor_rollout_ref.actor.optim"
# 12 pairs in batches of 4
TOTAL = 3


@pytest.fixture(scope="module")
def composed():
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


def _rows(count, answer="yes"):
    return [{"prompt": f"question {i}?", "chosen": f"{answer} {i}", "rejected": f"no {i}, sorry"} for i in range(count)]


@pytest.fixture
def settings(composed, tiny_model_dir, write_rows, tmp_path):
    """settings(**{key: value}) -> (config, keys given) of a run of 12 pairs in the folder ``run``."""
    least = {
        "algorithm.adv_estimator": "dpo",
        "data.train_files": write_rows(_rows(12), "train.jsonl"),
        "data.train_batch_size": 4,
        f"{MODEL}.path": str(tiny_model_dir),
        "trainer.default_local_dir": str(tmp_path / "run"),
    }

    def make(**changes):
        given = least | changes
        config = copy.deepcopy(composed)
        with open_dict(config):
            for key, value in given.items():
                OmegaConf.update(config, key, value, force_add=True)
        return config, set(given)

    return make


@pytest.fixture
def adapter(tmp_path, tiny_model_dir):
    """adapter(name, seed=0, **settings) -> folder of a LoRA adapter of rank 2 whose weights are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(name, seed=0, **settings):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        lora = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["q_proj"], **settings)
        model = get_peft_model(base, lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


def _saved(config, step):
    """The notes of a checkpoint of a prepared configuration, as the trainer writes them, declared complete."""
    from verl_aiops.trainers.dpo.pairs import load_pairs, pair_order
    from verl_aiops.trainers.reference.scorer import reference_note, reference_weights

    root, dpo, model = config.trainer.default_local_dir, DPOConfig.from_config(config), config.actor_rollout_ref.model
    folder = os.path.join(root, f"global_step_{step}")
    order = pair_order(load_pairs(config.data, load_tokenizer(model), "train"), config.data)
    write_reference_note(folder, reference_note(dpo, reference_weights(model, dpo.reference_path)))
    note = RunNote("dpo", TOTAL, run_settings(config, "dpo", dpo), order.state_dict(), start_model(model, None))
    write_note(folder, note)
    torch.save(order.state_dict(), os.path.join(folder, "data.pt"))
    with open(os.path.join(root, "latest_checkpointed_iteration.txt"), "w") as file:
        file.write(str(step))
    return folder


@pytest.fixture
def saved(settings):
    """saved(step, **settings) -> the folder of that checkpoint."""

    def make(step, **changes):
        config, given = settings(**changes)
        prepare_offline(config, given)
        return _saved(config, step)

    return make


def _resumed(settings, **changes):
    config, given = settings(**changes)
    prepare_offline(config, given)
    return config


def test_the_same_command_goes_on_and_names_no_change(settings, saved, capsys):
    folder = saved(2)
    capsys.readouterr()
    _resumed(settings)
    assert capsys.readouterr().out.strip().endswith(f"goes on from {folder}")


@pytest.mark.parametrize(
    "key, now, said",
    [
        (f"{OPTIM}.lr", 1e-3, "1e-06 -> 0.001"),
        (f"{OPTIM}.weight_decay", 0.3, "0.01 -> 0.3"),
        (f"{OPTIM}.lr_scheduler_type", "cosine", "constant -> cosine"),
        (f"{OPTIM}.clip_grad", 5.0, "1.0 -> 5.0"),
        ("algorithm.dpo.beta", 0.4, "0.1 -> 0.4"),
        ("algorithm.dpo.loss_type", "ipo", "sigmoid -> ipo"),
        ("algorithm.dpo.ld_alpha", 0.5, "None -> 0.5"),
        ("algorithm.dpo.logprob_backend", "rows", "shared_prompt -> rows"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", 2, "4 -> 2"),
    ],
)
def test_a_changed_setting_is_named_with_the_step_from_which_it_counts(settings, saved, capsys, key, now, said):
    saved(2)
    capsys.readouterr()
    _resumed(settings, **{key: now})
    assert f"from step 3 on: {key}: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, said",
    [
        ({f"{MODEL}.lora_rank": 4}, f"{MODEL}.lora_rank: 0 -> 4"),
        ({f"{MODEL}.target_modules": ["q_proj"]}, f"{MODEL}.target_modules: all-linear -> ['q_proj']"),
        ({"data.train_batch_size": 6}, "data.train_batch_size: 4 -> 6"),
        ({"data.seed": 9}, "data.seed: 1 -> 9"),
        ({"data.shuffle": False}, "data.shuffle: True -> False"),
        ({"trainer.n_gpus_per_node": 2}, "trainer.n_gpus_per_node: 1 -> 2"),
        ({f"{OPTIM}.optimizer": "SGD"}, f"{OPTIM}.optimizer: AdamW -> SGD"),
    ],
)
def test_what_a_checkpoint_cannot_go_on_with_is_refused_with_then_and_now(settings, saved, changes, said):
    folder = saved(2)
    with pytest.raises(ConfigError) as error:
        _resumed(settings, **changes)
    assert said in str(error.value) and folder in str(error.value)


def test_other_training_data_are_refused(settings, saved, write_rows):
    saved(2)
    with pytest.raises(ConfigError, match="tokens of data.train_files"):
        _resumed(settings, **{"data.train_files": write_rows(_rows(12, "ja"), "other.jsonl")})
    with pytest.raises(ConfigError, match="usable pairs of data.train_files: 12 -> 16"):
        _resumed(settings, **{"data.train_files": write_rows(_rows(16), "more.jsonl")})


def test_another_model_as_reference_is_refused_before_ray(settings, saved, tmp_path):
    from tiny import make_tiny_model

    saved(2)
    with pytest.raises(ConfigError, match="trained against another reference"):
        _resumed(settings, **{f"{MODEL}.path": str(make_tiny_model(tmp_path / "other", seed=7))})


ADAPTER = f"{MODEL}.lora_adapter_path"


def test_rank_and_alpha_are_the_adapters_without_which_verl_would_train_the_base(settings, adapter, monkeypatch):
    folder = adapter("sft")
    monkeypatch.chdir(os.path.dirname(folder))
    config = _resumed(settings, **{ADAPTER: "sft"})
    model = config.actor_rollout_ref.model
    assert (model.lora_adapter_path, model.lora_rank, model.lora_alpha) == (folder, 2, 6)
    with pytest.raises(ConfigError, match="lora_rank=8, but the adapter.*has rank 2"):
        _resumed(settings, **{ADAPTER: folder, f"{MODEL}.lora_rank": 8})


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 1}}])
def test_what_checkpoints_would_not_keep_of_an_adapter_is_refused(settings, adapter, change):
    with pytest.raises(ConfigError, match=f"has {next(iter(change))}, which verl's checkpoints do not keep"):
        _resumed(settings, **{ADAPTER: adapter("sft", **change)})


def test_a_folder_without_an_adapter_is_refused(settings, tiny_model_dir, adapter):
    with pytest.raises(ConfigError, match="no LoRA adapter to start from"):
        _resumed(settings, **{ADAPTER: str(tiny_model_dir)})
    folder = adapter("cut")
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        file.write("{")
    with pytest.raises(ConfigError, match="no LoRA adapter to start from"):
        _resumed(settings, **{ADAPTER: folder})


def test_the_adapter_is_part_of_the_reference(settings, adapter, saved):
    from verl_aiops.trainers.reference.scorer import reference_weights

    first, second = adapter("first"), adapter("second", seed=1)
    plain, one, two = (
        reference_weights(_resumed(settings, **({ADAPTER: path} if path else {})).actor_rollout_ref.model, None)
        for path in (None, first, second)
    )
    assert len({plain, one, two}) == 3
    shutil.copytree(first, f"{first}_elsewhere")
    saved(2, **{ADAPTER: first})
    _resumed(settings, **{ADAPTER: f"{first}_elsewhere"})
    with pytest.raises(ConfigError, match="trained against another reference"):
        _resumed(settings, **{ADAPTER: second})


def test_another_model_as_reference_leaves_the_adapter_out(settings, adapter, tiny_model_dir):
    from verl_aiops.trainers.reference.cache import weights_digest
    from verl_aiops.trainers.reference.scorer import reference_weights

    model = _resumed(settings, **{ADAPTER: adapter("sft")}).actor_rollout_ref.model
    assert reference_weights(model, str(tiny_model_dir)) == weights_digest(str(tiny_model_dir))


def test_a_finished_run_has_nothing_left(settings, saved):
    folder = saved(TOTAL)
    (target := os.path.join(os.path.dirname(folder), "huggingface"))
    os.makedirs(target)
    with pytest.raises(NothingLeft, match="nothing left to train.*Its model lies in"):
        _resumed(settings)
    with pytest.raises(ConfigError, match="change nothing") as error:
        _resumed(settings, **{"algorithm.dpo.beta": 0.4})
    assert "algorithm.dpo.beta: 0.1 -> 0.4" in str(error.value)
    _resumed(settings, **{"trainer.val_only": True})
    assert not os.listdir(target)


def test_main_ppo_ends_a_finished_run_without_an_error(settings, saved, monkeypatch, capsys):
    folder = saved(TOTAL)
    os.makedirs(os.path.join(os.path.dirname(folder), "huggingface"))
    config, given = settings()
    monkeypatch.setattr(preflight, "user_keys", lambda: given)
    checked = preflight.with_preflight(lambda **_: pytest.fail("verl was not to be reached"))
    with pytest.raises(SystemExit) as ended:
        checked(config, False, False)
    assert not ended.value.code
    assert "nothing left to train" in capsys.readouterr().out


def test_a_finished_run_whose_export_was_cut_short_is_exported(settings, saved, monkeypatch):
    from verl_aiops.trainers.runs import resume

    folder = saved(TOTAL)
    monkeypatch.setattr(resume, "export_model", lambda made_from, config: f"exported {made_from}")
    with pytest.raises(NothingLeft, match=f"has been exported: exported {folder}"):
        _resumed(settings)


@pytest.mark.parametrize("there", [False, True])
def test_a_reward_models_export_that_was_cut_short_is_left_to_the_workers_who_measure_it(tmp_path, capsys, there):
    """It says how held-out answers are scored, which nobody but the workers can find out."""
    from verl_aiops.trainers.rm.config import RewardModelConfig
    from verl_aiops.trainers.runs.resume import _finished

    folder = tmp_path / "global_step_3"
    exported = tmp_path / "huggingface" / "checkpoint.json"
    exported.parent.mkdir()
    exported.write_text(json.dumps({"checkpoint": folder.name if there else "global_step_2"}))
    config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path)}})
    if there:
        with pytest.raises(NothingLeft, match="Its model lies in"):
            _finished(str(folder), 3, 3, [], config, RewardModelConfig())
    else:
        _finished(str(folder), 3, 3, [], config, RewardModelConfig())
        assert "is exported now" in capsys.readouterr().out

    made = []
    trainer = SimpleNamespace(
        config=OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path), "val_only": False}}),
        dpo=RewardModelConfig(),
        nothing_left=lambda: True,
        _checkpoint_folder=lambda: str(folder),
        _export=lambda: made.append(folder),
    )
    trainer._is_exported = lambda: PreferenceCheckpoints._is_exported(trainer)
    PreferenceCheckpoints.fit(trainer, None)
    assert made == ([] if there else [folder])
    trainer.dpo = DPOConfig()
    PreferenceCheckpoints.fit(trainer, None)
    assert len(made) == (not there), "of other runs the check before Ray exports"


def test_fewer_steps_than_were_taken_are_refused(settings, saved):
    folder = saved(TOTAL)
    with pytest.raises(ConfigError, match=f"trained for {TOTAL} steps, more than the 2"):
        _resumed(settings, **{"trainer.total_training_steps": 2})
    assert os.listdir(os.path.dirname(folder)).count("latest_checkpointed_iteration.txt") == 1


def test_more_steps_are_the_ordinary_way_of_going_on(settings, saved, capsys):
    saved(TOTAL)
    capsys.readouterr()
    _resumed(settings, **{"trainer.total_epochs": 2})
    assert f"steps in all: {TOTAL} -> {2 * TOTAL}" in capsys.readouterr().out


def test_a_checkpoint_without_a_note_goes_on_and_says_so(settings, saved, write_rows, capsys):
    folder = saved(2)
    os.remove(os.path.join(folder, "run.json"))
    capsys.readouterr()
    _resumed(settings, **{"algorithm.dpo.beta": 0.4})
    assert "noted no settings" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="made with other training data"):
        _resumed(settings, **{"data.train_files": write_rows(_rows(12, "ja"), "other.jsonl")})


@pytest.mark.parametrize("content", ["", "[]", '{"trainer": "dpo"}', "\x00\xff"])
def test_a_damaged_note_is_named(settings, saved, content):
    folder = saved(2)
    with open(os.path.join(folder, "run.json"), "w") as file:
        file.write(content)
    with pytest.raises(ConfigError, match="run.json cannot be read"):
        _resumed(settings)


def test_a_used_folder_is_not_written_into(settings, saved, tmp_path):
    """Of an earlier run: neither beside its checkpoints nor over them."""
    saved(2)
    with pytest.raises(ConfigError, match="resume_mode=disable starts anew.*global_step_2 of an earlier run"):
        _resumed(settings, **{"trainer.resume_mode": "disable"})
    elsewhere = tmp_path / "elsewhere" / "global_step_1"
    shutil.copytree(tmp_path / "run" / "global_step_2", elsewhere)
    named = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(elsewhere)}
    with pytest.raises(ConfigError, match="holds global_step_2, which this run does not come from"):
        _resumed(settings, **named)
    _resumed(settings, **named, **{"trainer.default_local_dir": str(tmp_path / "new")})
    back = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(tmp_path / "run" / "global_step_2")}
    _resumed(settings, **back)


@pytest.mark.parametrize("path", [None, "nowhere/global_step_4", "/tmp", 4])
def test_a_path_that_is_no_checkpoint_is_refused(path):
    trainer = {"resume_mode": "resume_path", "resume_from_path": path, "default_local_dir": "/tmp/none"}
    with pytest.raises(ConfigError, match="expected the folder of a checkpoint"):
        start_folder(OmegaConf.create(trainer))


@pytest.mark.parametrize("mode", ["auto", "disable"])
def test_what_a_cut_save_has_left_does_not_stop_the_same_command(settings, tmp_path, mode, capsys):
    (tmp_path / "run" / "global_step_3" / "actor").mkdir(parents=True)
    config, _ = settings(**{"trainer.resume_mode": mode})
    assert start_folder(config.trainer) is None
    assert ("never became complete" in capsys.readouterr().out) == (mode == "auto")


def test_what_only_another_version_of_verl_knows_is_no_change():
    then = RunNote("dpo", 3, {"a": 1, "old": 2}, {}, {}, versions={"verl": "0.9.0"})
    now = RunNote("dpo", 3, {"a": 1, "new": 2}, {}, {}, versions={"verl": "0.9.1"})
    assert compare(then, now).used == [] == compare(then, now).refused
    same = RunNote("dpo", 3, {"a": 1, "new": 2}, {}, {}, versions={"verl": "0.9.0"})
    assert compare(then, same).used == ["old: 2 -> None", "new: None -> 2"]


def test_a_note_is_read_as_it_was_written(tmp_path):
    note = RunNote("dpo", 3, {"a": [1.5, None]}, {"pairs": 3}, {"path": "m"}, held_out="x")
    write_note(str(tmp_path), note)
    assert read_note(str(tmp_path)) == note


# --- the optimizer ---------------------------------------------------------------------------------------------------


def _optimizer(lr, decay, kind="cosine", total=10, warmup=2):
    from verl.utils.torch_functional import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup
    from verl.workers.config import FSDPOptimizerConfig

    config = FSDPOptimizerConfig(lr=lr, weight_decay=decay, lr_scheduler_type=kind, total_training_steps=total)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=lr, weight_decay=decay, betas=config.betas)
    if kind == "cosine":
        scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, total, min_lr_ratio=0.1)
    else:
        scheduler = get_constant_schedule_with_warmup(optimizer, warmup)
    return optimizer, scheduler, config


def _steps(optimizer, scheduler, count):
    rates = []
    for _ in range(count):
        optimizer.param_groups[0]["params"][0].grad = torch.full((3,), 0.5)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _loaded(state, *settings, **more):
    optimizer, scheduler, config = _optimizer(*settings, **more)
    optimizer.load_state_dict(copy.deepcopy(state[0]))
    scheduler.load_state_dict(copy.deepcopy(state[1]))
    use_settings(optimizer, scheduler, config)
    return optimizer, scheduler


@pytest.fixture
def state():
    optimizer, scheduler, _ = _optimizer(1e-3, 0.1)
    _steps(optimizer, scheduler, 4)
    return optimizer.state_dict(), scheduler.state_dict()


def test_unchanged_settings_leave_every_number_as_it_was_loaded(state):
    optimizer, scheduler = _loaded(state, 1e-3, 0.1)
    assert optimizer.state_dict()["param_groups"] == state[0]["param_groups"]
    whole, schedule, _ = _optimizer(1e-3, 0.1)
    assert _steps(optimizer, scheduler, 6) == _steps(whole, schedule, 10)[4:]


def test_another_rate_and_decay_are_used_at_the_next_step(state):
    optimizer, scheduler = _loaded(state, 5e-5, 0.3)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    whole, schedule, _ = _optimizer(5e-5, 0.3)
    assert _steps(optimizer, scheduler, 6) == _steps(whole, schedule, 10)[4:]


def test_a_longer_schedule_counts_from_the_next_step_on(state):
    optimizer, scheduler = _loaded(state, 1e-3, 0.1, total=20)
    whole, schedule, _ = _optimizer(1e-3, 0.1, total=20)
    assert _steps(optimizer, scheduler, 6) == _steps(whole, schedule, 10)[4:]


# --- the end of a run ------------------------------------------------------------------------------------------------


class _Loop:
    """verl's trainer, as far as checkpoints see it: ``ends`` is the step after which its loop ends."""

    def fit(self, agent_loop_manager):
        self.global_steps += 1
        while self.global_steps <= self.ends:
            self.weights = f"after step {self.global_steps}"
            every = self.config.trainer.save_freq
            if every > 0 and self.global_steps % every == 0:
                self._save_checkpoint()
            self.global_steps += 1

    def _save_checkpoint(self):
        actor = os.path.join(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}", "actor")
        os.makedirs(actor, exist_ok=True)
        with open(os.path.join(actor, "weights"), "w") as file:
            file.write(self.weights)


class _Run(PreferenceCheckpoints, _Loop):
    def __init__(self, root, start=0, ends=4, total=4, save_freq=-1):
        trainer = {"default_local_dir": str(root), "save_freq": save_freq, "val_only": False, "logger": ["console"]}
        trainer |= {"project_name": "p", "experiment_name": "e"}
        actor = {"fsdp_config": {}}
        self.config = OmegaConf.create({"trainer": trainer, "actor_rollout_ref": {"actor": actor}})
        self.global_steps, self.ends, self.total_training_steps = start, ends, total
        self.dpo = SimpleNamespace(export_model=True, export_is_measured=False, reference_sync_steps=0)
        self.actor_rollout_wg = SimpleNamespace(weights_not_finite=lambda: [[], []])

    def _write_model(self, folder):
        return self.weights

    def reference_note(self):
        return {"weights": None}

    def run_note(self):
        return RunNote("dpo", self.total_training_steps, {}, {}, {})


@pytest.fixture
def exported(monkeypatch):
    """What `export_model` was called with, and the weights that the workers would write."""
    from verl_aiops.trainers.dpo import checkpoints

    calls = []

    def export(folder, config, finish, write):
        calls.append((os.path.basename(folder), write("a folder")))
        return "huggingface"

    monkeypatch.setattr(checkpoints, "export_model", export)
    monkeypatch.setenv("TENSORBOARD_DIR", "unused")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", "unused")
    return calls


def test_what_was_trained_is_saved_where_a_folder_of_that_name_lies(tmp_path, exported):
    left = tmp_path / "global_step_4" / "actor"
    left.mkdir(parents=True)
    (left / "weights").write_text("another run's")
    (left / "model_world_size_2_rank_1.pt").write_text("a shard that this run does not write")
    _Run(tmp_path, save_freq=3).fit(None)
    assert exported == [("global_step_4", "after step 4")]
    assert os.listdir(left) == ["weights"]


def test_without_saves_the_model_alone_is_written(tmp_path, exported):
    """No checkpoint, which would be larger for its optimizer; without a model too it is all that the run leaves."""
    _Run(tmp_path).fit(None)
    assert exported == [("global_step_4", "after step 4")] and not os.listdir(tmp_path)
    run = _Run(tmp_path)
    run.dpo.export_model = False
    run.fit(None)
    assert len(exported) == 1 and os.listdir(tmp_path) == ["global_step_4"]


def test_what_was_trained_is_saved_where_the_model_cannot_be_written(tmp_path, exported, monkeypatch, capsys):
    from verl_aiops.trainers.dpo import checkpoints
    from verl_aiops.trainers.runs.finite import NotFiniteError

    def refused(error):
        raise error

    monkeypatch.setattr(checkpoints, "export_model", lambda *_: refused(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        _Run(tmp_path / "run").fit(None)
    assert "a checkpoint is saved instead" in capsys.readouterr().out
    assert (tmp_path / "run" / "global_step_4" / "actor" / "weights").read_text() == "after step 4"
    # weights that nobody can use are not saved
    monkeypatch.setattr(checkpoints, "export_model", lambda *_: refused(NotFiniteError("nan")))
    with pytest.raises(NotFiniteError, match="nan"):
        _Run(tmp_path / "other").fit(None)
    assert not (tmp_path / "other").exists()


def test_weights_that_are_not_finite_make_no_model_either(tmp_path, exported):
    from verl_aiops.trainers.runs.finite import NotFiniteError

    run = _Run(tmp_path)
    run.actor_rollout_wg.weights_not_finite = lambda: [["lm_head"]]
    with pytest.raises(NotFiniteError, match="after step 4"):
        run.fit(None)
    assert not exported


@pytest.mark.parametrize("every, saves", [(4, 1), (3, 2)])
def test_the_last_checkpoint_is_written_once(tmp_path, exported, monkeypatch, every, saves):
    written = []
    monkeypatch.setattr(_Loop, "_save_checkpoint", lambda self, save=_Loop._save_checkpoint: written.append(save(self)))
    _Run(tmp_path, save_freq=every).fit(None)
    assert len(written) == saves and exported == [("global_step_4", "after step 4")]


def test_a_checkpoint_bears_the_number_of_the_step_that_was_taken(tmp_path, exported):
    """The loop may end before the total, where the epochs do."""
    _Run(tmp_path, ends=3).fit(None)
    assert exported == [("global_step_3", "after step 3")]


@pytest.mark.parametrize("start, ends, total", [(4, 4, 4), (4, 3, 3), (2, 2, 4)])
def test_a_run_that_takes_no_step_writes_and_exports_nothing(tmp_path, exported, capsys, start, ends, total):
    _Run(tmp_path, start=start, ends=ends, total=total).fit(None)
    assert not exported and not os.listdir(tmp_path)
    said = capsys.readouterr().out
    assert "nothing left to train" in said or "nothing was trained" in said
    assert "trained model" not in said


def test_the_export_names_its_checkpoint(tmp_path, monkeypatch):
    from verl_aiops.trainers.dpo import checkpoints

    def merge(actor, target, trust_remote_code):
        assert actor.endswith("global_step_2/actor")

    monkeypatch.setattr(checkpoints, "merge_checkpoint", merge)
    model = {"trust_remote_code": False}
    config = {"trainer": {"default_local_dir": str(tmp_path)}, "actor_rollout_ref": {"model": model}}
    config = OmegaConf.create(config)
    assert exported_from(config) is None
    checkpoints.export_model(str(tmp_path / "global_step_2"), config)
    assert exported_from(config) == "global_step_2"
    assert json.loads((tmp_path / "huggingface" / "checkpoint.json").read_text()) == {"checkpoint": "global_step_2"}

"""Numbers that are not finite: what ends a run, what is only said, and that nothing of them is kept."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from verl_aiops.trainers.dpo.checkpoints import PreferenceCheckpoints
from verl_aiops.trainers.runs.finite import MOST_SKIPPED, FiniteWatch, NotFiniteError, check_model_folder, check_scores

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["actor/loss", "critic/vf_loss"])
def test_a_loss_that_is_not_finite_ends_the_run_at_once(name, value):
    with pytest.raises(NotFiniteError, match=f"step 7: {name} is {value}.*optim.lr"):
        FiniteWatch().see(7, {name: value}, 1.0)


def test_steps_left_out_are_said_and_several_in_a_row_end_the_run():
    watch = FiniteWatch()
    for step in range(1, MOST_SKIPPED + 1):
        assert f"step {step}: the norm of the gradients is inf" in watch.see(step, {"actor/loss": 0.6}, INF)
    with pytest.raises(NotFiniteError, match=f"the norm of the gradients is nan.*{MOST_SKIPPED} steps before it"):
        watch.see(MOST_SKIPPED + 1, {"actor/loss": 0.6}, NAN)


def test_a_step_that_trains_begins_the_count_anew(capsys):
    watch = FiniteWatch()
    for step in range(1, 40):
        said = watch.see(step, {"actor/loss": 0.6}, INF if step % 2 else 1.0)
        assert (said is not None) == bool(step % 2)
    watch.check_end()
    assert "20 of 39 steps changed nothing" in capsys.readouterr().out


def test_half_precision_may_look_for_its_scale():
    """torch's scaler starts at 65,536 and halves: 16 steps to reach 1."""
    watch = FiniteWatch.of("fp16")
    for step in range(16):
        watch.see(step, {"actor/loss": 0.6}, INF)
    with pytest.raises(NotFiniteError):
        for step in range(6):
            FiniteWatch.of("bf16").see(step, {}, INF), [watch.see(n, {}, INF) for n in range(20)]


def test_a_run_all_of_whose_steps_were_left_out_has_trained_nothing():
    watch = FiniteWatch()
    for step in (1, 2, 3):
        watch.see(step, {"actor/loss": 0.6}, INF)
    with pytest.raises(NotFiniteError, match="all 3 steps"):
        watch.check_end()


@pytest.mark.parametrize("value", [NAN, -INF])
def test_scores_that_are_not_finite_are_named(value):
    whole = np.zeros(3, np.float32)
    check_scores([whole, torch.zeros(2)], "reference: pair a", "mend")
    nested = torch.nested.as_nested_tensor([torch.zeros(2), torch.tensor([0.0, value])], layout=torch.jagged)
    for bad in (np.array([0.0, value], np.float32), nested):
        with pytest.raises(NotFiniteError, match=r"reference: pair a: 1 log-prob\(s\) are not finite.*mend"):
            check_scores([whole, bad], "reference: pair a", "mend")


def test_weights_of_a_folder(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    check_model_folder(tmp_path)
    save_file({"c": torch.tensor([1.0, NAN]), "n": torch.zeros(1, dtype=torch.int64)}, tmp_path / "x.safetensors")
    with pytest.raises(NotFiniteError, match="1 weights are not finite: c. Nothing is exported"):
        check_model_folder(tmp_path)


class _Base:
    saved = loaded = False

    def fit(self, manager):
        self.global_steps += 2

    def _save_checkpoint(self):
        self.saved = True

    def _load_checkpoint(self):
        self.loaded = True


class _Run(PreferenceCheckpoints, _Base):
    def __init__(self, root, bad, **trainer):
        trainer = {"default_local_dir": str(root), "resume_mode": "auto", "val_only": False, "save_freq": 1, **trainer}
        trainer |= {"logger": ["console"]}
        self.config = OmegaConf.create({"trainer": trainer, "actor_rollout_ref": {"actor": {"fsdp_config": {}}}})
        self.global_steps, self.total_training_steps = 0, 1
        self.dpo = SimpleNamespace(export_model=True, export_is_measured=False, reference_sync_steps=0)
        self.actor_rollout_wg = SimpleNamespace(weights_not_finite=lambda: bad)


def test_weights_that_became_not_finite_are_neither_saved_nor_exported(tmp_path, monkeypatch):
    from verl_aiops.trainers.dpo import checkpoints

    monkeypatch.setenv("TENSORBOARD_DIR", "unused")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", "unused")
    monkeypatch.setattr(checkpoints, "export_model", lambda *_: pytest.fail("exported"))
    run = _Run(tmp_path, [["lm_head"], ["norm", "lm_head"]])
    with pytest.raises(NotFiniteError, match="2 weights after step 1 are not finite: lm_head, norm"):
        run.fit(None)
    assert not run.saved and not list(tmp_path.iterdir())


def test_a_checkpoint_with_such_weights_is_not_gone_on_from(tmp_path):
    folder = tmp_path / "global_step_4"
    folder.mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    run = _Run(tmp_path, [["lm_head"]])
    with pytest.raises(NotFiniteError, match=f"of {folder} are not finite"):
        run._load_checkpoint()


def test_steps_of_grpo_and_ppo_are_watched_too():
    from verl_aiops.trainers.rl.scored_trainer import ScoredTrainer

    class _Step:
        def step(self, metrics, timing_raw):
            metrics.update(self.numbers)
            return "batch"

    class _Trainer(ScoredTrainer, _Step):
        def __init__(self, **numbers):
            self.numbers, self.global_steps = numbers, 3
            self.config = OmegaConf.create({"actor_rollout_ref": {"actor": {"fsdp_config": {}}}})

        step = ScoredTrainer.step

    def step(**numbers):
        trainer = _Trainer(**{name.replace("_", "/", 1): value for name, value in numbers.items()})
        # verl's own step stands between; ours calls whatever comes next
        base = ScoredTrainer.__mro__[ScoredTrainer.__mro__.index(ScoredTrainer) + 1 :]
        owner = next(cls for cls in base if "step" in vars(cls))
        before, owner.step = owner.step, _Step.step
        try:
            return trainer.step({}, {})
        finally:
            owner.step = before

    assert step(actor_pg_loss=0.1, actor_grad_norm=1.0) == "batch"
    assert step(actor_other=math.nan) == "batch"
    with pytest.raises(NotFiniteError, match="step 3: actor/pg_loss is nan"):
        step(actor_pg_loss=NAN, actor_grad_norm=NAN)

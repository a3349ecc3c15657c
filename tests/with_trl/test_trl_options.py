"""TRL's own options of `trl-dpo` and `train-rm`: read by TRL's parser, refused where ours decide."""

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import trl
from tiny import make_tokenizer
from trl_dpo_harness import row
from trl_dpo_harness import settings as dpo_settings

from verl_aiops.cli.main import main
from verl_aiops.trl import dpo, reward
from verl_aiops.trl.dpo_data import read_pairs
from verl_aiops.trl.extra import TrainingError
from verl_aiops.trl.options import trl_options
from verl_aiops.trl.reward_data import RewardPairs
from verl_aiops.trl.reward_settings import RewardTraining

# a value that TRL's parser takes, for those of its options that take no number
VALUES = {"lr_scheduler_type": "linear", "save_strategy": "no", "eval_strategy": "no", "truncation_mode": "keep_end"}


@pytest.fixture
def start(write_rows, tmp_path, tiny_model_dir, monkeypatch):
    """Begins to make a trainer of either kind, and ends where TRL's configuration is made, with what it was given."""

    class Made(Exception):
        pass

    def stop(**given):
        raise Made(given)

    def run(kind, *more):
        file = write_rows([row(at) for at in range(8)])
        with pytest.raises(Made) as made, monkeypatch.context() as patch:
            if kind == "dpo":
                settings = dpo_settings(file, tiny_model_dir, trl=more)
                pairs = read_pairs(settings.data, make_tokenizer(), settings)
                options = dpo._more_options(settings)
                patch.setattr(dpo, "_more_options", lambda settings: options)
                patch.setattr(trl, "DPOConfig", stop)
                dpo.build_trainer(settings, tmp_path, make_tokenizer(), None, pairs)
            else:
                settings = RewardTraining(data=(file,), model=str(tiny_model_dir), device="cpu", trl=more)
                options = reward._more_options(settings)
                patch.setattr(reward, "_more_options", lambda settings: options)
                patch.setattr(trl, "RewardConfig", stop)
                model = type("Model", (), {"config": type("Config", (), {})()})()
                pairs = RewardPairs([[1]], [[2]], None, ["a"])
                reward._trainer(settings, tmp_path, make_tokenizer(), model, pairs)
        return made.value.args[0]

    return run


KINDS = {"dpo": (dpo, "DPOConfig"), "reward": (reward, "RewardConfig")}


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_trl_reach_its_configuration(start, kind):
    usual = start(kind)
    assert usual["report_to"] == "none" and "weight_decay" not in usual
    given = start(kind, "--weight_decay", "0.25", "--max-grad-norm", "0.5", "--report_to", "tensorboard")
    more = {"weight_decay": 0.25, "max_grad_norm": 0.5, "report_to": "tensorboard"}
    assert {name: given[name] for name in more} == more
    assert {name: value for name, value in given.items() if name not in more} == {
        name: value for name, value in usual.items() if name not in more
    }


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_run_decides_cannot_be_set_past_it(start, kind):
    module, config = KINDS[kind]
    owner = dpo_settings("data", "model") if kind == "dpo" else RewardTraining(data=("data",), model="model")
    for name in set(start(kind)) - set(module.OPEN) - {"dataloader_pin_memory"}:
        object.__setattr__(owner, "trl", (f"--{name}", VALUES.get(name, "1")))
        with pytest.raises(TrainingError, match=f"--{name}: (set it by --|this command decides it by itself)"):
            trl_options(owner, config, (*module.SETTLED, "output_dir"))
    decided = {name for of in type(owner).__dataclass_fields__.values() for name in of.metadata.get("trl", ())}
    known = set(getattr(trl, config).__dataclass_fields__)
    assert decided - {"warmup_ratio", "truncation_mode"} <= known and set(module.SETTLED) | set(module.OPEN) <= known


@pytest.mark.parametrize("command", ["trl-dpo", "train-rm"])
@pytest.mark.parametrize(
    "more, said",
    [
        (("--learning_rate", "1"), "--learning_rate: set it by --lr, which decides TRL's learning_rate here"),
        (("--seeed", "1"), "unrecognized arguments: --seeed 1: no option of this command, nor of TRL's"),
        (("--max_grad_norm", "much"), "TRL's options: argument --max_grad_norm/--max-grad-norm: invalid float value"),
        (("--output_dir", "x"), "--output_dir: this command decides it by itself"),
        (("--logging_steps", "5"), "--logging_steps: this command decides it by itself"),
    ],
)
def test_what_cannot_be_told_trl_is_one_line(tmp_path, capsys, command, more, said):
    out = tmp_path / "out"
    trl = ["--backend", "trl"] if command == "train-rm" else []
    assert main([command, *trl, "--data", "no.parquet", "--model", "no", "--out", str(out), *more]) == 2
    assert said in capsys.readouterr().err and not out.exists()


def test_other_commands_take_no_more_than_their_own(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--weight_decay", "0.1"])
    assert ended.value.code == 2
    assert "verl-aiops: error: unrecognized arguments: --weight_decay 0.1" in capsys.readouterr().err

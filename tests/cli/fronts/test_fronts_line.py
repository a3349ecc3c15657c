"""The line that each front writes: as data, from options, from a YAML file, and what is refused before it is run."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_aiops.cli.fronts import line as line_module
from verl_aiops.cli.fronts.machine import accelerators
from verl_aiops.cli.fronts.tasks import OPTIONS, TASKS
from verl_aiops.cli.fronts.values import hydra_value, quoted_path
from verl_aiops.cli.main import main

MAIN_PPO = "python -m verl.trainer.main_ppo"
# with 2 GPUs, LoRA of rank 8, learning rate 1e-4, 3 epochs; what is the same on all lines left out
WRITTEN = {
    "dpo": (
        MAIN_PPO,
        "+verl_aiops=dpo actor_rollout_ref.model.path=org/m data.train_files={data} data.val_files={data} "
        "trainer.default_local_dir={out} data.train_batch_size=16 data.max_prompt_length=2048 "
        "data.max_response_length=512 actor_rollout_ref.model.lora_alpha=16 actor_rollout_ref.model.lora_rank=8 "
        "trainer.n_gpus_per_node=2 actor_rollout_ref.actor.optim.lr=0.0001 trainer.total_epochs=3 data.seed=7",
    ),
    "online-dpo": (
        MAIN_PPO,
        "+verl_aiops=online_dpo actor_rollout_ref.model.path=org/m data.train_files={data} data.val_files={data} "
        "trainer.default_local_dir={out} data.train_batch_size=16 actor_rollout_ref.model.lora_alpha=16 "
        "actor_rollout_ref.model.lora_rank=8 trainer.n_gpus_per_node=2 actor_rollout_ref.actor.optim.lr=0.0001 "
        "trainer.total_epochs=3 data.seed=7",
    ),
    "grpo": (
        MAIN_PPO,
        "+verl_aiops=grpo_mturn actor_rollout_ref.model.path=org/m data.train_files={data} data.val_files={data} "
        "trainer.default_local_dir={out} data.train_batch_size=16 actor_rollout_ref.model.lora_alpha=16 "
        "actor_rollout_ref.model.lora_rank=8 trainer.n_gpus_per_node=2 actor_rollout_ref.actor.optim.lr=0.0001 "
        "trainer.total_epochs=3 data.seed=7",
    ),
    "sft": (
        "VERL_FILE_LOGGER_PATH={out}/metrics.jsonl TENSORBOARD_DIR={out}/tensorboard python -m torch.distributed.run "
        "--standalone --nnodes=1 --nproc_per_node=2 -m verl.trainer.sft_trainer",
        "model.path=org/m data.train_files={data} data.val_files={data} trainer.default_local_dir={out} "
        "data.messages_key=messages data.train_batch_size=16 data.micro_batch_size_per_gpu=4 "
        "data.use_dynamic_bsz=False data.max_length=2048 data.num_workers=0 model.use_remove_padding=False "
        "+model.override_config.attn_implementation=sdpa engine.use_torch_compile=False "
        "'checkpoint.save_contents=[model,optimizer,extra,hf_model]' trainer.total_epochs=3 trainer.save_freq=50 "
        "trainer.max_ckpt_to_keep=2 trainer.project_name=verl-aiops trainer.experiment_name=sft "
        "'trainer.logger=[console,file,tensorboard]' trainer.test_freq=after_each_epoch optim.lr=0.0001 "
        "model.lora_alpha=16 model.lora_rank=8 trainer.n_gpus_per_node=2 data.seed=7",
    ),
    "rm": (
        MAIN_PPO,
        "+verl_aiops=rm actor_rollout_ref.model.path=org/m data.train_files={data} data.val_files={data} "
        "trainer.default_local_dir={out} data.train_batch_size=16 data.max_prompt_length=2048 "
        "data.max_response_length=512 actor_rollout_ref.model.lora_alpha=16 actor_rollout_ref.actor.optim.lr=0.0001 "
        "actor_rollout_ref.model.lora_rank=8 trainer.n_gpus_per_node=2 trainer.total_epochs=3 data.seed=7",
    ),
}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """machine(gpus): what is found; none unless a test says otherwise."""
    for name in ("RAY_ADDRESS", "VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT", "TENSORBOARD_DIR"):
        monkeypatch.delenv(name, raising=False)

    def have(gpus):
        monkeypatch.setattr(line_module, "accelerators", lambda: gpus)

    have(0)
    return have


@pytest.fixture
def files(tmp_path):
    data = tmp_path / "d.parquet"
    data.write_bytes(b"")
    return {"data": str(data), "out": str(tmp_path / "out")}


@pytest.fixture
def printed(files, capsys):
    """printed(task, *arguments): what --print shows of a run of org/m on these files, on one line."""

    def run(task, *arguments):
        least = ["--model", "org/m", "--data", files["data"], "--val", files["data"], "--out", files["out"]]
        assert main([task, *least, "--print", *arguments]) == 0
        return " ".join(capsys.readouterr().out.replace("\\\n", " ").split())

    return run


@pytest.mark.parametrize("task", WRITTEN)
def test_the_line_of_each_task(printed, files, machine, task):
    machine(2)
    found = printed(task, "--gpus", "2", "--lora-rank", "8", "--lr", "1e-4", "--epochs", "3", "data.seed=7")
    assert found == " ".join(WRITTEN[task]).format(**files)


def test_a_reward_model_by_trl_is_a_line_of_train_rm(printed, files, machine):
    machine(1)
    found = printed("rm", "--backend", "trl", "--lora-rank", "8", "--lr", "1e-4", "--epochs", "3", "seed=7")
    rest = "--model org/m --data {data} --val {data} --out {out} --lora-rank 8 --lr 0.0001 --epochs 3 --seed 7"
    assert found == f"python -m verl_aiops.cli train-rm --backend trl {rest}".format(**files)


def test_train_rm_is_the_line_of_a_reward_model_with_its_own_options(files, capsys):
    least = ["train-rm", "--model", "org/m", "--data", files["data"], "--val", files["data"], "--out", files["out"]]
    Path(files["data"]).unlink()
    pq.write_table(pa.table({"prompt": ["?"], "chosen": ["a"], "rejected": ["b"]}), files["data"])
    more = ["--batch-size", "4", "--grad-accum", "2", "--lora-rank", "0", "--max-length", "300", "--margin", "0.5"]
    assert main([*least, "--print", *more]) in (0, None)
    found = set(" ".join(capsys.readouterr().out.replace("\\\n", " ").split()).split(" "))
    wanted = {"data.train_batch_size=8", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"}
    wanted |= {"actor_rollout_ref.actor.optim.lr=1e-05", "data.max_prompt_length=300", "algorithm.rm.margin=0.5"}
    wanted |= {"algorithm.rm.center_rewards=0.01", f"trainer.default_local_dir={files['out']}/checkpoints"}
    assert wanted <= found, wanted - found
    pq.write_table(pa.table({"prompt": ["?"], "chosen": ["a"], "rejected": ["b"], "margin": [1.0]}), files["data"])
    assert main([*least, "--print"]) in (0, None)
    assert "algorithm.rm.score_margin=1.0" in capsys.readouterr().out
    # what only TRL's trainer knows
    for more in ("--weight_decay=0.1", "--max-too-long-share=0.5"):
        assert main([*least, "--print", more]) == 2
        assert "--backend trl" in capsys.readouterr().err


def test_every_task_is_here_and_has_only_options_that_there_are():
    assert set(WRITTEN) == set(TASKS)
    for task in TASKS.values():
        assert set(task.keys) <= set(OPTIONS) and set(task.required) <= set(task.keys)


@pytest.mark.parametrize("task, preset", [("dpo", "dpo"), ("online-dpo", "online_dpo"), ("grpo", "grpo_mturn")])
def test_without_a_gpu_the_preset_of_cpus_is_added(printed, machine, task, preset):
    assert f"'+verl_aiops=[{preset},cpu]'" in printed(task) and "VERL_PLATFORM" not in printed(task)
    machine(1)
    assert f"+verl_aiops={preset} " in printed(task)
    # asked for beside a GPU, which verl would find
    assert printed(task, "--gpus", "0").startswith(f"VERL_PLATFORM=cpu {MAIN_PPO} '+verl_aiops=[{preset},cpu]'")


def test_sft_and_rm_without_a_gpu(printed):
    found = printed("sft")
    assert "trainer.device=cpu engine.strategy=fsdp2" in found and "--nproc_per_node=1" in found
    assert "optim.lr=2e-05" in found and "lora" not in found
    assert "optim.lr=0.0002" in printed("sft", "--lora-rank", "4")
    assert printed("rm", "--backend", "trl").endswith("--device cpu")
    assert "'+verl_aiops=[rm,cpu]'" in printed("rm")


def test_without_held_out_data_none_is_asked_for(files, capsys):
    for task, said in (("dpo", "data.val_files=null"), ("sft", "data.val_files=null \\\n  trainer.test_freq=-1")):
        assert main([task, "--model", "m", "--data", files["data"], "--out", files["out"], "--print"]) == 0
        found = capsys.readouterr().out
        assert "data.val_files=null" in found and (task == "dpo" or "trainer.test_freq=-1" in found), said


def test_several_files_and_settings_between_options(files, tmp_path, capsys):
    other = tmp_path / "it's 2.parquet"
    other.write_bytes(b"")
    least = ["dpo", "--model", "m", "algorithm.dpo.beta=0.2", "--data", files["data"], "--data", str(other)]
    assert main([*least, "--out", files["out"], "--print", "~trainer.foo", "+a.b=1"]) == 0
    found = capsys.readouterr().out
    folder = str(tmp_path)
    assert f"data.train_files=[{folder}/d.parquet,'{folder}/it\\'s 2.parquet']" in found.replace("'\"'\"'", "'")
    for setting in ("algorithm.dpo.beta=0.2", "+a.b=1", "~trainer.foo"):
        assert f"  {setting}" in found.replace("'", "")


def test_columns_of_other_names(printed):
    named = printed("dpo", "--columns", "prompt=question,chosen=better one")
    assert "data.prompt_key=question" in named and """data.chosen_key='better one'""" in named
    assert "--columns prompt=question,chosen=better" in printed(
        "rm", "--backend", "trl", "--columns", "prompt=question,chosen=better"
    )


YAML = """\
model: org/m
data: {data}
val: [{data}]
out: {out}
lora-rank: 8
lr: 1e-4
epochs: 3
batch_size: 32
algorithm:
  dpo:
    beta: 0.2
    loss_type: [sigmoid, sft]
data.seed: 7
trainer.rollout_data_dir: null
data.shuffle: false
"""


def test_a_yaml_file_holds_the_same_options(files, tmp_path, printed, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(YAML.format(**files), encoding="utf-8")
    assert main(["dpo", "--config", str(config), "--print"]) == 0
    filed = " ".join(capsys.readouterr().out.replace("\\\n", " ").split())
    settings = ("algorithm.dpo.beta=0.2", "algorithm.dpo.loss_type=[sigmoid,sft]", "data.seed=7")
    settings = (*settings, "trainer.rollout_data_dir=null", "data.shuffle=False")
    options = ("--lora-rank", "8", "--lr", "1e-4", "--epochs", "3", "--batch-size", "32")
    assert filed == printed("dpo", *options, *settings)
    # what is on the command line wins: an option in the file's place, a setting behind it
    assert main(["dpo", "--config", str(config), "--print", "--lora-rank", "0", "data.seed=8"]) == 0
    found = capsys.readouterr().out
    assert "lora" not in found and found.index("data.seed=7") < found.index("data.seed=8")


@pytest.mark.parametrize(
    "content, said",
    [
        ("lora_rnk: 8\n", r"lora_rnk: no option of this command \(did you mean 'lora_rank'\?\)"),
        ("lora_rank: many\n", "key 'lora_rank': expected a whole number, found 'many'"),
        ("lora_rank: 1.5\n", "key 'lora_rank': expected a whole number, found 1.5"),
        ("lr: true\n", "key 'lr': expected a number, found True"),
        ("- a\n", "expected `name: value` lines"),
        ("lr: 1\nlr: 2\n", "line 2: not valid YAML"),
    ],
)
def test_a_yaml_file_that_cannot_be(tmp_path, capsys, content, said):
    import re

    config = tmp_path / "run.yaml"
    config.write_text(content, encoding="utf-8")
    assert main(["dpo", "--config", str(config), "--print"]) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--gpus", "2"], "--gpus 2: no accelerator found on this machine. --gpus 0 trains on the CPU"),
        (["--lora-rank", "-1"], "--lora-rank -1: expected 0 or more"),
        (["--lora-rnk", "8"], "--lora-rnk: no such option (did you mean '--lora-rank'?)"),
        (["--lora-rnk=8"], "--lora-rnk=8: no such option (did you mean '--lora-rank'?)"),
        (["beta"], "beta: no such option, and no setting, which is key=value"),
        (["9x=1"], "9x=1: expected a setting, key=value"),
        (["trainer.default_local_dir=x"], "--out names the run's folder"),
        (["--data", "none.parquet"], "--data none.parquet: no such file"),
        (["--columns", "promt=x"], "no such name: 'promt' (did you mean prompt?)"),
        (["--push", "no owner"], "--push no owner: expected OWNER/NAME"),
        (["--push", "me/model"], "--push me/model: nobody is logged in to the hub. Log in with `hf auth login`"),
    ],
)
def test_refused_before_anything_is_run(files, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("it was run"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["dpo", "--model", "m", "--data", files["data"], "--out", files["out"], *arguments]) == 2
    assert said in capsys.readouterr().err


def test_fine_tuning_keeps_no_base_in_four_bits(files, capsys):
    """verl's trainer would train on whole weights, and say nothing."""
    arguments = ["--model", "m", "--data", files["data"], "--out", files["out"], "+model.lora.base_format=nf4"]
    assert main(["sft", *arguments]) == 2
    assert "verl's SFT trainer trains adapters on whole weights" in capsys.readouterr().err


def test_what_is_missing_is_told_together(capsys):
    assert main(["grpo", "--model", "m"]) == 2
    assert "--data, --val, --out missing" in capsys.readouterr().err


def test_more_gpus_than_there_are(files, machine, capsys, monkeypatch):
    machine(2)
    least = ["--model", "m", "--data", files["data"], "--out", files["out"], "--print"]
    assert main(["dpo", *least, "--gpus", "4"]) == 2
    assert "--gpus 4: this machine shows 2" in capsys.readouterr().err
    assert main(["rm", "--backend", "trl", *least, "--gpus", "2"]) == 2
    assert "this task trains on one GPU" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # the cluster's are not this machine's
    assert main(["dpo", *least, "--gpus", "4"]) == 0


@pytest.mark.parametrize(
    "names, shown, count",
    [
        (["null", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], None, 2),
        (["kfd"], None, 1),
        (["davinci0", "davinci_manager"], None, 1),
        (["null"], None, 0),
        (["nvidia0", "nvidia1"], "1", 1),
        (["nvidia0"], "", 0),
        (["nvidia0"], "-1", 0),
    ],
)
def test_accelerators_are_counted_by_their_devices(tmp_path, monkeypatch, names, shown, count):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert accelerators(str(tmp_path)) == count


@pytest.mark.parametrize(
    "path",
    ["a/b.parquet", "2026", "true", "it's", "a b/c", "x\\", "a\\'b", "${oc.env:HOME}", "a,b", "[x]", "$5", "é/ü"],
)
def test_paths_reach_hydra_as_they_are(path):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    override = OverridesParser.create().parse_override(f"k={quoted_path(path)}")
    assert OmegaConf.create({"k": override.value()}).k == path


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.1, 1e-7, "plain", "two words", ["a", "b c"], {"a": "x"}, [], "it's", 123456789.5]
)
def test_values_reach_hydra_as_they_are(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"k={hydra_value(value)}").value()
    assert str(parsed) == str(value) if isinstance(value, str) else parsed == value


def test_printing_imports_nothing_that_takes_long(files):
    heavy = "('torch', 'verl', 'ray', 'transformers', 'omegaconf', 'hydra')"
    code = "import sys; from verl_aiops.cli.main import main; main(sys.argv[1:]); "
    code += f"assert not set({heavy}) & set(sys.modules)"
    least = ["--model", "m", "--data", files["data"], "--val", files["data"], "--out", files["out"], "--gpus", "0"]
    for task in TASKS:
        done = subprocess.run([sys.executable, "-c", code, task, *least, "--print"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

"""A verl whose names are others: each part of ours is missing alone, with its reason, and verl is as whole as ever."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from verl_aiops import missing

ROOT = Path(__file__).resolve().parents[1] / "verl_aiops"

# As in test_plugin: children of a process that has imported what is heavy but nothing of verl's. Each child first hides
# names, then imports what plain verl runs on, and prints what is registered and what of ours is missing.
CHILD = """
import builtins, importlib.abc, importlib.machinery, json, os, sys, warnings
warnings.simplefilter("ignore")
import datasets, hydra, pandas, peft, ray, tensordict, torch, transformers
import torch.distributed.fsdp, torch.distributed.tensor

REAL = builtins.__import__

def hide_from_us(module, name):
    "As if verl's `module` called `name` otherwise; only our files notice, since verl's would call it so too."
    def importing(asked, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 and str((globals or {}).get("__name__")).startswith("verl_aiops"):
            if asked == module and (name in (fromlist or ()) or name is None):
                raise ImportError(f"cannot import name {name!r} from {module!r}")
        return REAL(asked, globals, locals, fromlist, level)
    builtins.__import__ = importing

def rename(module, path):
    "Really rename an attribute (a.b.c) as soon as the module is there, before our hook looks for it."
    import wrapt
    def renamed(imported):
        *owners, last = path.split(".")
        for owner in owners:
            imported = getattr(imported, owner)
        kept = imported.__dict__[last]
        delattr(imported, last)
        setattr(imported, last + "_", kept)
    wrapt.register_post_import_hook(renamed, module)

def conceal(module, name):
    "Hide an attribute of a module from the hooks that wait for it."
    import types, wrapt
    register = wrapt.register_post_import_hook
    class Seen(types.ModuleType):
        def __init__(self, imported):
            object.__setattr__(self, "imported", imported)
        def __getattr__(self, asked):
            if asked == name:
                raise AttributeError(f"module {module!r} has no attribute {name!r}")
            return getattr(self.imported, asked)
        def __setattr__(self, asked, value):
            setattr(self.imported, asked, value)
    def registering(hook, waits_for):
        register((lambda imported: hook(Seen(imported))) if waits_for == module else hook, waits_for)
    wrapt.register_post_import_hook = registering

PLAIN = '''verl.workers.engine verl.workers.engine_workers verl.trainer.ppo.v1.trainer_base verl.trainer.ppo.core_algos
verl.experimental.agent_loop.agent_loop verl.experimental.reward_loop.reward_manager verl.workers.rollout.base
verl.workers.rollout.replica verl.utils.model verl.utils.distributed verl.trainer.ppo.v1 transfer_queue'''.split()

from omegaconf import OmegaConf
GRPO = OmegaConf.create(os.environ["GRPO"])

def listing():
    import importlib
    import verl
    wrong = {}
    for name in PLAIN:
        try:
            importlib.import_module(name)
        except BaseException as error:
            wrong[name] = f"{type(error).__name__}: {error}"
    from verl.plugin.platform import get_platform
    get_platform()
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine import EngineRegistry
    from verl.experimental.reward_loop.reward_manager import registry
    out = {"wrong": wrong, "trainers": sorted(TRAINER_REGISTRY), "managers": sorted(registry.REWARD_MANAGER)}
    out["engines"] = sorted(EngineRegistry._engines)
    # what verl itself calls of what we replaced, on a machine that is none of ours
    from verl.utils import config as verl_config, distributed
    asked_for = []
    torch.distributed.init_process_group = lambda *args, **kwargs: asked_for.append(kwargs)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    for call in (
        lambda: getattr(verl_config, "validate_config", None) and verl_config.validate_config(GRPO, False, False),
        lambda: distributed.initialize_global_process_group_ray()
        if hasattr(distributed, "initialize_global_process_group_ray") else asked_for.append({"backend": "cuda"}),
    ):
        try:
            call()
        except BaseException as error:
            wrong[repr(call)] = f"{type(error).__name__}: {error}"
    if [dict(kwargs).get("backend", "").rpartition(",")[2].split(":")[0] for kwargs in asked_for] != ["cuda"]:
        wrong["process group"] = repr(asked_for)
    missing = sys.modules.get("verl_aiops.missing")
    out["missing"] = dict(missing.MISSING) if missing else None
    out["plugin"] = "verl_aiops.plugin" in sys.modules
    try:
        TRAINER_REGISTRY["dpo"](config=None)
    except BaseException as error:
        out["dpo"] = f"{type(error).__name__}: {error}"
    return out

for how, module, name in json.loads(sys.stdin.read()):
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            if how != "none":
                {"hide": hide_from_us, "rename": rename, "conceal": conceal}[how](module, name)
            print("LISTING", json.dumps([how, module, name, listing()]), flush=True)
        except BaseException as error:
            print("LISTING", json.dumps([how, module, name, {"wrong": {"child": repr(error)}}]), flush=True)
        os._exit(0)
    os.wait()
"""


def imported_names():
    """(module, name) of everything that our files import from verl and TransferQueue, at the top or in a function, or
    have `verl_aiops/seam/` bring them."""
    from verl_aiops.seam import engine, queue, reward_loop, rollout, trainer

    found = {(need.module, need.name) for t in (engine, queue, reward_loop, rollout, trainer) for need in t.NEEDS}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("verl", "transfer_queue"):
                found |= {(node.module, alias.name) for alias in node.names}
    return sorted(found)


ENGINES = [
    "engine preference_language_model",
    "engine reward_model",
    "engine shared_prompt_language_model",
    "engine shared_prompt_value_model",
]
# what our hooks reach by attribute, and methods that ours override; and what is missing without
REACHED = {
    ("conceal", "verl.plugin.platform", "PlatformRegistry"): ["platform cpu"],
    ("conceal", "verl.trainer.ppo.core_algos", "register_adv_est"): [
        *("advantage estimator dpo", "advantage estimator online_dpo", "advantage estimator rm"),
        *("policy loss dpo", "policy loss online_dpo", "policy loss rm"),
    ],
    ("conceal", "verl.experimental.agent_loop.agent_loop", "_agent_loop_registry"): [
        *("agent loop aiops_mturn", "agent loop aiops_tools"),
    ],
    ("conceal", "verl.workers.rollout.replica", "RolloutReplicaRegistry"): ["rollout hf"],
    ("conceal", "verl.workers.rollout.base", "_ROLLOUT_REGISTRY"): ["rollout hf"],
    ("conceal", "verl.utils.config", "validate_config"): ["check before Ray"],
    ("conceal", "verl.utils.distributed", "initialize_global_process_group_ray"): [
        "process groups of the platform cpu"
    ],
    ("conceal", "verl.workers.engine.fsdp.transformer_impl", "CPUOffloadPolicy"): ["references of the platform cpu"],
    ("conceal", "verl.utils.import_utils", "is_trl_available"): ["verl beside TRL 1"],
    ("conceal", "verl.utils.model", "load_valuehead_model"): ["critic without flash-attn"],
    ("conceal", "transfer_queue", "kv_clear"): ["steps that queue nothing"],
    ("rename", "verl.workers.engine.fsdp.transformer_impl", "FSDPEngine._build_fsdp_module"): ENGINES,
    ("conceal", "verl.workers.engine.fsdp.transformer_impl", "prepare_micro_batches"): ["micro-batches as planned"],
    ("rename", "verl.trainer.ppo.v1.trainer_base", "PPOTrainer._init_dataloader"): [
        *("trainer mode dpo", "trainer mode rm"),
    ],
    ("rename", "verl.trainer.ppo.v1.trainer_base", "PPOTrainer._val_metrics_update"): [
        *("trainer mode aiops_sync", "trainer mode online_dpo"),
    ],
    ("rename", "verl.trainer.ppo.v1.trainer_base", "PPOTrainer._step_once"): [
        *("trainer mode aiops_sync", "trainer mode online_dpo"),
    ],
}
# a few of the names that are imported, and what is missing without
IMPORTED = {
    ("hide", "verl.workers.engine.utils", "detach_tree"): ENGINES,
    ("hide", "verl.workers.utils.padding", "response_from_nested"): ENGINES[2:],
    ("hide", "verl.trainer.ppo.v1.trainer_base", "register_trainer"): [
        *("trainer mode aiops_sync", "trainer mode dpo", "trainer mode online_dpo", "trainer mode rm"),
    ],
    ("hide", "verl.trainer.ppo.v1.trainer_base", "PPOTrainer"): ["trainer mode dpo", "trainer mode rm"],
    ("hide", "verl.trainer.ppo.v1.trainer_sync", "PPOTrainerSync"): [
        *("trainer mode aiops_sync", "trainer mode online_dpo"),
    ],
    ("hide", "verl.experimental.reward_loop.reward_manager.naive", "NaiveRewardManager"): [
        *("reward manager aiops_combined", "reward manager aiops_mturn"),
    ],
    ("hide", "verl.plugin.platform.platform_base", "PlatformBase"): ["check before Ray", "platform cpu"],
}


@pytest.fixture(scope="module")
def grpo():
    """A run of verl's alone, as text."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from stock_runs import GRPO

    with initialize_config_module("verl.trainer.config", version_base=None):
        return OmegaConf.to_yaml(compose("ppo_trainer", overrides=GRPO), resolve=True)


def listings(asked, grpo, plugins="auto"):
    environment = {**os.environ, "VERL_PLATFORM": "nvidia", "OMP_NUM_THREADS": "1", "GRPO": grpo}
    environment["VERL_USE_EXTERNAL_PLUGINS"] = plugins
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        input=json.dumps(asked),
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    lines = [line.removeprefix("LISTING ") for line in done.stdout.splitlines() if line.startswith("LISTING ")]
    found = {tuple(case): out for *case, out in map(json.loads, lines)}
    assert set(found) == {tuple(case) for case in asked}, done.stderr[-3000:]
    return found


def check(cases, grpo):
    """verl is whole in every case; returns what is missing of ours, by case."""
    found = listings([["none", "", ""], *cases], grpo)
    whole = found["none", "", ""]
    assert whole["wrong"] == whole["missing"] == {} and whole["plugin"]
    for case, out in found.items():
        assert out["wrong"] == {}, case
        assert out["plugin"], case
        # names of ours are there, or what stands in their place says why they are not
        for kind in ("trainers", "managers", "engines"):
            gone = set(whole[kind]) - set(out[kind])
            assert not gone or any(name in label for name in gone for label in out["missing"]), (case, gone)
        if "trainer mode dpo" in out["missing"] and "dpo" in out["trainers"]:
            # with the trainer of reward models, where what is missing keeps its base class from being made
            names = ("trainer mode dpo", "trainer mode dpo, trainer mode rm")
            said = tuple(f"MissingError: verl-aiops could not put {name} into verl" for name in names)
            assert out["dpo"].startswith(said), case
            assert out["missing"]["trainer mode dpo"] in out["dpo"] and "verl<0.10" in out["dpo"], case
    return {case: out["missing"] for case, out in found.items()}


def test_what_a_hook_of_ours_misses_it_misses_alone(grpo):
    expected = {**REACHED, **IMPORTED}
    found = check([list(case) for case in expected], grpo)
    assert {case: sorted(found[case]) for case in expected} == expected
    for (_, module, name), out in found.items():
        last = name.rpartition(".")[2]
        assert all(last in reason for reason in out.values()), (module, name)


@pytest.mark.slow
def test_whatever_name_of_verls_is_another_plain_verl_is_whole(grpo):
    names = imported_names()
    assert len(names) > 60
    check([["hide", module, name] for module, name in names], grpo)


# --- who asks for what is missing reads why ------------------------------------------------------------------------

REASON = "ImportError: cannot import name 'detach_tree' from 'verl.workers.engine.utils'"

# main_ppo as the program, with a name of verl's hidden from us
RUN = """
import builtins, runpy, sys
REAL = builtins.__import__
HIDDEN = sys.argv.pop(1).split(":")
def importing(asked, globals=None, locals=None, fromlist=(), level=0):
    if [asked, *(fromlist or ())][:2] == HIDDEN and str((globals or {}).get("__name__")).startswith("verl_aiops"):
        raise ImportError(f"cannot import name {HIDDEN[1]!r} from {HIDDEN[0]!r}")
    return REAL(asked, globals, locals, fromlist, level)
builtins.__import__ = importing
sys.argv[0] = "main_ppo.py"
runpy.run_module("verl.trainer.main_ppo", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "hidden, plugins, told",
    [
        ("verl.workers.engine.utils:detach_tree", "auto", ["engine preference_language_model", REASON, "verl<0.10"]),
        # the check itself is missing
        ("verl.plugin.platform.platform_base:PlatformBase", "auto", ["check before Ray", "'PlatformBase'"]),
        ("nothing:at_all", "none", ["algorithm.adv_estimator=dpo: verl has not loaded the plug-in", "doctor"]),
    ],
)
def test_a_run_that_wants_it_says_why_before_ray(hidden, plugins, told, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            RUN,
            hidden,
            "algorithm.adv_estimator=dpo",
            "data.train_files=x.parquet",
        ],
        env={**os.environ, "VERL_USE_EXTERNAL_PLUGINS": plugins, "VERL_PLATFORM": "nvidia"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("verl-aiops: error: ") and all(part in said for part in told), done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "ray init" not in done.stdout


def test_the_doctor_gives_the_reason(monkeypatch):
    from verl_aiops.doctor import FAULT, registration

    monkeypatch.setitem(missing.MISSING, "engine preference_language_model", REASON)
    monkeypatch.setitem(missing.MISSING, "check before Ray", "TypeError: x")
    faults = {f.label: f for f in registration.check_names() if f.level == FAULT}
    assert set(faults) == {"engine preference_language_model", "check before Ray"}
    assert faults["engine preference_language_model"].value == f"could not be put into verl: {REASON}"


def test_every_name_that_a_hook_puts_in_is_the_doctors():
    """So that a reason is found under the name it is looked for."""
    from verl_aiops.doctor import NAMES

    known = {f"{kind} {name}" for kind, name, _ in NAMES}
    kinds = {kind for kind, _, _ in NAMES}
    tree = ast.parse((ROOT / "plugin.py").read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    ours = {text for text in texts if any(text.startswith(f"{kind} ") for kind in kinds) and "\n" not in text}
    assert ours >= known - {name for name in known if name.startswith("preset")}
    assert {text for text in ours if text not in known} <= {"platform cpu"}


def test_a_function_of_verls_with_other_parameters_is_not_replaced():
    def theirs(config, use_critic, more): ...

    with pytest.raises(TypeError, match=r"theirs takes \(config, use_critic, more\), not "):
        missing.require_parameters(theirs, "config", "use_critic")
    with pytest.raises(AttributeError, match="Path has no _setup, step_"):
        missing.require(Path, "exists", "_setup", "step_")


def test_verls_own_errors_are_not_masked():
    """A hook's failure goes no further; the import that it waited for fails or succeeds by itself."""
    import wrapt

    calls = []
    real = wrapt.register_post_import_hook
    try:
        wrapt.register_post_import_hook = lambda hook, name: calls.append(hook)

        @missing.when("x", "thing", instead=lambda raises: calls.append(raises))
        def hook(module):
            raise KeyError("gone")
    finally:
        wrapt.register_post_import_hook = real
    try:
        calls[0](object())
        assert missing.MISSING["thing"] == "KeyError: 'gone'"
        with pytest.raises(missing.MissingError, match="could not put thing into verl .*KeyError: 'gone'"):
            calls[1]("whatever", it="is")
    finally:
        missing.MISSING.pop("thing", None)
    calls.clear()
    wrapt.register_post_import_hook, kept = lambda hook, name: calls.append(hook), real
    try:

        @missing.when("x", "thing")
        def interrupted(module):
            raise KeyboardInterrupt
    finally:
        wrapt.register_post_import_hook = kept
    with pytest.raises(KeyboardInterrupt):
        calls[0](object())

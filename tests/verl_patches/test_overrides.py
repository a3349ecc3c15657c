"""What ours override of verl's, TRL's and transformers' classes: it is there, called, and listed."""

import ast
import importlib
import inspect
import pkgutil
import textwrap

import pytest

import verl_aiops
from verl_aiops.verl_patches import overrides
from verl_aiops.verl_patches.overrides import OVERRIDES, PUBLIC, check_overrides, fits


def found(path):
    """What ``module:name.name`` names."""
    module, _, names = path.partition(":")
    thing = importlib.import_module(module)
    for name in names.split("."):
        thing = getattr(thing, name)
        # Ray's remote classes hold the plain one
        thing = getattr(thing, "__ray_metadata__", None) and thing.__ray_metadata__.modified_class or thing
    return thing


def asked_for(function, name):
    """Whether a function's source calls ``something.name(...)``, or reads it where it is no method."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return any(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(tree))


def known_as(override):
    return f"{override.ours.partition(':')[2]}.{override.name}"


@pytest.mark.parametrize("override", OVERRIDES, ids=known_as)
def test_what_is_overridden_is_there_and_called_as_ours_expects(override):
    ours, theirs = found(f"verl_aiops.{override.ours}"), found(override.theirs)
    assert override.name in vars(ours), "no longer ours: remove it from the table"
    their = vars(theirs)[override.name]
    if inspect.isfunction(their):
        mine = inspect.unwrap(vars(ours)[override.name])
        assert fits(mine, inspect.unwrap(their)), (inspect.signature(mine), inspect.signature(their))
    for caller in override.callers:
        assert asked_for(found(caller), override.name), f"{caller} no longer asks for {override.name}"
    assert override.why


def classes_of_ours():
    for module in pkgutil.walk_packages(verl_aiops.__path__, "verl_aiops."):
        if not module.name.endswith("__main__"):
            for thing in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(thing) and thing.__module__ == module.name:
                    yield thing


OTHERS = ("verl", "trl", "transformers", "torch", "ray", "transfer_queue")
# written into a class of ours by Python, torch and verl (the last once it has been used in this process)
WRITTEN_BY_OTHERS = ("_abc_impl", "_backward_cls", "_class_initialized")


def test_every_override_is_in_the_table():
    """Each attribute of ours that hides one of a base of theirs is listed, under the class where it stands."""
    listed = {(f"verl_aiops.{entry.ours}", entry.theirs, entry.name) for entry in OVERRIDES}
    hidden = set()
    for cls in classes_of_ours():
        theirs = [base for base in cls.__mro__ if base.__module__.split(".")[0] in OTHERS]
        for ours in (base for base in cls.__mro__ if base.__module__.startswith("verl_aiops.")):
            for name in vars(ours):
                owner = next((base for base in theirs if name in vars(base)), None)
                if owner is None or name.startswith("__") or name in WRITTEN_BY_OTHERS:
                    continue
                where = f"{owner.__module__}:{owner.__qualname__}"
                if where not in PUBLIC:
                    hidden.add((f"{ours.__module__}:{ours.__qualname__}", where, name))
    assert hidden == listed


# --- what happens at registration -------------------------------------------------------------------------------------


class Theirs:
    def step(self, metrics, timing_raw): ...

    rate = 1


def ours(**more):
    return type(
        "Ours", (Theirs,), {"__module__": "verl_aiops.made.up", "step": lambda self, metrics, timing_raw: 0, **more}
    )


@pytest.fixture
def table(monkeypatch):
    def put(*names):
        made = tuple(overrides.Override("made.up:Ours", f"{__name__}:Theirs", name, (), "") for name in names)
        monkeypatch.setattr(overrides, "OVERRIDES", made)

    return put


def test_what_fits_passes(table):
    table("step", "rate")
    check_overrides(ours(rate=2))
    check_overrides(ours(step=lambda self, *args, **kwargs: 0))
    check_overrides(ours(step=lambda self, metrics, *args: 0))


@pytest.mark.parametrize(
    "more, names, error",
    [
        ({}, ["old_step"], "Theirs has no old_step"),
        ({"step": lambda self, metrics: 0}, ["step"], r"takes \(self, metrics, timing_raw\), not \(self, metrics\)"),
        ({"step": lambda self, metrics, timing: 0}, ["step"], "takes"),
        ({"step": lambda self, metrics, timing_raw, more: 0}, ["step"], "takes"),
        ({"step": lambda self, other, **kwargs: 0}, ["step"], "takes"),
    ],
)
def test_what_does_not_fit_is_told(table, more, names, error):
    table(*names)
    with pytest.raises((AttributeError, TypeError), match=error):
        check_overrides(ours(**more))


def test_a_base_that_is_gone_is_told(table, monkeypatch):
    table("step")
    gone = type("Ours", (), {"__module__": "verl_aiops.made.up", "step": lambda self: 0})
    with pytest.raises(AttributeError, match="Ours is no .*:Theirs, whose step it overrides"):
        check_overrides(gone)


def test_the_order_in_which_verl_calls_them_is_the_one_that_ours_rely_on():
    """Rewards are there before `_balance_batch`, and a step's answers until the end of the loop."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    step, fit = inspect.getsource(PPOTrainer._step_once), inspect.getsource(PPOTrainer.fit)
    order = [
        "replay_buffer.sample(",
        "self._compute_reward_colocate(",
        "self._balance_batch(",
        "self._compute_advantage(",
    ]
    assert [step.index(call) for call in order] == sorted(step.index(call) for call in order)
    assert fit.index("self._compute_metrics(") < fit.index("self._log_rollout_data(") < fit.index("tq.kv_clear(")
    assert "reward_extra_info" not in inspect.getsource(PPOTrainer._compute_metrics), "verl logs the parts itself now"
    assert 'self.trainer_mode == "sync"' in inspect.getsource(PPOTrainer._build_replay_buffer)
    setup = inspect.getsource(PPOTrainer._setup)
    # the initial policy is at the workers until then, and nothing of the set-up comes after it
    assert "self._" not in setup.partition("self._load_checkpoint()")[2] and "self._load_checkpoint()" in setup


def test_verls_validation_hands_over_the_rewards_of_all_that_came():
    """On `_val_metrics_update` hangs the look for answers whose score is NaN: what it is given, and how it is asked."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    assert list(inspect.signature(PPOTrainer._val_metrics_update).parameters) == [
        *("self", "data_sources", "sample_uids", "reward_extra_infos_dict", "sample_turns", "expected_acc_counts"),
    ]
    validate = inspect.getsource(PPOTrainer._validate)
    assert '["reward"]' in validate and "expected_acc_counts" in validate

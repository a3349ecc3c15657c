"""The doctor's checks of what verl sees: the plug-in, the platform, and each name in verl's registries."""

import importlib
import importlib.metadata
import importlib.resources
import sys

import pytest

from verl_aiops.doctor import FAULT, INFO, NAMES, OK, examine, registration

pytest.importorskip("verl")


# --- plug-in and platform ----------------------------------------------------------------------------------------


@pytest.fixture
def not_loaded(monkeypatch):
    """This process as if verl had not loaded the plug-in."""
    import verl  # noqa: F401

    monkeypatch.delitem(sys.modules, "verl_aiops.plugin", raising=False)
    monkeypatch.delenv("VERL_USE_EXTERNAL_PLUGINS", raising=False)


def test_the_import_error_that_verl_hides_is_shown(monkeypatch, not_loaded):
    real = importlib.import_module

    def broken(name, package=None):
        if name == "verl_aiops.plugin":
            raise ImportError("cannot import name 'x' from 'wrapt'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    (fault,) = registration.check_plugin()
    assert fault.level == FAULT
    assert fault.value == "its import fails: ImportError: cannot import name 'x' from 'wrapt'"
    assert "verl hides this error" in fault.advice


def test_a_missing_entry_point_is_a_fault(monkeypatch, not_loaded):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    (fault,) = registration.check_plugin()
    assert fault.level == FAULT and fault.value == "no entry point in the group verl.plugins"


def test_a_filter_that_names_the_plug_in_lets_it_pass(monkeypatch, not_loaded):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "other, VERL_AIOPS")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    (fault,) = registration.check_plugin()
    assert "filtered out" not in fault.value


def test_a_verl_that_cannot_be_imported_is_one_fault_and_ends_what_needs_it(monkeypatch):
    def broken(name, package=None):
        raise ModuleNotFoundError("No module named 'tensordict'")

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.delitem(sys.modules, "verl", raising=False)
    faults = [finding for finding in examine() if finding.level == FAULT]
    assert [fault.value for fault in faults] == ["import verl fails: ModuleNotFoundError: No module named 'tensordict'"]


class _Absent:
    vendor_name, device_name = "nvidia", "cuda"

    def is_available(self):
        return False


def test_a_platform_without_its_device_is_a_fault_unless_a_cluster_may_have_one(monkeypatch):
    import verl.plugin.platform as platform

    from verl_aiops.platform import cpu

    monkeypatch.setattr(platform, "get_platform", _Absent)
    monkeypatch.setattr(cpu, "existing_ray_address", lambda: None)
    (fault,) = registration.check_platform("nvidia")
    assert fault.level == FAULT and "set by VERL_PLATFORM=nvidia" in fault.value and "VERL_PLATFORM=cpu" in fault.advice
    monkeypatch.setattr(cpu, "existing_ray_address", lambda: "10.0.0.1:6379")
    (finding,) = registration.check_platform(None)
    assert finding.level == INFO and "chosen automatically" in finding.value


def test_an_unknown_platform_is_a_fault_that_lists_the_known(monkeypatch):
    import verl.plugin.platform as platform

    def refuse():
        raise ValueError("Unknown platform 'abacus'")

    monkeypatch.setattr(platform, "get_platform", refuse)
    (fault,) = registration.check_platform("abacus")
    assert fault.level == FAULT and "abacus" in fault.value and "cpu" in fault.advice


# --- names -------------------------------------------------------------------------------------------------------


def test_the_engines_name_is_the_trainers():
    from verl_aiops.trainers.config import PREFERENCE_MODEL_TYPE

    assert ("engine", PREFERENCE_MODEL_TYPE) in [(kind, name) for kind, name, _ in NAMES]


def test_every_preset_is_examined():
    presets = importlib.resources.files("verl_aiops.config.verl_aiops").glob("*.yaml")
    assert {name for kind, name, _ in NAMES if kind == "preset"} == {preset.stem for preset in presets}


def test_names_that_do_not_resolve_or_are_not_ours_are_faults(monkeypatch):
    names = (
        ("policy loss", "no_such_loss", registration._policy_loss),
        ("policy loss", "vanilla", registration._policy_loss),
        ("platform", "abacus", registration._platform),
        ("preset", "no_such_preset", registration._preset),
        ("policy loss", "dpo", registration._policy_loss),
    )
    monkeypatch.setattr(registration, "NAMES", names)
    unresolved, foreign, absent, preset, ours = registration.check_names()
    assert unresolved.level == FAULT and "no_such_loss" in unresolved.value
    assert foreign.level == FAULT and foreign.value == (
        "resolves to verl.trainer.ppo.core_algos.compute_policy_loss_vanilla"
    )
    assert absent.level == FAULT and absent.value == "not registered"
    assert preset.level == FAULT and "no_such_preset" in preset.value
    assert ours.level == OK

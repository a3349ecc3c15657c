"""The doctor: quiet in a sound environment, and one plain sentence for each thing that is wrong."""

import importlib
import importlib.metadata
import io
import json
import os
import re
import socket
import subprocess
import sys

import pytest
from ports import free_port

from verl_aiops import doctor as doctor_module
from verl_aiops.doctor import FAULT, INFO, NAMES, OK, Finding, as_json, as_table, environment, versions

pytest.importorskip("verl")


def _python(code, **environment_variables):
    """Run code in a fresh interpreter that inherits no choice of plug-in, platform or cluster from this process."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("VERL_", "RAY_"))} | environment_variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=300)


def _faults(check):
    return [finding for finding in check if finding.level == FAULT]


# --- the whole ---------------------------------------------------------------------------------------------------


def test_a_sound_environment_has_no_fault():
    done = _python("import sys; from verl_aiops.cli.main import main; sys.exit(main(['doctor', '--json']))")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] and not [f for f in report["findings"] if f["level"] == FAULT]
    found = {finding["label"]: finding["value"] for finding in report["findings"]}
    assert found["verl_aiops.plugin"] == "loaded by verl"
    assert "chosen automatically" in found["platform"]
    assert found["advantage estimator dpo"] == "verl_aiops.trainers.dpo.algorithms.compute_dpo_advantage"
    assert {f"{kind} {name}" for kind, name, _ in NAMES} <= set(found)
    for name in ("python", "verl", "torch", "ray", "transformers", "TransferQueue", "tensordict"):
        assert "supported: " in found[name]
    assert "a run of 1 worker holds" in found["resources"]


@pytest.mark.parametrize("level, code, last", [(OK, 0, "0 faults."), (INFO, 0, "0 faults."), (FAULT, 1, None)])
def test_exit_code_and_last_line(monkeypatch, level, code, last):
    finding = Finding("versions", level, "torch", "1.0, not supported (>=2.6)", "Run: pip install torch.")
    monkeypatch.setattr(doctor_module, "examine", lambda: [finding])
    stream = io.StringIO()
    assert doctor_module.doctor(stream=stream) == code
    text = stream.getvalue()
    assert "\033" not in text
    assert text.splitlines()[-1] == (last or "  torch: 1.0, not supported (>=2.6). Run: pip install torch.")


def test_the_table_is_aligned_and_coloured_only_when_asked():
    findings = [Finding("a", OK, "x", "one"), Finding("a", INFO, "longer label", "two", "So be it.")]
    first, second = (line for line in as_table(findings).splitlines() if line.startswith("  "))
    assert first.index("one") == second.index("two. So be it.")
    plain = re.sub(r"\033\[\d*m", "", as_table(findings, colours=True))
    assert plain == as_table(findings) != as_table(findings, colours=True)


def test_json_holds_every_field():
    report = json.loads(as_json([Finding("a", FAULT, "x", "bad", "Mend it.")]))
    assert report == {
        "ok": False,
        "findings": [{"section": "a", "level": "fault", "label": "x", "value": "bad", "advice": "Mend it."}],
    }


def test_what_libraries_print_stays_out_of_the_json(monkeypatch, capsys):
    def noisy():
        print("a library says hello")
        return [Finding("a", OK, "x", "fine")]

    monkeypatch.setattr(doctor_module, "examine", noisy)
    assert doctor_module.doctor(as_json_text=True) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


def test_a_check_that_stumbles_is_a_fault_and_keeps_what_it_found():
    def check_things():
        yield Finding("a", OK, "x", "fine")
        raise RuntimeError("no such\n  thing.")

    found, fault = doctor_module.run_check(check_things)
    assert found.level == OK
    assert (fault.level, fault.label) == (FAULT, "things")
    assert fault.value == "could not be checked: RuntimeError: no such thing"


CHECK_PLUGIN = "from verl_aiops.doctor.registration import check_plugin as c; print([(f.level, f.value) for f in c()])"


def test_a_filtered_plug_in_is_a_fault():
    done = _python(CHECK_PLUGIN, VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.stdout.strip() == "[('fault', 'filtered out by VERL_USE_EXTERNAL_PLUGINS=none')]", done.stderr


# --- versions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_version(monkeypatch):
    """Function (name, version): from then on the metadata says so; None means not installed."""
    real = importlib.metadata.version

    def use(name, version):
        def fake(asked):
            if asked.lower() != name.lower():
                return real(asked)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(asked)
            return version

        monkeypatch.setattr(importlib.metadata, "version", fake)

    return use


def test_a_missing_package_is_a_fault_with_its_range(with_version):
    with_version("tensordict", None)
    (fault,) = _faults(versions.check_versions())
    assert fault.value == "not installed (supported: >=0.8.0,!=0.9.0,<=0.10.0)"
    assert fault.advice == 'Run: pip install "tensordict>=0.8.0,!=0.9.0,<=0.10.0"'


@pytest.mark.parametrize("name, version", [("verl", "0.10.0"), ("TransferQueue", "0.1.9"), ("wrapt", None)])
def test_a_version_out_of_range_is_a_fault(with_version, name, version):
    with_version(name, version)
    (fault,) = _faults(versions.check_versions())
    assert fault.label == name
    assert ("not supported" if version else "not installed") in fault.value


def test_local_and_pre_release_versions_are_in_range(with_version):
    with_version("torch", "2.14.0.dev20261101+cu130")
    assert not _faults(versions.check_versions())


def test_ranges_of_both_packages_are_joined():
    ranges = versions.supported_ranges()
    assert not ranges["numpy"].contains("1.26.0")
    assert versions.range_text(ranges["verl"]) == ">=0.9.1,<0.10"
    assert "vllm" not in ranges and "vllm" in versions.supported_ranges("vllm", ("verl",))


def test_a_package_that_is_only_on_the_path_is_a_fault(with_version):
    with_version("verl-aiops", None)
    (fault,) = versions.check_versions()
    assert fault.level == FAULT and "pip install ." in fault.advice


# --- Ray and optional packages -----------------------------------------------------------------------------------


@pytest.fixture
def ray_at(monkeypatch):
    """Function: the address of the cluster that Ray would join."""
    from verl.plugin.platform import get_platform

    from verl_aiops.platform import cluster, cpu

    get_platform()  # chosen once a process: with a cluster that is not there it would be another, for all tests to come

    def use(address):
        for module in (cluster, cpu):
            monkeypatch.setattr(module, "existing_ray_address", lambda: address)

    return use


def test_a_dead_cluster_is_a_fault_at_once(ray_at):
    address = f"127.0.0.1:{free_port()}"
    ray_at(address)
    (fault,) = environment.check_ray()
    assert fault.level == FAULT and f"no cluster answers at {address}" in fault.value and "ray stop" in fault.advice


def test_a_cluster_is_measured_against_a_run_of_one_worker(monkeypatch, ray_at):
    import ray

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray_at(address)
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
        (fault,) = environment.check_ray()
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 1.0})
        (finding,) = environment.check_ray()
    assert fault.level == FAULT and "too small" in fault.value and "has 2 CPUs" in fault.advice
    assert finding.level == OK and f"cluster at {address}, large enough" in finding.value


def test_trl_without_its_value_head_is_a_fault_only_where_verl_sees_it(monkeypatch, with_version):
    import verl.utils.import_utils as import_utils

    from verl_aiops.verl_patches import trl_guard

    with_version("trl", "1.16.0")
    monkeypatch.setattr(trl_guard, "_has_value_head", lambda: False)
    for seen, level in ((True, FAULT), (False, INFO)):
        monkeypatch.setattr(import_utils, "is_trl_available", lambda seen=seen: seen)
        (finding,) = environment.check_trl()
        assert finding.level == level and "1.16.0, without value-head class" in finding.value
    monkeypatch.setattr(trl_guard, "_has_value_head", lambda: True)
    (finding,) = environment.check_trl()
    assert finding.level == OK
    with_version("trl", None)
    (finding,) = environment.check_trl()
    assert finding.level == INFO and finding.value == "not installed"


def test_a_rollout_counts_as_usable_only_if_it_imports(monkeypatch, tmp_path):
    (tmp_path / "broken_engine.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    (tmp_path / "sound_engine.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(environment, "ROLLOUTS", ("broken_engine", "sound_engine"))
    broken, sound, hf = environment.check_rollouts()
    assert broken.level == INFO and broken.value.endswith("import fails: ImportError: libcudart.so.13: cannot open")
    assert sound.level == OK and hf.level == OK and not hf.advice
    monkeypatch.setattr(environment, "ROLLOUTS", ("no_such_engine",))
    absent, hf = environment.check_rollouts()
    assert absent.value == "not installed" and hf.label == "rollout hf" and "only one usable" in hf.advice


@pytest.mark.parametrize("spec, level, follows", [(None, INFO, "sdpa"), (object(), OK, "packed")])
def test_flash_attn_says_what_follows(monkeypatch, spec, level, follows):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (finding,) = environment.check_flash_attn()
    assert finding.level == level and follows in finding.advice


@pytest.mark.parametrize(
    "gpu, kernel, level, said",
    [
        (False, False, OK, "on a CPU by PyTorch's sdpa"),
        (True, True, OK, "kernel for segments of many lengths"),
        (True, False, INFO, "no kernel for segments"),
    ],
)
def test_whether_prompts_can_be_shared_here(monkeypatch, gpu, kernel, level, said):
    import torch

    from verl_aiops.trainers.logprobs import attention

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda: kernel)
    (finding,) = environment.check_attention()
    assert finding.level == level and said in finding.value
    assert bool(finding.advice) is (level == INFO)

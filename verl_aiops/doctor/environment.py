"""What a run has to work with: Ray's resources, and the optional packages with what follows from each."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable

from packaging.specifiers import SpecifierSet

from verl_aiops.doctor.finding import FAULT, INFO, OK, Finding
from verl_aiops.doctor.versions import PACKAGE, installed_version, range_text, supported_ranges

__all__ = ["check_attention", "check_flash_attn", "check_ray", "check_rollouts", "check_trl"]

ROLLOUTS = ("vllm", "sglang")
NEEDED = "PyTorch 2.10 or flash-attn"
IMPORT_SECONDS = 20.0


def check_ray() -> Iterable[Finding]:
    """What Ray has or would have, against what a run of one worker holds."""
    from omegaconf import OmegaConf
    from verl.utils.device import get_device_name

    from verl_aiops.platform.cluster import ClusterError, answers, check_cluster, logical_cpus_needed
    from verl_aiops.platform.cpu import existing_ray_address

    config = OmegaConf.create({"trainer": {"n_gpus_per_node": 1, "nnodes": 1}})
    holds = f"a run of 1 worker holds {logical_cpus_needed(config)} logical CPUs and 1 logical GPU"
    address = existing_ray_address()
    if address and not answers(address):
        advice = "Start the cluster, or run `ray stop` and unset RAY_ADDRESS, so that a run starts its own."
        value = f"no cluster answers at {address}, and a run would wait for it"
        yield Finding("ray", FAULT, "resources", value, advice)
        return
    try:
        lines = check_cluster(config, set(), get_device_name())
    except ClusterError as error:
        advice = str(error)[:1].upper() + str(error)[1:]
        yield Finding("ray", FAULT, "resources", f"cluster at {address}, too small", advice)
        return
    if address:
        yield Finding("ray", OK, "resources", f"cluster at {address}, large enough: {holds}")
        return
    import torch

    cpus, gpus = os.cpu_count(), torch.cuda.device_count()
    advice = f"The run declares what is missing: {', '.join(lines)}." if lines else ""
    value = f"no cluster; a run starts its own with {cpus} CPUs and {gpus} GPUs; {holds}"
    yield Finding("ray", OK, "resources", value, advice)


def check_trl() -> Iterable[Finding]:
    """TRL 1.x lacks a class that verl patches; the plug-in hides such a TRL from verl."""
    from verl_aiops.seam.rollout import is_trl_available
    from verl_aiops.verl_patches.trl_guard import only_with_value_head

    version = installed_version("trl")
    if version is None:
        yield Finding("optional", INFO, "trl", "not installed", "train-rm, trl-dpo and comparisons with TRL need it.")
    elif only_with_value_head(lambda: True)():
        yield Finding("optional", OK, "trl", f"{version}, with value-head class")
    elif is_trl_available():
        advice = "verl will fail to load any model beside it. Load the plug-in, or uninstall trl."
        yield Finding("optional", FAULT, "trl", f"{version}, without value-head class", advice)
    else:
        advice = "Hidden from verl, which would look for the class; training does not need it."
        yield Finding("optional", INFO, "trl", f"{version}, without value-head class", advice)


def check_flash_attn() -> Iterable[Finding]:
    """flash-attn decides between packed and padded rows."""
    if importlib.util.find_spec("flash_attn") is None:
        advice = "Rows are padded (use_remove_padding=False) and attention is PyTorch's sdpa."
        yield Finding("optional", INFO, "flash-attn", "not installed", advice)
    else:
        advice = "On a GPU rows are packed (use_remove_padding=True)."
        yield Finding("optional", OK, "flash-attn", installed_version("flash-attn") or "installed", advice)


def check_attention() -> Iterable[Finding]:
    """What lets each prompt go through a model once: on a GPU a kernel for segments of many lengths."""
    import torch

    from verl_aiops.trainers.logprobs.attention import has_varlen_kernel

    label = "shared prompts"
    if not torch.cuda.is_available():
        yield Finding("optional", OK, label, "on a CPU by PyTorch's sdpa, segment by segment")
    elif has_varlen_kernel():
        whose = "flash-attn's" if importlib.util.find_spec("flash_attn") is not None else "PyTorch's"
        yield Finding("optional", OK, label, f"by {whose} kernel for segments of many lengths")
    else:
        advice = f"logprob_backend=auto is rows for DPO and stock for GRPO and PPO; {NEEDED} brings it."
        yield Finding("optional", INFO, label, "no kernel for segments of many lengths", advice)


def check_rollouts() -> Iterable[Finding]:
    """Generation engines: each is imported in a process of its own, as a broken one can end the process."""
    usable = 0
    for name in ROLLOUTS:
        if importlib.util.find_spec(name) is None:
            advice = f'pip install "{PACKAGE}[{name}]", in an environment without the other engine.'
            yield Finding("optional", INFO, f"rollout {name}", "not installed", advice)
            continue
        whose, ranges = next(
            ((whose, ranges) for whose in (PACKAGE, "verl") if name in (ranges := supported_ranges(name, (whose,)))),
            ("verl", {}),
        )
        pinned = range_text(ranges.get(name, SpecifierSet())) or "any version"
        value = f"{installed_version(name) or 'installed'} ({whose}'s extra asks for {pinned})"
        command = [sys.executable, "-c", f"import {name}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=IMPORT_SECONDS)
        except subprocess.TimeoutExpired:
            yield Finding("optional", INFO, f"rollout {name}", f"{value}: import takes over {IMPORT_SECONDS:.0f} s")
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
            yield Finding("optional", INFO, f"rollout {name}", f"{value}: import fails: {last}")
        else:
            usable += 1
            yield Finding("optional", OK, f"rollout {name}", value)
    value = f"transformers {installed_version('transformers')}, on this machine's CPU or GPU, for small models"
    advice = "" if usable else "The only one usable here; offline DPO generates nothing and needs none."
    yield Finding("optional", OK, "rollout hf", value, advice)

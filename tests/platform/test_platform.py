"""The CPU platform: when it is chosen, what Ray gets to run on, and the calls of verl that stand in for CUDA's."""

import inspect
import os
import socket

import pytest
import torch
from omegaconf import OmegaConf

from verl_aiops.platform import cluster, cpu
from verl_aiops.platform.cluster import ClusterError, answers, check_cluster, check_gpus_are_real, logical_cpus_needed
from verl_aiops.platform.cpu import PlatformCPU, cpu_device_module, existing_ray_address
from verl_aiops.verl_patches import process_group, trl_guard

CPUS = "ray_kwargs.ray_init.num_cpus"
GPUS = "ray_kwargs.ray_init.num_gpus"
PLATFORM = "ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM"
UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"


def _config(workers=1, nodes=1, units=8, **ray_init):
    """The parts of verl's configuration that decide what Ray needs, with verl's own defaults."""
    return OmegaConf.create(
        {
            "trainer": {"n_gpus_per_node": workers, "nnodes": nodes},
            "transfer_queue": {"backend": {"SimpleStorage": {"num_data_storage_units": units}}},
            "ray_kwargs": {"ray_init": {"num_cpus": None, **ray_init}},
        }
    )


# --- a cluster that this run will start ----------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """machine(cpus): no Ray runs, and the machine has so many cores."""

    def have(cpus):
        monkeypatch.setattr(cluster, "existing_ray_address", lambda: None)
        monkeypatch.setattr(cluster.os, "cpu_count", lambda: cpus)

    return have


def test_needed_cpus_grow_with_workers_and_storage_units():
    assert logical_cpus_needed(_config(units=1)) == 6
    assert logical_cpus_needed(_config(units=8)) == 13
    assert logical_cpus_needed(_config(workers=8, nodes=2, units=1)) == 3 + 3 * 16


def test_a_small_machine_gets_logical_cpus_gpus_and_one_storage_unit(machine):
    machine(2)
    config = _config(workers=2)
    lines = check_cluster(config, set(), "cpu")
    assert OmegaConf.select(config, UNITS) == 1
    assert OmegaConf.select(config, CPUS) == 16
    assert OmegaConf.select(config, GPUS) == 2
    assert lines == [f"{UNITS}=1", f"{CPUS}=16", f"{GPUS}=2"]


def test_many_workers_get_as_many_logical_cpus_as_they_hold(machine):
    machine(2)
    config = _config(workers=16)
    check_cluster(config, set(), "cpu")
    assert OmegaConf.select(config, CPUS) == logical_cpus_needed(config) == 51


def test_a_struct_configuration_as_hydra_makes_it_takes_new_keys(machine):
    machine(2)
    config = _config()
    OmegaConf.set_struct(config, True)
    check_cluster(config, set(), "cpu")
    assert OmegaConf.select(config, GPUS) == 1


def test_nothing_is_changed_where_there_is_enough(machine):
    machine(64)
    config = _config(units=2)
    before = OmegaConf.to_container(config)
    assert check_cluster(config, set(), "cuda") == []
    assert OmegaConf.to_container(config) == before
    config = _config(units=1, num_cpus=6, num_gpus=1)
    before = OmegaConf.to_container(config)
    assert check_cluster(config, {CPUS, GPUS}, "cpu") == []
    assert OmegaConf.to_container(config) == before


def test_accelerators_are_counted_by_ray_itself(machine):
    machine(64)
    config = _config(workers=8)
    check_cluster(config, set(), "cuda")
    assert OmegaConf.select(config, GPUS) is None


def test_storage_units_of_the_user_stay_and_are_paid_for(machine):
    machine(2)
    config = _config(units=8)
    check_cluster(config, {UNITS}, "cpu")
    assert OmegaConf.select(config, UNITS) == 8
    with pytest.raises(ClusterError, match=f"{CPUS}=12, but the run's Ray actors hold 13"):
        check_cluster(_config(units=8, num_cpus=12), {UNITS, CPUS}, "cpu")


def test_too_few_cpus_are_refused_with_the_number_needed(machine):
    machine(64)
    with pytest.raises(ClusterError) as error:
        check_cluster(_config(num_cpus=5), {CPUS}, "cuda")
    assert f"{CPUS}=5" in str(error.value) and f"Set {CPUS}=6 or more" in str(error.value)


def test_too_few_logical_gpus_are_refused(machine):
    machine(64)
    with pytest.raises(ClusterError, match=f"{GPUS}=1, but 4 workers are asked for"):
        check_cluster(_config(workers=2, nodes=2, num_gpus=1), {GPUS}, "cpu")


# --- a cluster that runs already -----------------------------------------------------------------------------------


@pytest.fixture
def running(monkeypatch):
    """running(**resources): a Ray cluster with them; returns the calls that reached Ray."""
    import ray

    calls = []

    def have(address="10.0.0.1:6379", **resources):
        monkeypatch.setattr(cluster, "existing_ray_address", lambda: address)
        monkeypatch.setattr(cluster, "answers", lambda address: True)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", lambda **options: calls.append(options["address"]))
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
        monkeypatch.setattr(cluster, "ask_nodes", lambda paths, address: {"head": [], "worker": list(paths)})
        return calls

    return have


def test_a_large_enough_cluster_is_asked_once_and_left(running):
    calls = running(CPU=6.0, GPU=1.0)
    config = _config()
    assert check_cluster(config, set(), "cpu") == [f"{UNITS}=1", f"{PLATFORM}=cpu"]
    assert calls == ["10.0.0.1:6379", "shutdown"]
    assert OmegaConf.select(config, CPUS) is None and OmegaConf.select(config, GPUS) is None


def test_npus_count_as_accelerators(running):
    calls = running(CPU=64.0, NPU=8.0)
    check_cluster(_config(workers=8), set(), "npu")
    assert calls == ["10.0.0.1:6379", "shutdown"]


@pytest.mark.parametrize(
    "resources, said",
    [
        ({"CPU": 2.0, "GPU": 1.0}, ["has 2 CPUs", "hold 6", "--num-cpus=16"]),
        ({"CPU": 64.0}, ["has 0 GPUs, but 1 workers", "VERL_PLATFORM=cpu", "--num-gpus=1"]),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_and_left(running, resources, said):
    calls = running(**resources)
    with pytest.raises(ClusterError) as error:
        check_cluster(_config(), set(), "cuda")
    assert [part for part in said if part not in str(error.value)] == []
    assert calls[-1] == "shutdown"


def test_the_address_of_the_configuration_is_used(running):
    calls = running(address=None, CPU=64.0, GPU=8.0)
    check_cluster(_config(address="ray://head:10001"), set(), "cuda")
    assert calls == ["ray://head:10001", "shutdown"]


def test_a_cluster_keeps_its_resources_so_a_presets_are_taken_back(running):
    """Ray refuses num_cpus and num_gpus when it joins a cluster."""
    running(CPU=16.0, GPU=1.0)
    config = _config(num_cpus=16, num_gpus=1)
    lines = check_cluster(config, set(), "cpu")
    assert OmegaConf.select(config, CPUS) is None and OmegaConf.select(config, GPUS) is None
    assert f"{CPUS}=None" in lines and f"{GPUS}=None" in lines
    with pytest.raises(ClusterError, match=f"{CPUS}=16 .*10.0.0.1:6379"):
        check_cluster(_config(num_cpus=16), {CPUS}, "cpu")


def test_workers_on_a_clusters_cpus_are_told_so(running, machine):
    """They have the environment of the `ray start` on their node, and take CUDA where it says nothing."""
    running(CPU=16.0, GPU=1.0)
    config = _config(runtime_env={"py_executable": None})
    OmegaConf.set_struct(config, True)
    check_cluster(config, set(), "cpu")
    assert config.ray_kwargs.ray_init.runtime_env == {"py_executable": None, "env_vars": {"VERL_PLATFORM": "cpu"}}
    assert f"{PLATFORM}=cpu" not in check_cluster(config, {PLATFORM}, "cpu")
    with pytest.raises(ClusterError, match=f"{PLATFORM}=nvidia, but this process has the CPU.*Remove the setting"):
        check_cluster(_config(runtime_env={"env_vars": {"VERL_PLATFORM": "nvidia"}}), {PLATFORM}, "cpu")
    for device in ("cuda", "npu"):
        config = _config()
        check_cluster(config, set(), device)
        assert OmegaConf.select(config, PLATFORM) is None
    machine(64)
    config = _config()
    check_cluster(config, set(), "cpu")
    assert OmegaConf.select(config, PLATFORM) is None  # a Ray of one's own has this process's environment


@pytest.mark.parametrize("check", [check_cluster, lambda config, given, name: check_gpus_are_real(config, name)])
def test_gpus_that_no_node_has_are_refused_to_a_run_on_cuda(running, monkeypatch, check):
    running(CPU=16.0, GPU=1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = []

    def none_there(paths, address):
        asked.append(address)
        return {"head": list(paths), "worker": list(paths)}

    check(_config(), set(), "cuda")  # one node has
    monkeypatch.setattr(cluster, "ask_nodes", none_there)
    with pytest.raises(ClusterError) as error:
        check(_config(), set(), "cuda")
    assert asked == ["10.0.0.1:6379"]
    assert "at 10.0.0.1:6379 declares 1 GPUs, but none of its nodes has one" in str(error.value)
    assert "set VERL_PLATFORM=cpu in the environment of this command" in str(error.value)


def test_nobody_is_asked_for_gpus_where_they_are_known(running, monkeypatch):
    def nobody(paths, address):
        raise AssertionError("asked")

    def refuse(available, name, **resources):
        calls = running(CPU=16.0, **resources)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(cluster, "ask_nodes", nobody)
        check_gpus_are_real(_config(), name)
        return calls

    assert refuse(False, "cuda", GPU=1.0, **{"accelerator_type:H200": 1.0}) == ["10.0.0.1:6379", "shutdown"]
    assert refuse(False, "cuda")[-1] == "shutdown"  # too few, which the numbers say
    for available, name in ((True, "cuda"), (False, "cpu"), (False, "npu")):
        calls = len(refuse(False, "cuda"))
        assert len(refuse(available, name, GPU=1.0)) == calls

    def silent(paths, address):
        raise TimeoutError

    running(CPU=16.0, GPU=1.0)
    monkeypatch.setattr(cluster, "ask_nodes", silent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_gpus_are_real(_config(), "cuda")
    monkeypatch.setattr(cluster, "existing_ray_address", lambda: None)
    check_gpus_are_real(_config(), "cuda")


def test_address_local_starts_a_cluster_of_its_own(running, monkeypatch):
    calls = running(CPU=2.0)
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 2)
    config = _config(address="local")
    check_cluster(config, set(), "cpu")
    assert OmegaConf.select(config, CPUS) == 16 and calls == []


def test_a_cluster_that_is_gone_is_named_at_once(running, monkeypatch):
    """Ray itself tries to reach it for many minutes."""
    calls = running(address="127.0.0.1:9")
    monkeypatch.setattr(cluster, "answers", answers)
    with pytest.raises(ClusterError, match="nothing answers at 127.0.0.1:9.*RAY_ADDRESS.*ray stop"):
        check_cluster(_config(), set(), "cpu")
    assert calls == []


def test_whether_something_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert answers(f"127.0.0.1:{port}") and answers(f"ray://127.0.0.1:{port}")
    assert not answers(f"127.0.0.1:{port}")
    assert answers("auto")  # for Ray to resolve


def test_which_cluster_ray_would_join(monkeypatch):
    from ray._private import utils

    monkeypatch.setattr(utils, "read_ray_address", lambda: "10.0.0.2:6379")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert existing_ray_address() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert existing_ray_address() is None
    monkeypatch.delenv("RAY_ADDRESS")
    assert existing_ray_address() == "10.0.0.2:6379"
    monkeypatch.setattr(utils, "read_ray_address", lambda: None)
    assert existing_ray_address() is None


# --- which platform is chosen --------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch):
    """A machine without accelerator and without Ray, and no word of the user on the platform."""
    monkeypatch.setenv("VERL_PLATFORM", "")
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "")
    monkeypatch.delenv("VERL_ENGINE_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cpu, "existing_ray_address", lambda: None)
    monkeypatch.setattr(cpu, "_inside_ray_worker", lambda: False)
    return monkeypatch


def _detected(bare):
    from verl.plugin.platform import platform_manager as manager

    for name in manager.PlatformRegistry.registered_names():
        if name != "cpu":
            bare.setattr(manager.PlatformRegistry.get(name), "is_platform_available", lambda self, **_: False)
    return manager._detect_platform_name()


def test_a_machine_without_accelerator_gets_the_cpu_and_hands_it_on(bare):
    assert _detected(bare) == "cpu"
    assert os.environ["VERL_PLATFORM"] == "cpu"
    assert os.environ["VERL_ENGINE_DEVICE"] == "cuda"


def test_an_explicit_platform_wins(bare):
    bare.setenv("VERL_PLATFORM", "nvidia")
    assert _detected(bare) == "nvidia"
    assert os.environ["VERL_PLATFORM"] == "nvidia"


@pytest.mark.parametrize("clue", ["accelerator", "worker", "cluster"])
def test_the_cpu_is_never_chosen_where_an_accelerator_may_be(bare, clue):
    """A driver or worker on a node without GPU belongs to a cluster that may have some."""
    if clue == "accelerator":
        bare.setattr(torch.cuda, "is_available", lambda: True)
    elif clue == "worker":
        bare.setattr(cpu, "_inside_ray_worker", lambda: True)
    else:
        bare.setattr(cpu, "existing_ray_address", lambda: "10.0.0.1:6379")
    assert _detected(bare) == "nvidia"
    assert os.environ["VERL_PLATFORM"] == ""


def test_the_cpu_is_asked_last(bare):
    from verl.plugin.platform import PlatformRegistry

    assert PlatformRegistry.registered_names()[-1] == "cpu"


def test_this_process_is_no_ray_worker():
    assert cpu._inside_ray_worker() is False


# --- what verl calls on it -----------------------------------------------------------------------------------------


def test_every_method_of_verls_platform_is_there_with_its_signature(bare):
    from verl.plugin.platform.platform_base import PlatformBase

    platform = PlatformCPU()  # an abstract method that verl adds fails here
    for name in PlatformBase.__abstractmethods__:
        theirs, ours = getattr(PlatformBase, name), getattr(PlatformCPU, name)
        if callable(theirs):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
    assert (platform.device_name, platform.communication_backend_name()) == ("cpu", "gloo")
    assert platform.ray_resource_name() == "GPU"
    assert platform.device_module is cpu_device_module


def test_the_engine_registry_hands_out_the_fsdp_engine(bare):
    from verl.utils import device
    from verl.workers.engine import EngineRegistry

    platform = PlatformCPU()
    bare.setattr(device, "get_platform", lambda: platform)
    for strategy in ("fsdp", "fsdp2"):
        assert EngineRegistry.get_engine_cls("language_model", strategy).__name__ == "FSDPEngineWithLMHead"


def test_random_states_come_back_and_memory_is_measured():
    with torch.random.fork_rng(devices=[]):
        cpu_device_module.manual_seed(5)
        state = cpu_device_module.get_rng_state()
        first = torch.rand(3)
        cpu_device_module.set_rng_state(state)
        assert torch.equal(torch.rand(3), first)
    held = torch.ones(1 << 22)
    assert cpu_device_module.memory_allocated() > held.nbytes
    assert cpu_device_module.max_memory_allocated() >= held.nbytes
    free, total = cpu_device_module.mem_get_info()
    assert 0 < free <= total


# --- process groups ------------------------------------------------------------------------------------------------


@pytest.fixture
def groups(monkeypatch):
    """Arguments of every torch.distributed.init_process_group call, in place of the call."""
    calls = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: calls.append(options))
    monkeypatch.setattr(process_group, "share_cores", lambda workers: calls.append(workers))
    monkeypatch.setenv("DIST_INIT_METHOD", "tcp://10.0.0.9:29500")
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("RAY_LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    return calls


def _on(monkeypatch, device, backend):
    from verl.utils import device as verl_device
    from verl.utils import distributed

    for module in (verl_device, distributed):
        monkeypatch.setattr(module, "get_device_name", lambda: device)
    monkeypatch.setattr(distributed, "get_nccl_backend", lambda: backend)


@pytest.mark.parametrize("name", ["initialize_global_process_group", "initialize_global_process_group_ray"])
def test_on_cpu_only_the_backend_differs_from_verls_call(monkeypatch, groups, name):
    from verl.utils import distributed

    wrapped = getattr(distributed, name)
    _on(monkeypatch, "cpu", "gloo")
    result = wrapped(timeout_second=60)
    ours = next(call for call in groups if isinstance(call, dict))
    groups.clear()
    assert wrapped.__wrapped__(timeout_second=60) == result
    (theirs,) = groups
    assert theirs.pop("backend") == "cpu:gloo,cpu:gloo"  # what torch refuses, and why the function is replaced
    assert ours.pop("backend") == "cpu:gloo"
    assert ours == theirs


def test_workers_of_one_machine_share_its_cores(monkeypatch, groups):
    from verl.utils import distributed

    _on(monkeypatch, "cpu", "gloo")
    distributed.initialize_global_process_group_ray()
    assert groups[0] == 2
    monkeypatch.undo()
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(process_group.os, "cpu_count", lambda: 8)
    for workers in (1, 2, 3, 16, 0):
        process_group.share_cores(workers)
    assert threads == [8, 4, 2, 1, 8]


@pytest.mark.parametrize("name", ["initialize_global_process_group", "initialize_global_process_group_ray"])
def test_other_platforms_get_verls_own_call(monkeypatch, groups, name):
    from verl.utils import distributed

    _on(monkeypatch, "cuda", "nccl")
    monkeypatch.setattr(distributed, "get_torch_device", lambda: cpu_device_module)
    getattr(distributed, name)()
    (call,) = groups
    assert call["backend"] == "cpu:gloo,cuda:nccl"


def test_a_backend_that_is_asked_for_is_kept(monkeypatch, groups):
    from verl.utils import distributed

    _on(monkeypatch, "cpu", "gloo")
    distributed.initialize_global_process_group_ray(timeout_second=None, backend="mpi")
    assert [call["backend"] for call in groups] == ["mpi"]


# --- TRL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout, verl_sees, expected",
    [
        pytest.param(["experimental/ppo/__init__.py"], True, True, id="TRL with experimental.ppo"),
        pytest.param(["models/modeling_value_head.py"], True, True, id="TRL before 1.0"),
        pytest.param(["models/utils.py"], True, False, id="TRL without the class"),
        pytest.param(None, True, False, id="TRL gone"),
        pytest.param(["experimental/ppo/__init__.py"], False, False, id="verl sees none"),
    ],
)
def test_verl_sees_trl_only_with_its_value_head(monkeypatch, tmp_path, layout, verl_sees, expected):
    from importlib.machinery import ModuleSpec

    spec = None
    if layout is not None:
        spec = ModuleSpec("trl", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        for file in layout:
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).touch()
    monkeypatch.setattr(trl_guard.importlib.util, "find_spec", lambda name: spec)
    assert trl_guard.only_with_value_head(lambda: verl_sees)() is expected

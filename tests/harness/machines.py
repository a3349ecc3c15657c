"""Which machine a test's code thinks it is on."""

import pytest


@pytest.fixture
def platform(monkeypatch):
    """platform(name): the device that verl finds; a CPU without Ray cluster unless a test says otherwise."""
    from verl.utils import device

    from verl_aiops.platform import cluster
    from verl_aiops.trainers.preflight import machine

    def have(name):
        monkeypatch.setattr(device, "get_device_name", lambda: name)

    have("cpu")
    for module in (cluster, machine):
        monkeypatch.setattr(module, "existing_ray_address", lambda: None)
    return have

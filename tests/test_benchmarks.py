"""How the benchmarks read a speed from what they measured."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the folder, by its name; what it imports of its neighbours is found."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_a_speed_is_the_time_of_all_steps_after_the_first_over_their_number(benchmark):
    """A step that seemed to take no time stands beside one that took two steps' time."""
    assert benchmark("dpo_runs").step_seconds([11.0, 12.0, 0.0, 4.5, 5.5]) == 5.5


def test_a_point_of_the_scaling_is_its_mean_and_nothing_where_it_did_not_fit(benchmark):
    module = benchmark("bench_scaling")
    assert module.mean([8.0, 0.0, 1.0]) == 3.0
    assert math.isnan(module.mean([]))


@pytest.mark.parametrize("steps", ["1", "8"])
def test_fewer_than_eight_timed_steps_are_refused(benchmark, steps, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_dpo.py", "--model", "MODEL", "--steps", steps])
    with pytest.raises(SystemExit) as end:
        benchmark("bench_dpo").main()
    assert end.value.code == 2 and "9 at least" in capsys.readouterr().err


def test_every_variant_has_a_flop_law(benchmark, tiny_model_dir):
    flops = benchmark("bench_dpo").needed_flops(str(tiny_model_dir), 300, 30)
    assert set(flops) == set(benchmark("dpo_runs").VARIANTS)
    assert flops["ours"] < flops["rows"] < flops["TRL, cached reference"] < flops["TRL"]

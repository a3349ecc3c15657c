"""`scripts/verl_touch_points.py`: another verl compared by its files alone, and the list in docs/verl_versions.md."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("verl_touch_points", ROOT / "scripts" / "verl_touch_points.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FILES = {
    "verl/__init__.py": "",
    "verl/engine/__init__.py": "from .base import Engine, step\nfrom .more import *\n"
    "try:\n    import torch\nexcept ImportError:\n    torch = None\n",
    "verl/engine/base.py": "class Base:\n    rate = 1\n    def run(self, data, *rest, size=1, **more): ...\n\n"
    "class Engine(Base):\n    def __init__(self): self._qat = 0\n\ndef step(data, size): ...\n",
    "verl/engine/more.py": "if True:\n    ALL = {}\n\nasync def wait(seconds): ...\n",
}


@pytest.fixture
def source(script, tmp_path):
    def made(**changes):
        for name, text in {**FILES, **changes}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return script.Source(tmp_path)

    return made


@pytest.mark.parametrize(
    "path, shape",
    [
        ("verl.engine.base:step", "data, size"),
        ("verl.engine:step", "data, size"),  # through the package's import
        ("verl.engine:wait", "seconds"),  # through a star
        ("verl.engine:ALL", ""),
        ("verl.engine:torch", ""),
        ("verl.engine:base", ""),  # a module
        ("verl.engine:Engine", ""),
        ("verl.engine:Engine.run", "self, data, *rest, size, **more"),  # inherited
        ("verl.engine:Engine.rate", ""),
        ("verl.engine:Engine._qat", ""),  # set by a method
        ("verl.engine:Engine.gone", None),
        ("verl.engine:gone", None),
        ("verl.gone:step", None),
    ],
)
def test_names_are_found_as_python_would_without_importing(source, path, shape):
    assert source().shape(path) == shape


@pytest.mark.parametrize(
    "base, other, said",
    [
        ("a, b", "a, b", ""),
        ("a, b", None, "gone"),
        ("", None, "gone"),
        (None, None, ""),
        ("a, b", "a", "without `b`"),
        ("a", "a, c", "with `c`"),
        ("a, b", "a, c", "without `b` and with `c`"),
        ("a, b", "b, a", "in another order"),
    ],
)
def test_differences_are_told(script, base, other, said):
    assert script.difference(base, other) == said


def test_another_verl_is_told_and_the_exit_code_is_1(script, monkeypatch, tmp_path, source, capsys):
    source(**{"verl/engine/base.py": "def step(data, seed): ...\n"})
    other = script.Source(tmp_path)
    folder = tmp_path / "installed"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    found = type("Spec", (), {"submodule_search_locations": [str(folder / "verl")]})
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: found)
    points = [
        script.Point("engine", path, "") for path in ("verl.engine:step", "verl.engine:Engine", "verl.engine:wait")
    ]
    monkeypatch.setattr(script, "points", lambda: iter(points))
    assert script.main(["--source", f"new={other.folder}"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "new: engine: verl.engine:step: without `size` and with `seed`",
        "new: engine: verl.engine:Engine: gone",
        "3 touch points; 2 otherwise than in the verl that is installed",
    ]
    assert script.main([]) == 0


def test_a_list_is_made_again_without_the_other_verls(script):
    old = "| kind | name | what for | main | neo |\n| --- | --- | --- | --- | --- |\n"
    old += "| engine | `verl.a:b` | was | gone |  |\n| engine | `verl.a:old` | x |  |  |\n"
    rows = [script.Point("engine", "verl.a:b", "is"), script.Point("trainer", "verl.a:new", "more")]
    assert script.table_again(rows, old).splitlines()[2:] == [
        "| engine | `verl.a:b` | is | gone |  |",
        "| trainer | `verl.a:new` | more | ? | ? |",
    ]


def test_a_folder_without_verl_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match="expected a folder with verl's package in it"):
        script.main(["--source", f"x={tmp_path}"])


def test_the_page_lists_all_touch_points(script):
    page = (ROOT / "docs" / "verl_versions.md").read_text(encoding="utf-8")
    listed = page.partition(script.BEGIN)[2].partition(script.END)[0]
    rows = re.findall(r"^\| ([\w ]+?) \| `([^`]+)` \| (.*?) \|", listed, re.M)
    points = [(point.kind, point.path, point.why) for point in script.points()]
    assert rows == points, "python scripts/verl_touch_points.py --write"
    spec = importlib.util.find_spec("verl")
    installed = script.Source(Path(spec.submodule_search_locations[0]).parent)
    assert [path for _, path, _ in points if installed.shape(path) is None] == []

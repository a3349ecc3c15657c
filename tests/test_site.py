"""The site that mkdocs.yml makes of docs/ and README: whole, without a warning, with search and an API reference."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("mkdocs", "material", "mkdocstrings", "griffe"):  # the extra `docs`, a part of `dev`
    pytest.importorskip(needed)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import docstrings  # noqa: E402
import site_hooks  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING -" not in built.stderr
    return folder


def test_every_page_is_there_and_asks_no_other_server_for_anything(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("index.html")}
    for source in (ROOT / "docs").rglob("*.md"):
        name = source.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert f"{name.removesuffix('index')}/index.html".replace("//", "/") in pages
    assert {"index.html", "contributing/index.html", "changelog/index.html"} <= pages
    for page in pages:
        html = (site / page).read_text(encoding="utf-8")
        assert re.findall(r"<(?:link[^>]*stylesheet|script|img)[^>]*(?:src|href)=\"?https?:", html) == [], page


def test_what_pages_link_to_outside_docs_came_along(site):
    assert (site / "examples" / "run_dpo.sh").read_bytes() == (ROOT / "examples" / "run_dpo.sh").read_bytes()
    (picture,) = site.glob("benchmarks/results/rl_h200_1.5b.png")
    assert picture.stat().st_size == (ROOT / "benchmarks" / "results" / picture.name).stat().st_size


def test_search_finds_both_languages_and_the_api(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert index["config"]["lang"] == ["en", "zh"]
    found = {entry["location"]: entry["text"] for entry in index["docs"]}
    assert any("奖励" in text for place, text in found.items() if place.startswith("zh/"))
    assert "api/losses/#verl_aiops.losses.compute_dpo_loss" in found


def test_the_api_is_what_the_modules_say_is_public(site):
    import verl_aiops.incidents
    import verl_aiops.losses

    for module, page in ((verl_aiops.losses, "losses"), (verl_aiops.incidents, "incidents")):
        html = (site / "api" / page / "index.html").read_text(encoding="utf-8")
        for name in module.__all__:
            one = getattr(module, name)
            # a function or class; under a second name it is not described again
            if getattr(one, "__name__", None) == name and one.__doc__:
                assert f'id="{module.__name__}.{name}"' in html, name
    losses = (site / "api" / "losses" / "index.html").read_text(encoding="utf-8")
    assert "sums of the answers" in losses and "policy_rejected_logps" in losses


def test_links_are_turned_to_where_their_targets_stand():
    text = "[a](docs/rl.md#x) [b](examples/run_dpo.sh) [c](verl_aiops) [d](docs/none.md) [e](https://f.org/docs/rl.md)"
    turned = "[a](rl.md#x) [b](examples/run_dpo.sh) c [d](docs/none.md) [e](https://f.org/docs/rl.md)"
    assert site_hooks.turned(text, "index.md") == turned
    text = "[a](../../README.md#data) [b](../rl.md) ![c](../rl.md) [d](12-serving.md)"
    assert site_hooks.turned(text, "zh/11-preference-learning-dpo-grpo-rm.md") == (
        "[a](../index.md#data) [b](../rl.md) ![c](../rl.md) [d](12-serving.md)"
    )


def test_arguments_that_are_described_together_are_read_apart():
    text = "Do it.\n\nArgs:\n    low, high: (n,) bounds,\n        of floats.\n    of: what, and more.\n\n"
    text += "Returns:\n    a, b: no."
    assert docstrings.apart(text) == (
        "Do it.\n\nArgs:\n    low: (n,) bounds,\n        of floats.\n    high: as `low`, in this order.\n"
        "    of: what, and more.\n\nReturns:\n    a, b: no."
    )
    assert docstrings.apart("Do it.") == "Do it."

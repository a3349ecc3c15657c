"""examples/first_hour.ipynb from its first cell to its last, with the tiny model for the one that it fetches."""

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")  # the extra `notebook`, a part of `dev`
NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "first_hour.ipynb"


def test_it_carries_no_output_of_an_earlier_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


def test_pages_that_it_names_are_there():
    named = re.findall(r"`(docs/[\w./-]+\.md)`", NOTEBOOK.read_text(encoding="utf-8"))
    assert named and all((NOTEBOOK.parents[1] / name).is_file() for name in named)


@pytest.mark.slow
@pytest.mark.e2e
def test_it_runs(tiny_model_dir, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("MODEL", str(tiny_model_dir))
    monkeypatch.setenv("PAIRS", "8")
    monkeypatch.setenv("MAX_PROMPT", "2048")  # its tokens are short
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    for name in ("VERL_FILE_LOGGER_PATH", "TENSORBOARD_DIR", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.get("text", "") for output in outputs)
    assert len(pictures) == 1
    assert "at the start 0.693147" in text and "chosen:" in text
    assert re.search(r"pairs ranked right \(20 held out\) +[\d.]+ %", text)
    assert "| `algorithm.dpo.beta` |" in text and "| `val/loss` |" in text
    if kept := os.environ.get("KEEP_NOTEBOOK"):  # to look at
        nbformat.write(notebook, kept)

"""Mapping files: YAML that says which of the authors' names become which of ours, checked before anything is read."""

from __future__ import annotations

from pathlib import Path

from verl_aiops.incidents.io.yaml_file import Entry
from verl_aiops.incidents.io.yaml_file import read_yaml as load_mapping

__all__ = ["Entry", "built_in", "load_mapping"]

FOLDER = Path(__file__).parent / "mappings"


def built_in(name: str) -> Path:
    """The mapping file that comes with the package for the source `name`."""
    return FOLDER / f"{name}.yaml"

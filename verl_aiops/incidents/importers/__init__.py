"""Public AIOps data sets, as their authors publish them, turned into incidents.

A new source is a module with one `read` function and its `Source` entry, a mapping file of the same name, and one line
in `SOURCES`.
"""

from verl_aiops.incidents.importers.job import Job, Source
from verl_aiops.incidents.importers.mapping import built_in, load_mapping
from verl_aiops.incidents.importers.run import Imported, describe_sources, detect, import_incidents
from verl_aiops.incidents.importers.table import SOURCES

__all__ = [
    "SOURCES",
    "Imported",
    "Job",
    "Source",
    "built_in",
    "describe_sources",
    "detect",
    "import_incidents",
    "load_mapping",
]

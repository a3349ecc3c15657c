"""Public AIOps data sets, as their authors publish them, turned into incidents.

A new source is a module with one `read` function and its `Source` entry, a mapping file of the same name, and one line
in `SOURCES`.
"""

from .job import Job, Source
from .mapping import built_in, load_mapping
from .run import Imported, describe_sources, detect, import_incidents
from .table import SOURCES

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

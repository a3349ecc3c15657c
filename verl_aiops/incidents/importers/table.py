"""The sources that can be imported, by name."""

from .job import Source
from .loghub import SOURCE as LOGHUB
from .nezha import SOURCE as NEZHA
from .openrca import SOURCE as OPENRCA
from .petshop import SOURCE as PETSHOP

SOURCES: dict[str, Source] = {source.name: source for source in (LOGHUB, NEZHA, PETSHOP, OPENRCA)}

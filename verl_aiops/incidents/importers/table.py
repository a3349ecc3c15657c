"""The sources that can be imported, by name."""

from verl_aiops.incidents.importers.job import Source
from verl_aiops.incidents.importers.loghub import SOURCE as LOGHUB
from verl_aiops.incidents.importers.nezha import SOURCE as NEZHA
from verl_aiops.incidents.importers.openrca import SOURCE as OPENRCA
from verl_aiops.incidents.importers.petshop import SOURCE as PETSHOP

SOURCES: dict[str, Source] = {source.name: source for source in (LOGHUB, NEZHA, PETSHOP, OPENRCA)}

"""The AIOps domain: incidents, their simulator, triage prompts, and the data files made of them.

Needs neither torch nor verl and imports nothing else of this package.
"""

from .build import PREFS_COLUMNS, RL_COLUMNS, SFT_COLUMNS, build_prefs, build_rl, build_sft, iter_cases
from .case import Case, PromptOptions, build_case
from .errors import IncidentError, OutputExistsError
from .pairs import DEFAULT_KINDS, KINDS, Pair, PairMaker, PairOptions, parse_kinds
from .prompts import (
    Candidates,
    answer_json,
    choose_candidates,
    direct_message,
    ground_truth,
    reference_analysis,
    round1_message,
    round2_message,
)
from .readback import check_rl_file
from .readers import READERS, read_incidents
from .safety import neutralise
from .schema import Incident, fault_id, normalise_label
from .simulator import Difficulty, Simulator, simulator_taxonomy
from .sources import IncidentSource, file_source, simulator_source
from .split import Fold, split_side
from .summary import Summary
from .taxonomy import System, Taxonomy
from .text import incident_text, neutralise_incident
from .trim import Trimmed, trim_incident
from .writers import RowWriter, row_writers, sibling, write_incidents, write_taxonomy

__all__ = [
    "DEFAULT_KINDS",
    "KINDS",
    "PREFS_COLUMNS",
    "READERS",
    "RL_COLUMNS",
    "SFT_COLUMNS",
    "Candidates",
    "Case",
    "Difficulty",
    "Fold",
    "Incident",
    "IncidentError",
    "IncidentSource",
    "OutputExistsError",
    "Pair",
    "PairMaker",
    "PairOptions",
    "PromptOptions",
    "RowWriter",
    "Simulator",
    "Summary",
    "System",
    "Taxonomy",
    "Trimmed",
    "answer_json",
    "build_case",
    "build_prefs",
    "build_rl",
    "build_sft",
    "check_rl_file",
    "choose_candidates",
    "direct_message",
    "fault_id",
    "file_source",
    "ground_truth",
    "incident_text",
    "iter_cases",
    "neutralise",
    "neutralise_incident",
    "normalise_label",
    "parse_kinds",
    "read_incidents",
    "reference_analysis",
    "round1_message",
    "round2_message",
    "row_writers",
    "sibling",
    "simulator_source",
    "simulator_taxonomy",
    "split_side",
    "trim_incident",
    "write_incidents",
    "write_taxonomy",
]

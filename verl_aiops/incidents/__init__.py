"""The AIOps domain: incidents, their simulator, triage prompts, and the data files made of them.

Needs neither torch nor verl and imports nothing else of this package.
"""

from verl_aiops.incidents.build.case import Case, PromptOptions, build_case
from verl_aiops.incidents.build.feedback import FEEDBACK_COLUMNS, build_feedback
from verl_aiops.incidents.build.files import (
    PREFS_COLUMNS,
    RL_COLUMNS,
    SFT_COLUMNS,
    build_prefs,
    build_rl,
    build_sft,
    iter_cases,
)
from verl_aiops.incidents.build.folds import Fold
from verl_aiops.incidents.build.judged import FORMS
from verl_aiops.incidents.build.pairs import DEFAULT_KINDS, KINDS, Pair, PairMaker, PairOptions, parse_kinds
from verl_aiops.incidents.build.summary import Summary
from verl_aiops.incidents.build.trim import Trimmed, trim_incident
from verl_aiops.incidents.errors import IncidentError, OutputExistsError
from verl_aiops.incidents.io.readback import check_rl_file
from verl_aiops.incidents.io.readers import READERS, read_incidents
from verl_aiops.incidents.io.sources import IncidentSource, file_source, simulator_source
from verl_aiops.incidents.io.writers import (
    RowWriter,
    refuse_taken,
    row_writers,
    sibling,
    write_incidents,
    write_taxonomy,
    write_wording,
)
from verl_aiops.incidents.prompts import (
    Candidates,
    answer_json,
    choose_candidates,
    direct_message,
    ground_truth,
    reference_analysis,
    round1_message,
    round2_message,
)
from verl_aiops.incidents.safety import neutralise
from verl_aiops.incidents.schema import Incident, fault_id, normalise_label
from verl_aiops.incidents.simulator import Difficulty, Simulator, Wordings, simulator_taxonomy
from verl_aiops.incidents.taxonomy import System, Taxonomy
from verl_aiops.incidents.text import incident_text, neutralise_incident
from verl_aiops.incidents.wording import Wording, read_wording
from verl_aiops.split import split_side

__all__ = [
    "DEFAULT_KINDS",
    "FEEDBACK_COLUMNS",
    "FORMS",
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
    "Wording",
    "Wordings",
    "answer_json",
    "build_case",
    "build_feedback",
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
    "read_wording",
    "reference_analysis",
    "refuse_taken",
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
    "write_wording",
]

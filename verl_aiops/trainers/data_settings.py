"""Settings of the files of pairs, in verl's own section ``data``: which column holds what, and how texts are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from verl_aiops.data.dataset import TEXT_PAIRS
from verl_aiops.settings import setting
from verl_aiops.trainers.config import TrainerSettings

__all__ = ["PairFiles"]

# null is the name in the meaning; `prompt_key` is verl's own
_column = partial(setting, None)


@dataclass(frozen=True)
class PairFiles(TrainerSettings):
    """What of ``data`` is ours in a run of offline DPO."""

    section = "data"

    chosen_key: str | None = _column("column of the preferred answer; null: `chosen`")
    rejected_key: str | None = _column("column of the other answer; null: `rejected`")
    system_key: str | None = _column(
        "column of the system message; texts are then messages. null: `system`, `system_prompt` or `system_message`, "
        "beside messages"
    )
    margin_key: str | None = _column("column of the gap of both scores; null: `margin`")
    completions_key: str | None = _column("column of the answers of a group; null: `completions`")
    rank_key: str | None = _column("field of each completion, or with an s the column beside them; null: `rank`")
    score_key: str | None = _column("likewise; null: `score`")
    completion_key: str | None = _column("column of a single answer; null: `completion`")
    label_key: str | None = _column("column of its label; null: `label`")
    id_key: str | None = _column("column of the row's name; null: `id`")
    group_key: str | None = _column("column of what belongs together; null: `group`")
    weight_key: str | None = _column("column of the weight; null: `weight`")
    tools_key: str | None = _column("column of tool descriptions; null: `tools`")
    text_pairs: str | None = setting(
        None,
        "prompts and answers of plain text: in the chat template, as one user's and one assistant's message (`chat`), "
        "or as they are (`plain`); null: as they are, and a run on a tokenizer with a template says so",
        choices=TEXT_PAIRS,
    )

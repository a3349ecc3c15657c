"""Layouts that preference data are found in, recognised by their columns, and what makes pairs of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["dialogue_hint", "holds_another", "layout_hint", "message_hint", "setting_hint"]

# names that public data sets use for what is called prompt, chosen and rejected here; most telling first
_PROMPTS = (
    "question instruction query prompt prompts user problem input context post messages conversations conversation "
    "dialogue"
).split()
_CHOSEN = (
    "chosen_response response_chosen answer_chosen chosen_answer accepted preferred winner response_j response_w "
    "positive good better pos win chosens accept"
).split()
_REJECTED = (
    "rejected_response response_rejected answer_rejected rejected_answer reject dispreferred response_k response_l "
    "negative bad worse neg lose loser non_preferred"
).split()
_NAMES = {"prompt": _PROMPTS, "chosen": _CHOSEN, "rejected": _REJECTED}
_TWO = "write the better one as 'chosen', the other as 'rejected'"
# columns that tell a layout: of several that fit the first counts
_LAYOUTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("completions",), "each row has several rated answers (UltraFeedback), a group, to which a prompt belongs"),
    (("completion", "label"), "one answer a row and a label (KTO), yes/no feedback, to which a prompt belongs"),
    (("prompt", "completion"), "one answer a row; with a column 'label' (true or false) it is yes/no feedback (KTO)"),
    (("response_0", "response_1"), f"two answers and a label which is better (PKU-SafeRLHF); {_TWO}"),
    (("response_a", "response_b"), f"two answers and a winner; {_TWO}"),
    (("answer_a", "answer_b"), f"two answers and a winner; {_TWO}"),
    (("response1", "response2"), f"two answers and a score; {_TWO}"),
    (("conversation_a", "conversation_b"), f"two conversations and a winner (Chatbot Arena); {_TWO}, without ties"),
    (("answer_0", "answer_1"), f"two answers and scores; {_TWO}"),
    (("messages", "rejected_response"), "ms-swift's layout; write the messages but for the last as 'prompt', the last "
     "as 'chosen', rejected_response as 'rejected'"),
    (("symptom", "incident_type"), "the file holds incidents; make pairs of them: verl-aiops build-prefs --incidents "
     "FILE --out prefs.parquet"),
    (("reward_model", "data_source"), "the file holds prompts of build-rl, for GRPO and PPO; DPO needs pairs: "
     "verl-aiops build-prefs"),
    (("rounds", "ground_truth", "score"), "the file holds answers of verl-aiops eval; make pairs of them: verl-aiops "
     "build-prefs --from-generations"),
    (("step", "data"), "the file holds metrics of a run, no data"),
    (("error",), "the file is a server's message about an error; download it again"),
    (("instruction", "output"), "one answer a row (Alpaca's SFT layout); DPO needs a better and a worse one"),
    (("conversations",), "one conversation a row (ShareGPT's SFT layout); DPO needs a better and a worse answer"),
    (("messages",), "one conversation a row (SFT); DPO needs a better and a worse answer"),
)  # fmt: skip
_TURN = re.compile(r"(?:^|\n\n)(?:Human|H|User): ")
_REPLY = re.compile(r"\n\n(?:Assistant|A): ")


def holds_another(field: str, name: str) -> bool:
    """Whether a column of this name is known to hold another field, as `worse` does, near as it is to `chosen`."""
    return any(name.lower() in names for other, names in _NAMES.items() if other != field)


def setting_hint(missing: Iterable[str], found: Iterable[str]) -> str:
    """The settings that read a file with the columns ``found`` that lacks the fields ``missing`` (of `rows.Columns`).

    One sentence, or "" where no column is known for each of them.
    """
    missing = list(missing)
    lower = {name.lower(): name for name in found}
    if "prompt" not in missing and "prompt" not in lower and set(_PROMPTS) & lower.keys():
        missing.append("prompt")
    settings = []
    for field in missing:
        name = next((lower[name] for name in (field, *_NAMES[field]) if name in lower), None)
        if name is not None:
            settings.append(f"data.{field}_key={name}")
    if len(settings) < len(missing):
        return ""
    return f"Set {' '.join(settings)} (or rename the column), if that is what it holds."


def layout_hint(found: Iterable[str], least: int = 1) -> str:
    """What makes pairs of a file whose columns, ``least`` or more, tell what else it holds; one sentence, or ""."""
    lower = {name.lower() for name in found}
    for columns, what in _LAYOUTS:
        if len(columns) >= least and lower.issuperset(columns):
            return f"By its columns {', '.join(map(repr, columns))}: {what}."
    return ""


def dialogue_hint(answer: str) -> str:
    """What makes a prompt and an answer of a text that holds a whole dialogue (hh-rlhf), or ""."""
    if not (_TURN.search(answer) and _REPLY.search(answer)):
        return ""
    return (
        "The answers hold the dialogue too, but not all as hh-rlhf writes it, which is read: each begins with "
        "'Human:', and each turn with '\\n\\nHuman:' or '\\n\\nAssistant:'."
    )


def message_hint(message: Mapping[str, Any]) -> str:
    """What makes {role, content} of a message in another layout, or ""."""
    for role, content in (("speaker", "text"), ("role", "value"), ("role", "text"), ("author", "content")):
        if role in message and content in message and ("role", "content") != (role, content):
            return f"rename {role} to role and {content} to content"
    return ""

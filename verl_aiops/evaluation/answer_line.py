"""One line of an evaluation: an answer to an incident and what it is worth.

``generations.jsonl`` has one such JSON object per line for each incident and sample, in the order of the data;
``renamed.jsonl`` has the same for the incidents with their labels renamed.
"""

from __future__ import annotations

from typing import Any, TypedDict

__all__ = ["KEYS", "AnswerLine"]


class AnswerLine(TypedDict):
    """The keys of a line.

    ================  ==================================================================================================
    key               value
    ================  ==================================================================================================
    ``id``            the incident's; with ``sample`` it names the line, and runs are paired by it
    ``group``         the fault that the incident belongs to; incidents of one group are not independent
    ``source``        the incident's system, ``lang`` its language, ``difficulty`` as the data give it; each may be null
    ``part``          ``real``, ``simulated`` or ``unseen`` (a system held out from training); null if not known
    ``answerable``    how it can be found: ``read``, ``given_away`` or ``remembered`` (`incidents.marks`); or null
    ``sample``        number of the answer, from 0
    ``seed``          that the answer was drawn with
    ``rounds``        the assistant's texts, the answer last: the turns of the conversation
    ``cut``           for each of them, whether it used up its budget without ending
    ``tokens``        for each of them, how many were generated; null where the server does not say
    ``ground_truth``  as `rewards.aiops_mturn.compute_score` was given it, an object
    ``predicted``     ``{"service", "incident_type"}``, and what else is asked for, as the model wrote them; null where
                      the answer is not the JSON
    ``score``         everything that `compute_score` returned; null where there is no answer
    ``error``         null, or why there is no answer; ``rounds`` then holds what was generated before. Begins with
                      ``no text: `` and the sort of reply (`results.without_text`) where a server's reply had none
    ================  ==================================================================================================
    """

    id: str
    group: str
    source: str | None
    lang: str | None
    difficulty: str | None
    part: str | None
    answerable: str | None
    sample: int
    seed: int
    rounds: list[str]
    cut: list[bool]
    tokens: list[int] | None
    ground_truth: dict[str, Any]
    predicted: dict[str, str] | None
    score: dict[str, float] | None
    error: str | None


KEYS = tuple(AnswerLine.__annotations__)

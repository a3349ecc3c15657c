"""What is asked in an evaluation: the rows of an RL file, or incidents made into the same rows."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.rows import RL_KEYS, rows_read, with_ids_of_their_own
from verl_aiops.incidents import IncidentSource, PromptOptions, iter_cases
from verl_aiops.incidents.build.files import UNKNOWN_DIFFICULTY
from verl_aiops.incidents.marks import answerable_by, part_of
from verl_aiops.incidents.prompts import Candidates, lists_candidates
from verl_aiops.incidents.taxonomy import names_in
from verl_aiops.rewards.triage.answer import FIELDS
from verl_aiops.rewards.triage.ground_truth import fields_of, read_ground_truth

__all__ = [
    "Question",
    "fingerprint",
    "incident_questions",
    "offered_names",
    "read_pair_questions",
    "read_rl_questions",
    "sampled",
]

Message = dict[str, str]
DIFFICULTY = "extra_info.difficulty"


@dataclass(frozen=True)
class Question:
    """One incident as it is asked.

    ``messages`` stand before the first answer; ``rounds`` are the user's later texts, each of which another answer
    follows; ``incident_text`` is the part of the messages that may be quoted; ``ground_truth`` is what `compute_score`
    reads. ``source``, ``lang`` and ``difficulty`` are None where the data do not say; ``part`` and ``answerable`` are
    those of `incidents.marks`; ``wording`` is the name of the words it is asked in (`incidents.wording`).
    """

    id: str
    group: str
    source: str | None
    lang: str | None
    difficulty: str | None
    messages: tuple[Message, ...]
    rounds: tuple[str, ...]
    incident_text: str
    ground_truth: dict[str, Any]
    part: str | None = None
    answerable: str | None = None
    wording: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """What is asked for: service and incident type, and what else the ground truth says."""
        return fields_of(self.ground_truth)


def offered_names(question: Question) -> dict[str, list[str]]:
    """The names that the last message lists to choose from, by field; nothing where it lists none.

    The ground truth knows candidates also where the prompt does not list them.
    """
    known = question.ground_truth.get("candidates") or {}
    names = {field: list(known.get(field) or ()) for field in question.fields}
    more = tuple((field, tuple(listed)) for field, listed in names.items() if listed and field not in FIELDS)
    last = question.rounds[-1] if question.rounds else question.messages[-1]["content"]
    candidates = Candidates(tuple(names["service"]), tuple(names["incident_type"]), more)
    listed = all(names[field] for field in FIELDS) and lists_candidates(last, candidates)
    return names if listed else {}


def incident_questions(source: IncidentSource, options: PromptOptions) -> list[Question]:
    """The questions that `build_rl` would write for `source` with `options`; its seed chooses the candidate lists.

    Raises:
        IncidentError: an incident that cannot be used, or one whose file or taxonomy is at fault.
    """
    # as build_rl does: around the evidence, what was cut away could not be quoted
    options = replace(options, whole_evidence=True)
    return [
        Question(
            id=case.incident.id,
            group=group,
            source=case.incident.source,
            lang=case.incident.lang,
            difficulty=case.incident.difficulty,
            messages=tuple(case.opening),
            rounds=tuple(message["content"] for message in case.rounds[1:]),
            incident_text=case.text,
            ground_truth=case.ground_truth,
            part=part_of(case.incident.source),
            answerable=case.answerable,
            wording=case.wording,
        )
        for case, group in iter_cases(source, options)
    ]


def read_rl_questions(path: str) -> list[Question]:
    """The rows of a parquet or JSONL file with verl's RL columns, as `verl-aiops build-rl` writes them.

    Needed of a row are ``prompt`` and ``reward_model.ground_truth``; without ``extra_info.id`` the row's number stands
    for it, and without ``extra_info.group`` the id.

    Raises:
        PreferenceDataError: the file cannot be read.
        EvaluationError: a row cannot be used; names file, row and key.
    """
    return with_ids_of_their_own(rows_read(path, RL_KEYS, _question))


def _question(row: Mapping[str, Any], number: int) -> Question:
    if "prompt" not in row and "symptom" in row:
        raise EvaluationError("prompt: found none, but a symptom, so the file holds incidents; give it as --incidents")
    info = _mapping(row.get("extra_info"), "extra_info", {})
    name = _text(info.get("id"), "extra_info.id") or f"row-{number}"
    text = _text(info.get("incident_text"), "extra_info.incident_text") or ""
    truth = _truth(_mapping(row.get("reward_model"), "reward_model", None).get("ground_truth"), "reward_model.")
    for item in read_ground_truth(truth).evidence:
        if item not in text:
            raise EvaluationError(
                f"reward_model.ground_truth: expected evidence that occurs in extra_info.incident_text, found "
                f"{item[:120]!r}; copy it from there character by character"
            )
    question = Question(
        id=name,
        group=_text(info.get("group"), "extra_info.group") or name,
        source=_text(info.get("source"), "extra_info.source"),
        lang=_text(info.get("lang"), "extra_info.lang"),
        difficulty=None if info.get("difficulty") == UNKNOWN_DIFFICULTY else _text(info.get("difficulty"), DIFFICULTY),
        messages=_messages(row.get("prompt")),
        rounds=_rounds(info.get("rounds")),
        incident_text=text,
        ground_truth=truth,
        part=_text(info.get("part"), "extra_info.part"),
        answerable=_text(info.get("answerable"), "extra_info.answerable"),
        wording=_text(info.get("wording"), "extra_info.wording"),
    )
    return _of_whole_characters(question)


def _of_whole_characters(question: Question) -> Question:
    """The question itself, marked where its file did not."""
    try:
        _as_json(question).encode("utf-8")
    except UnicodeEncodeError as error:
        raise EvaluationError(
            f"expected valid Unicode, found the lone surrogate U+{ord(error.object[error.start]):04X}"
        ) from None
    return _marked(question)


def _marked(question: Question) -> Question:
    part, answerable = question.part, question.answerable
    if part is None and question.source is not None:
        part = part_of(question.source)
    if answerable is None:
        listed = offered_names(question)
        names = listed or question.ground_truth.get("candidates") or {}
        services, types = (list(names.get(field) or ()) for field in ("service", "incident_type"))
        if services:
            named = names_in(question.incident_text, services)
            answerable = answerable_by(services, types, bool(listed), named)
    return replace(question, part=part, answerable=answerable)


def read_pair_questions(path: str) -> list[Question]:
    """The prompts of a preference file of `verl-aiops build-prefs`, each once; there is one answer to each, the last.

    Raises:
        PreferenceDataError: the file cannot be read.
        EvaluationError: a row cannot be used, or has no ground truth to hold an answer to; names file, row and key.
    """
    asked: dict[str, Question] = {}
    ids: set[str] = set()
    columns = ("prompt", "ground_truth", *_OF_PAIRS)
    for number, (_, question) in enumerate(rows_read(path, columns, _pair_question)):
        prompt = json.dumps(question.messages, sort_keys=True)
        if prompt not in asked:
            # ids of pairs need not tell prompts apart, those of answers must
            asked[prompt] = replace(question, id=f"{question.id}#row-{number}") if question.id in ids else question
            ids.add(question.id)
    return list(asked.values())


_OF_PAIRS = ("id", "group", "source", "lang", "incident_text", "part", "answerable", "wording")


def _pair_question(row: Mapping[str, Any], number: int) -> Question:
    for key in ("prompt", "ground_truth"):
        if row.get(key) is None:
            raise EvaluationError(
                f"{key}: found none; answers can be scored for files made by `verl-aiops build-prefs`"
            )
    name = _text(row.get("id"), "id") or f"row-{number}"
    question = Question(
        id=name,
        group=_text(row.get("group"), "group") or name,
        source=_text(row.get("source"), "source"),
        lang=_text(row.get("lang"), "lang"),
        difficulty=None,
        messages=_messages(row["prompt"]),
        rounds=(),
        incident_text=_text(row.get("incident_text"), "incident_text") or "",
        ground_truth=_truth(row["ground_truth"]),
        part=_text(row.get("part"), "part"),
        answerable=_text(row.get("answerable"), "answerable"),
        wording=_text(row.get("wording"), "wording"),
    )
    return _of_whole_characters(question)


def _mapping(value: Any, key: str, default: Mapping | None) -> Mapping[str, Any]:
    if value is None and default is not None:
        return default
    if not isinstance(value, Mapping):
        raise EvaluationError(f"{key}: expected an object, found {_shown(value)}; build the file with build-rl")
    return value


def _text(value: Any, key: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    raise EvaluationError(f"{key}: expected text, found {_shown(value)}")


def _truth(value: Any, within: str = "") -> dict[str, Any]:
    """As an object that JSON can hold; what is in it is checked by the reward's own reader."""
    try:
        read_ground_truth(value)
    except ValueError as error:
        raise EvaluationError(f"{within}{error}") from None
    return json.loads(value) if isinstance(value, str) else dict(value)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise EvaluationError(f"prompt: expected a list of messages, found {_shown(value)}")
    for at, message in enumerate(value):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise EvaluationError(f"prompt[{at}]: expected an object with role and content, found {_shown(message)}")
        more = [name for name in message if name not in ("role", "content") and message[name] not in (None, [], "")]
        if more:
            raise EvaluationError(
                f"prompt[{at}].{more[0]}: expected role and content alone; the answers of a model that is shown less "
                "than in training say little of it"
            )
    if value[-1]["role"] != "user":
        raise EvaluationError(f"prompt[{len(value) - 1}].role: expected user last, found {value[-1]['role'][:40]!r}")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _rounds(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise EvaluationError(f"extra_info.rounds: expected the user's text of each later round, found {_shown(value)}")
    return tuple(value)


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:80]!r}"


_Any = TypeVar("_Any")


def sampled(questions: Sequence[_Any], limit: int | None, seed: int) -> list[_Any]:
    """All questions, or `limit` of them chosen at random, in their order."""
    if limit is None or limit >= len(questions):
        return list(questions)
    chosen = random.Random(f"questions/{seed}").sample(range(len(questions)), limit)
    return [questions[at] for at in sorted(chosen)]


def fingerprint(questions: Sequence[Question]) -> str:
    """A hash of everything that is asked and known."""
    digest = hashlib.blake2b(digest_size=16)
    for question in questions:
        digest.update(_as_json(question).encode("utf-8") + b"\n")
    return digest.hexdigest()


def _as_json(question: Question) -> str:
    known = asdict(question)
    # neither is asked nor judged by them; the words stand in the messages
    del known["part"], known["answerable"], known["wording"]
    return json.dumps(known, sort_keys=True, ensure_ascii=False)

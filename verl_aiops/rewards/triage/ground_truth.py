"""Reading a row's ground truth. A fault here is the data set's, never the model's, so every fault raises ValueError."""

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from verl_aiops.rewards.triage.answer import FIELDS, MAX_LABEL_CHARS, normalise_label

_ALIAS_SHAPES = (
    '{"service": [other names of the true label]}, {"service": {label: [other names]}}, {"service": {other name: '
    "label}} (the same under incident_type), or one such table for both fields without the field names"
)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
# what a ground truth has under these names is no label
_NO_FIELDS = frozenset({"evidence", "aliases", "candidates", "fields"})

_EXPECTED = "expected a mapping or its JSON text"
MOST_READ = 4096
"""Ground truths that are kept as read: a row comes back with every answer to it."""
_READ_MAPPINGS: dict[bytes, "GroundTruth"] = {}


class GroundTruth(NamedTuple):
    """What a row holds to be true.

    Attributes:
        service: normalised names that count as the true service.
        incident_type: normalised names that count as the true incident type.
        evidence: known evidence, trimmed, without repeats, in the row's order.
        names: every normalised label the row knows of (true, alias, candidate).
        fields: what is asked for, service and incident type among them.
        more: the further fields of it whose label is known, each with the normalised names that count as it.
    """

    service: frozenset[str]
    incident_type: frozenset[str]
    evidence: tuple[str, ...]
    names: frozenset[str]
    fields: tuple[str, ...] = FIELDS
    more: tuple[tuple[str, frozenset[str]], ...] = ()


def read_ground_truth(raw: object) -> GroundTruth:
    """Read `ground_truth` as it stands in the data.

    Args:
        raw: a mapping, or its JSON text, with `service` and `incident_type` (non-empty str), and optionally
            `evidence`: list of str;
            `candidates`: {"service": [...], "incident_type": [...]} (or `services`, `incident_types`);
            `aliases`: in one of the shapes {"service": [other names of the true label]},
            {"service": {label: [other names]}}, {"service": {other name: label}} (the same under incident_type), or one
            such table for both fields without the field names;
            `fields`: list of str, what the prompt asks for where that is more than the two (`["service",
            "incident_type", "severity"]`). The label of each stands under its name, and it may have candidates and
            aliases as the two have; one without a label is asked for and not paid. Null stands for absent everywhere,
            since a parquet file fills the gaps of nested columns with it.

    Raises:
        ValueError: it is none of this; the message names the part and what was expected.
    """
    if isinstance(raw, str):
        return _read_text(raw)
    try:
        # Only a key, never loaded again. It costs a tenth of reading, and a row comes back with every answer to it.
        key = pickle.dumps(raw, protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError):
        return _read(raw)
    truth = _READ_MAPPINGS.get(key)
    if truth is None:
        truth = _read(raw)
        if len(_READ_MAPPINGS) >= MOST_READ:
            _READ_MAPPINGS.clear()
        _READ_MAPPINGS[key] = truth
    return truth


def mapping_of(raw: object) -> Mapping:
    """A ground truth of either task as a mapping.

    Raises:
        ValueError: it is neither one nor its JSON text.
    """
    value = raw
    if isinstance(raw, str):
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"ground_truth: {_EXPECTED}, got {raw[:80]!r} ({error})") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"ground_truth: {_EXPECTED}, got {type(value).__name__}")
    return value


@lru_cache(maxsize=MOST_READ)
def _read_text(text: str) -> GroundTruth:
    return _read(text)


def _read(given: object) -> GroundTruth:
    raw = mapping_of(given)
    evidence = (item.strip() for item in strings_of(raw.get("evidence"), "evidence"))
    fields = fields_of(raw)
    candidates = {field: _candidates(raw.get("candidates"), field) for field in fields}
    accepted = {}
    for field in fields:
        if field not in FIELDS and raw.get(field) is None:
            continue
        truth = label_of(raw.get(field), field)
        others, rivals = _aliases(raw.get("aliases"), field, truth, fields)
        # An alias that is itself another label would pay for naming that label: the label wins over the alias.
        accepted[field] = frozenset({truth} | (others - candidates[field] - rivals))
    return GroundTruth(
        accepted["service"],
        accepted["incident_type"],
        tuple(dict.fromkeys(item for item in evidence if item)),
        frozenset().union(*accepted.values(), *candidates.values()),
        fields,
        tuple((field, names) for field, names in accepted.items() if field not in FIELDS),
    )


def fields_of(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row asks for: service and incident type, or what it says in `fields`.

    Raises:
        ValueError: these are no fields.
    """
    named = strings_of(raw.get("fields"), "fields")
    if not named:
        return FIELDS
    if len(set(named)) != len(named) or not set(FIELDS) <= set(named):
        raise ValueError(f"ground_truth: fields: expected {', '.join(FIELDS)} and others, each once, got {named}")
    for name in named:
        if not _NAME.fullmatch(name) or name in _NO_FIELDS:
            raise ValueError(
                f"ground_truth: fields: expected names of small letters, digits and underscores that mean nothing else "
                f"here, got {name[:80]!r}"
            )
    return tuple(named)


def unoffered_fields(raw: str | Mapping[str, Any]) -> list[str]:
    """The fields whose candidates, where a row has any, leave out the true label: nobody could answer such a row.

    Args:
        raw: a ground truth that `read_ground_truth` takes.
    """
    given = json.loads(raw) if isinstance(raw, str) else raw
    fields = [field for field in fields_of(given) if field in FIELDS or given.get(field) is not None]
    offered = {field: _candidates(given.get("candidates"), field) for field in fields}
    return [field for field in fields if offered[field] and label_of(given.get(field), field) not in offered[field]]


def label_of(value: object, where: str) -> str:
    """A label of a ground truth, normalised; ``where`` names it in the error."""
    if not isinstance(value, str):
        got = "nothing" if value is None else repr(value)
        raise ValueError(f"ground_truth: {where}: expected a non-empty str, got {got}")
    if len(value) > MAX_LABEL_CHARS:
        raise ValueError(f"ground_truth: {where}: expected at most {MAX_LABEL_CHARS} characters, got {len(value)}")
    label = normalise_label(value)
    if not label:
        raise ValueError(f"ground_truth: {where}: expected a non-empty str, got {value!r}")
    return label


def strings_of(value: object, where: str) -> list[str]:
    """A list of texts of a ground truth; none for null."""
    return list_of(str, "str", value, where)


def list_of(kind: Any, called: str, value: Any, where: str) -> list[Any]:
    """A list of a ground truth whose items are of one kind; none for null.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        return []
    if hasattr(value, "tolist"):  # a numpy array, as pandas and pyarrow hand out list columns
        value = value.tolist()
    if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
        raise ValueError(f"ground_truth: {where}: expected a list of {called}, got {_shown(value)}")
    return list(value)


def _labels(value: object, where: str) -> frozenset[str]:
    return frozenset([label_of(item, where) for item in strings_of(value, where)])


def _candidates(value: object, field: str) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, Mapping):
        raise ValueError(
            f'ground_truth: candidates: expected {{"service": [...], "incident_type": [...]}}, got {_shown(value)}'
        )
    return _labels(value.get(field), f"candidates.{field}") | _labels(value.get(f"{field}s"), f"candidates.{field}s")


def _aliases(value: object, field: str, truth: str, fields: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """The true label's other names, and the names that belong to other labels (themselves included)."""
    if value is None:
        return frozenset(), frozenset()
    if not isinstance(value, Mapping):
        raise ValueError(f"ground_truth: aliases: expected {_ALIAS_SHAPES}; got {_shown(value)}")
    by_field = [key in fields for key in value]
    if any(by_field) and not all(by_field):
        raise ValueError(f"ground_truth: aliases: field names stand beside labels: expected {_ALIAS_SHAPES}")
    # one table without field names is of the two
    table = value.get(field) if any(by_field) else value if field in FIELDS else None
    if table is None:
        return frozenset(), frozenset()
    if not isinstance(table, Mapping):
        return _labels(table, f"aliases.{field}"), frozenset()
    mine, rivals = set(), set()
    for label, name in alias_pairs(table, f"aliases.{field}"):
        if label == truth:
            mine.add(name)
        else:
            rivals |= {label, name}
    return frozenset(mine), frozenset(rivals)


def alias_pairs(table: Mapping, where: str) -> Iterator[tuple[str, str]]:
    """(label, other name), normalised, from a table ``{label: [other names]}`` or ``{other name: label}``."""
    for key, value in table.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            raise ValueError(f"ground_truth: {where}: expected {_ALIAS_SHAPES}; got a table inside {key!r}")
        if isinstance(value, str):
            yield label_of(value, where), label_of(key, where)
        else:
            for name in _labels(value, f"{where}.{key}"):
                yield label_of(key, where), name


def _shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:80]}"

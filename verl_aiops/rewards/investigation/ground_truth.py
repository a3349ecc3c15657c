"""Reading what is true of an investigated case. A fault here is the data set's, never the model's, and raises."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from verl_aiops.rewards.triage.ground_truth import MOST_READ, alias_pairs, label_of, list_of, mapping_of, strings_of

__all__ = ["Cause", "InvestigationTruth", "read_investigation_truth"]

_FIELDS = ("component", "reason")


class Cause(NamedTuple):
    """A root cause: the normalised names under which its component is right, and those of its reason; no reasons where
    the source does not say any."""

    components: frozenset[str]
    reasons: frozenset[str]


class InvestigationTruth(NamedTuple):
    """What a row holds to be true.

    Attributes:
        causes: the root causes; none where nothing is wrong, or where it cannot be told.
        edges: the propagation, (from, to) of labels, empty where it is not known.
        no_fault: nothing is wrong.
        cannot_tell: the telemetry does not show what is wrong, so that an abstention is right.
        components: the names that components have, normalised; empty where they are not known.
        names: every normalised component and reason that the row knows of.
        label: from another name of a component to its label; names without an entry are their own.
        given: the ground truth as it stands in the data, whole, for parts of a user's own.
    """

    causes: tuple[Cause, ...]
    edges: frozenset[tuple[str, str]]
    no_fault: bool
    cannot_tell: bool
    components: frozenset[str]
    names: frozenset[str]
    label: Mapping[str, str]
    given: Mapping[str, Any]


def read_investigation_truth(raw: object) -> InvestigationTruth:
    """Read `ground_truth` as it stands in the data.

    Args:
        raw: a mapping, or its JSON text, with
            `root_causes`: list of {"component", "reason"?, "time"?, "aliases"?: {"component": [...], "reason": [...]}},
            or `no_fault` true, or `cannot_tell` true; and optionally
            `propagation`: list of {"from", "to"};
            `components` (or `services`): the names that exist; `reasons`: the label set;
            `aliases`: {"component": {label: [other names]}, "reason": {...}}, or one such table for both.
            Null stands for absent everywhere, since a parquet file fills the gaps of nested columns with it. Other keys
            (severity, team) are kept for parts of a user's own.

    Raises:
        ValueError: it is none of this; the message names the part and what was expected.
    """
    return _read_text(raw) if isinstance(raw, str) else _read(raw)


@lru_cache(maxsize=MOST_READ)
def _read_text(text: str) -> InvestigationTruth:
    return _read(text)


def _read(given: object) -> InvestigationTruth:
    raw = mapping_of(given)
    components = _labels(raw, "components") | _labels(raw, "services")
    tables = _alias_tables(raw.get("aliases"))
    causes, label = _causes(_items(raw, "root_causes"), components, _labels(raw, "reasons"), tables)
    kinds = [name for name in ("no_fault", "cannot_tell") if _flag(raw, name)]
    if len(kinds) + bool(causes) != 1:
        raise ValueError(
            "ground_truth: root_causes: expected at least one, or no_fault or cannot_tell and none, got "
            f"{len(causes)}{''.join(f' and {name}' for name in kinds)}"
        )
    edges = set()
    for at, item in enumerate(_items(raw, "propagation")):
        one, other = (label_of(item.get(end), f"propagation[{at}].{end}") for end in ("from", "to"))
        edges.add((label.get(one, one), label.get(other, other)))
    named = frozenset().union(*(cause.components | cause.reasons for cause in causes), *edges)
    return InvestigationTruth(
        tuple(causes),
        frozenset(edges),
        "no_fault" in kinds,
        "cannot_tell" in kinds,
        components,
        named | components | _labels(raw, "reasons") | label.keys(),
        label,
        raw,
    )


def _causes(
    items: list[Mapping], components: frozenset[str], reasons: frozenset[str], tables: Mapping[str, Mapping[str, str]]
) -> tuple[list[Cause], dict[str, str]]:
    """The causes, and the label of every other name of a component."""
    labels = {"component": components, "reason": reasons}
    # a name that is itself a label would pay for naming that one: the label wins over the alias
    other = {
        field: {name: label for name, label in tables[field].items() if name not in labels[field]} for field in _FIELDS
    }
    causes = []
    for at, item in enumerate(items):
        where = f"root_causes[{at}]"
        accepted: dict[str, frozenset[str]] = dict.fromkeys(_FIELDS, frozenset())
        for field in _FIELDS:
            if field == "reason" and item.get(field) is None:
                continue
            true = label_of(item.get(field), f"{where}.{field}")
            own = _own_aliases(item.get("aliases"), field, where) - labels[field] - {true}
            other[field].update(dict.fromkeys(own, true))
            more = {name for name, label in other[field].items() if label == true}
            accepted[field] = frozenset({true} | own | more)
        causes.append(Cause(accepted["component"], accepted["reason"]))
    return causes, other["component"]


def _own_aliases(value: object, field: str, where: str) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, Mapping):
        raise ValueError(
            f'ground_truth: {where}.aliases: expected {{"component": [...], "reason": [...]}}, got {value!r}'
        )
    name = f"{where}.aliases.{field}"
    return frozenset(label_of(item, name) for item in strings_of(value.get(field), name))


def _alias_tables(value: object) -> dict[str, dict[str, str]]:
    """From other name to label, by field."""
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise ValueError(
            f'ground_truth: aliases: expected {{"component": {{label: [other names]}}, "reason": {{...}}}} or one such '
            f"table for both, got {type(value).__name__}"
        )
    by_field = set(value) <= {*_FIELDS} and bool(value)
    tables = {}
    for field in _FIELDS:
        table = value.get(field) if by_field else value
        if table is not None and not isinstance(table, Mapping):
            raise ValueError(f"ground_truth: aliases.{field}: expected {{label: [other names]}}, got {table!r:.80}")
        pairs = list(alias_pairs(table or {}, f"aliases.{field}"))
        tables[field] = {name: label for label, name in pairs}
    return tables


def _items(raw: Mapping, key: str) -> list[Mapping]:
    return list_of(Mapping, "objects", raw.get(key), key)


def _labels(raw: Mapping, key: str) -> frozenset[str]:
    return frozenset(label_of(item, key) for item in strings_of(raw.get(key), key))


def _flag(raw: Mapping, key: str) -> bool:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"ground_truth: {key}: expected true or false, got {value!r:.80}")
    return bool(value)

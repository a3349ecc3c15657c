"""The numbers and names that fill the braces of a wording: data/values.yaml, and how each sort of them is drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from string import Formatter

from verl_aiops.incidents.io.yaml_file import Entry, read_yaml

DATA = Path(__file__).parent / "data"
Maker = Callable[[Random], object]


@dataclass(frozen=True)
class Filler:
    """`make` draws one; a `fact` does not change from one line of a service to the next."""

    make: Maker
    fact: bool


@cache
def values() -> dict[str, Filler]:
    """All values by name, as data/values.yaml has them."""
    return {name: _value(entry) for name, entry in read_yaml(DATA / "values.yaml").items()}


def _value(entry: Entry) -> Filler:
    fields = entry.fields((), ("whole", "decimal", "digits", "choice", "hex", "text", "fact"))
    fact = not fields["fact"].absent() and fields["fact"].flag()
    if not fields["choice"].absent():
        return Filler(_choice([option.text() for option in fields["choice"].list()]), fact)
    if not fields["hex"].absent():
        return Filler(_hex(fields["hex"].count(most=64)), fact)
    if not fields["decimal"].absent():
        low, high = bounds(fields["decimal"])
        return Filler(_decimal(low, high, fields["digits"].count(most=15)), fact)
    if fields["text"].absent():
        return Filler(_whole(*bounds(fields["whole"])), fact)
    return Filler(_text(fields["text"].text(), [bounds(entry) for entry in fields["whole"].list()]), fact)


def bounds(entry: Entry) -> tuple[float, float]:
    """Two numbers, the smaller first."""
    bounds = [number.value for number in entry.list()]
    plain = all(isinstance(number, int | float) and not isinstance(number, bool) for number in bounds)
    if len(bounds) != 2 or not plain or not bounds[0] < bounds[1]:
        raise entry.fail("two numbers, the smaller first", "write [low, high]")
    return bounds[0], bounds[1]


def _choice(options: list[str]) -> Maker:
    return lambda rng: options[int(rng.random() * len(options))]


def _whole(low: float, high: float) -> Maker:
    return lambda rng: low + int(rng.random() * (high - low))


def _decimal(low: float, high: float, digits: int) -> Maker:
    return lambda rng: round(low + rng.random() * (high - low), digits)


def _hex(digits: int) -> Maker:
    return lambda rng: f"{rng.getrandbits(4 * digits):0{digits}x}"


def _text(text: str, bounds: list[tuple[float, float]]) -> Maker:
    numbers = [_whole(*pair) for pair in bounds]
    return lambda rng: text.format(*(number(rng) for number in numbers))


@cache
def _pieces(wording: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in Formatter().parse(wording))


def wording(entry: Entry, given: Collection[str] = ()) -> str:
    """A text whose braces all name a value, or one of those that the simulator gives there itself.

    Raises:
        IncidentError: they do not; it names file and key.
    """
    text = entry.text()
    try:
        names = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise entry.fail(f"text with braces in pairs ({error})", "write {name}") from None
    for name in sorted(names - values().keys() - set(given)):
        raise entry.fail(
            f"braces that name a value of {DATA.name}/values.yaml{''.join(f', or {other}' for other in given)}",
            f"'{name}' is none",
        )
    return text


def fill(wording: str, rng: Random, facts: dict[str, object], **given: object) -> str:
    """`wording` with its braces filled from `given` or else by `values`; one that names a value twice gets it twice.

    `facts` keeps what holds for a whole service, such as the size of its pool, from line to line.
    """
    known = values()
    text = ""
    for literal, name in _pieces(wording):
        text += literal
        if name is None:
            continue
        if name not in given:
            value = known[name]
            if not value.fact:
                given[name] = value.make(rng)
            else:
                if name not in facts:
                    facts[name] = value.make(rng)
                given[name] = facts[name]
        text += str(given[name])
    return text

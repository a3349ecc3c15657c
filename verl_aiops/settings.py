"""A setting is one field of a dataclass: its default, what it may be, and what it means.

From that one place follow the check of a value and the message that refuses it, the refusal of a name that does not
exist, the reading of a section of verl's configuration, the option of a command, and the row of docs/configuration.md
(`scripts/write_config_reference.py`). A new setting is one line:

    warmup: float = setting(0.0, "share of the steps in which the rate grows", within="[0, 1)")

The standard library alone, so that every part may use it and ``--help`` of a command answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, field, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

__all__ = [
    "Settings",
    "add_options",
    "expected",
    "from_options",
    "kinds",
    "nearest",
    "option",
    "setting",
    "settings_of",
]


def setting(default: Any, meaning: str, **how: Any) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: `dataclasses.MISSING` for one that must be given.
        meaning: what it does, for the reference and for ``--help``.
        how: what it may be and how it is shown, each where the annotation does not say it already.
            within: the range of a number, as ``[0, 1)`` or ``(0, inf)``. Numbers must be finite in any case.
            choices: the texts that it may be.
            fits: a predicate of the value, in place of the two.
            expected: the words for what it may be, in place of those that are made of the above.
            option, metavar, group: name, value and heading of the command's option, see `add_options`.
    """
    return field(default=default, metadata={"help": meaning, "checked": True, **how})


def settings_of(owner: type) -> list[Field[Any]]:
    """The fields that are settings: those with a meaning."""
    return [one for one in fields(owner) if "help" in one.metadata]


def kinds(of: Field[Any]) -> list[str]:
    """The parts of a field's annotation: ``["float", "None"]``."""
    text = of.type if isinstance(of.type, str) else inspect.formatannotation(of.type)
    return [kind.strip() for kind in text.split("|")]


def nearest(name: object, known: Iterable[object]) -> str:
    """``" (did you mean 'x'?)"`` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def fits(of: Field[Any], value: Any) -> bool:
    """Whether a value is one that the setting may be."""
    how, kind = of.metadata, kinds(of)
    if value is None and "None" in kind:
        return True
    if "fits" in how:
        return how["fits"](value)
    if "choices" in how:
        return isinstance(value, str) and value in how["choices"]
    if "bool" in kind:
        return isinstance(value, bool)
    if "int" in kind or "float" in kind:
        if isinstance(value, bool) or not isinstance(value, Integral if "int" in kind else Real):
            return False
        within = how.get("within", "(-inf, inf)")
        low, high, value = (float(end) for end in (*within[1:-1].split(","), value))
        above = value >= low if within[0] == "[" else value > low
        return above and (value <= high if within[-1] == "]" else value < high)  # no bound lets NaN or infinity through
    return "str" not in kind or isinstance(value, str)


def expected(of: Field[Any]) -> str:
    """What a setting may be, in words."""
    how, kind = of.metadata, kinds(of)
    whole = "int" in kind
    if "expected" in how:
        return how["expected"]
    if "choices" in how:
        words = "one of " + ", ".join(how["choices"])
    elif "bool" in kind:
        words = "true or false"
    elif whole or "float" in kind:
        within = how.get("within", "(-inf, inf)")
        low, high = (end.strip() for end in within[1:-1].split(","))
        above = f", {low} or more" if within[0] == "[" else f" above {low}" * (low != "-inf")
        below = f" and {'at most' if within[-1] == ']' else 'less than'} {high}" * (high != "inf")
        words = ("a whole number" if whole and within[0] == "[" else "a number") + above + below
        if within[0] + within[-1] == "[]":
            words = f"{'an integer' if whole else 'a number'} from {low} to {high}"
        elif whole and within[0] == "(":
            words += ", whole"
    else:
        words = "a text"
    return words + ", or null" * ("None" in kind)


class Settings:
    """What a dataclass of settings inherits to be read and checked; its fields are made by `setting`.

    ``section`` is the key of verl's configuration that holds them. A class words its messages otherwise by `refused`
    and `unknown`, and says in `check_together` what single values do not show.
    """

    section: ClassVar[str] = ""

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """Read and check them from a whole verl configuration (a ``DictConfig``), or from the section as a mapping.

        Raises:
            ValueError: an unknown key, or a value that cannot work; the message names the key.
        """
        from omegaconf import DictConfig, OmegaConf

        return cls.from_section(OmegaConf.select(config, cls.section) if isinstance(config, DictConfig) else config)

    @classmethod
    def from_section(cls, section: Any) -> Self:
        """The same from the section alone: a mapping or ``DictConfig``; None, or what it lacks, stands for defaults."""
        if section is not None and type(section).__module__.startswith("omegaconf."):
            from omegaconf import OmegaConf

            section = OmegaConf.to_container(section, resolve=True)
        if section is not None and not isinstance(section, Mapping):
            raise cls.refused("", section, "a section of settings")
        known = [of.name for of in settings_of(cls)]
        wrong = [cls.unknown(str(key), known) for key in section or {} if key not in known]
        made = cls(**{key: value for key, value in (section or {}).items() if key in known})
        made.check(wrong)
        return made

    def check(self, wrong: Iterable[ValueError] = ()) -> None:
        """Raises ValueError, or what `refused` makes, for all values that cannot work, and what is ``wrong`` already, a
        line each. Values are looked at together where each is right by itself."""
        faults = list(wrong)
        for of in settings_of(type(self)):
            value = getattr(self, of.name)
            if of.metadata.get("checked") and not fits(of, value):
                faults.append(self.refused(of.name, value, expected(of)))
        if faults:
            raise type(faults[0])("\n  ".join(map(str, faults)))
        self.check_together()

    def check_together(self) -> None:
        """What values that are right by themselves must not be together."""

    @classmethod
    def refused(cls, name: str, value: Any, wanted: str) -> ValueError:
        return ValueError(f"{cls.section}{'.' * bool(name)}{name}={value}: expected {wanted}")

    @classmethod
    def unknown(cls, key: str, known: list[str]) -> ValueError:
        near = difflib.get_close_matches(key, known, 1)
        hint = f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        return ValueError(f"{cls.section}.{key}: no such setting{hint}")


def option(of: Field[Any]) -> str:
    """The command's option of a setting: ``--batch-size`` of ``batch_size``, unless ``option`` names another."""
    return "--" + of.metadata.get("option", of.name).replace("_", "-")


def add_options(parser: argparse.ArgumentParser, owner: type) -> dict[str, Any]:
    """An option for each setting of ``owner``; returns the groups, to which options that are no settings may be added.

    A tuple takes several values, a ``bool`` is a flag, and the default stands behind a meaning that speaks of none.
    """
    groups: dict[str, Any] = {}
    for of in settings_of(owner):
        how, kind, meaning = of.metadata, kinds(of), of.metadata["help"]
        default = None if of.default is MISSING else of.default
        if how["group"] not in groups:
            groups[how["group"]] = parser.add_argument_group(how["group"])
        more: dict[str, Any] = {"dest": of.name, "default": default}
        if "bool" in kind:
            more["action"] = "store_true"
        else:
            number = next((one for one in (int, float) if one.__name__ in str(of.type)), None)
            more |= {"type": number or str, "choices": how.get("choices"), "required": of.default is MISSING}
            more["nargs"] = "+" if kind[0].startswith("tuple") else None
            more["metavar"] = how.get("metavar") or (number and ("N" if number is int else "X"))
            if "default" not in meaning and default not in (None, ()):
                meaning += " (default %(default)s)"
        groups[how["group"]].add_argument(option(of), help=meaning, **more)
    return groups


def from_options(owner: type, args: argparse.Namespace, **more: Any) -> Any:
    """The settings that `add_options` has read, not checked yet; ``more`` goes before."""
    given = {of.name: getattr(args, of.name) for of in settings_of(owner)} | more
    return owner(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})

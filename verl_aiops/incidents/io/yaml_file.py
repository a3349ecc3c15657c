"""YAML that holds data of ours or a user's: read with the place of every value, which complaints about it name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.field_checks import MAX_LABEL_CHARS
from verl_aiops.incidents.safety import neutralise
from verl_aiops.inputs.shown import brief, one_line
from verl_aiops.inputs.sniff import refusal

_LABEL = re.compile(rf"\S(?:.{{0,{MAX_LABEL_CHARS - 2}}}\S)?")


def _load(text: str) -> Any:
    """The value of YAML text; raises yaml.YAMLError."""
    import yaml

    def loader(base: Any) -> Any:
        class Loader(base):
            """Refuses a key given twice, of which plain YAML silently keeps the last."""

            def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
                seen = set()
                for key, _ in node.value:
                    if isinstance(key, yaml.ScalarNode):
                        if key.value in seen:
                            raise yaml.MarkedYAMLError(
                                problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                            )
                        seen.add(key.value)
                return super().construct_mapping(node, deep)

        return Loader

    # libyaml's parser is ten times as fast, but PyYAML may be without it, and it names other places of mistakes
    with suppress(AttributeError, yaml.YAMLError):
        return yaml.load(text, loader(yaml.CSafeLoader))
    return yaml.load(text, loader(yaml.SafeLoader))


def read_yaml(path: str | Path) -> Entry:
    """The contents of a file; raises FileNotFoundError, or IncidentError with file and line."""
    import yaml

    path = Path(path)
    try:
        unfit = refusal(path, "text")
        if unfit:
            raise IncidentError(f"{path} {unfit}")
        value = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise IncidentError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise IncidentError(f"{path}{place}: not valid YAML ({problem})") from None
    except RecursionError:
        raise IncidentError(f"{path}: nested too deeply to be read") from None
    except IncidentError:
        raise
    except ValueError as error:  # what looks like a date or a number, and is none
        raise IncidentError(f"{path}: a value cannot be read ({one_line(error, 120)}); put it in quotes") from None
    return Entry(value, str(path))


def _shown(value: Any) -> str:
    return value[:60] if isinstance(value, str) else brief(value, 60)


class Entry:
    """A value of a file together with its place, which every complaint about it names."""

    def __init__(self, value: Any, file: str, key: str = ""):
        self.value, self.file, self.key = value, file, key

    def fail(self, expected: str, mend: str) -> IncidentError:
        """The error to raise: file, key, what was expected and found, and how to mend it."""
        found = "nothing" if self.value is None else f"{type(self.value).__name__} {_shown(self.value)!r}"
        where = f"{self.file}, key '{self.key}'" if self.key else self.file
        return IncidentError(f"{where}: expected {expected}, found {found}; {mend}")

    def _child(self, name: Any, value: Any) -> Entry:
        return Entry(value, self.file, f"{self.key}.{name}" if self.key else str(name))

    def fields(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Entry]:
        """The entries of a section with fixed keys; an absent optional one has the value None."""
        names = ", ".join((*required, *optional))
        if not isinstance(self.value, dict):
            raise self.fail(f"a section with the keys {names}", "indent them below it")
        for name in required:
            if name not in self.value:
                raise self._child(name, None).fail(
                    "this key", f"the section has: {', '.join(map(str, self.value)) or 'no key'}"
                )
        for name in self.value:
            if name not in required + optional:
                raise self._child(name, self.value[name]).fail(f"one of the keys {names}", "remove or rename it")
        return {name: self._child(name, self.value.get(name)) for name in required + optional}

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Name and entry of each key of a section whose keys are free; there must be at least one."""
        if not isinstance(self.value, dict) or not self.value:
            raise self.fail("a section with at least one key", "write `name: value` lines, indented below it")
        for name, value in self.value.items():
            if not isinstance(name, str):
                raise self._child(name, value).fail("a key that is text", f'put the key in quotes: "{name}"')
            yield name, self._child(name, value)

    def list(self) -> list[Entry]:
        """The entries of a list that is not empty."""
        if not isinstance(self.value, list) or not self.value:
            raise self.fail("a list with at least one item", "write [a, b], or `- item` lines")
        return [self._child(number, value) for number, value in enumerate(self.value)]

    def text(self) -> str:
        """Text that is not blank."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.fail("text", "put it in quotes")
        if one_line(self.value) != self.value:
            raise self.fail("text on one line, without control characters", "write it plainly")
        return self.value

    def paragraphs(self) -> str:
        """Text of one or several lines that is not blank, without white space around it."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.fail("text", "write it in quotes, or as `key: |-` with its lines indented below")
        return "\n".join(line.rstrip() for line in self.value.strip().splitlines())

    def label(self) -> str:
        """A service or incident type as `Incident` takes them."""
        name = self.text()
        if not _LABEL.fullmatch(name) or not name.isprintable() or neutralise(name) != name:
            expected = f"a name of {MAX_LABEL_CHARS} characters at most on one line, without spaces around it or "
            raise self.fail(f"{expected}chat-template marks", "write it plainly")
        return name

    def choice(self, *names: str) -> str:
        """One of `names`."""
        if self.value not in names:
            raise self.fail(f"one of {', '.join(names)}", "choose one of them")
        return self.value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.fail("true or false", "write it without quotes")
        return self.value

    def count(self, least: int = 1, most: int = 100_000) -> int:
        """A whole number from `least` to `most`, above which the work or the memory would have no end."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < least:
            raise self.fail(f"a whole number of at least {least}", "write it without quotes")
        if self.value > most:
            raise self.fail(f"a whole number of at most {most:,}", "choose a smaller one")
        return self.value

    def pattern(self) -> re.Pattern[str]:
        """A regular expression."""
        try:
            return re.compile(self.text())
        except re.error as error:
            raise self.fail(
                f"a regular expression ({error})", "mend it; a literal dot or bracket needs a backslash"
            ) from None

    def absent(self) -> bool:
        """Whether an optional entry was left out."""
        return self.value is None

"""The words in which a model is asked, as data: the built-in ones of `prompts.yaml`, or a file of a user's own.

Two files that say the same are one wording, which has a name: `built-in`, or a hash of what it says. Data and
taxonomies carry that name, so that a model is not asked in other words than those it was trained in without being told.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.yaml_file import Entry, read_yaml
from verl_aiops.incidents.safety import neutralise
from verl_aiops.incidents.schema import LANGUAGES
from verl_aiops.inputs.shown import one_line

__all__ = ["BUILT_IN", "CLOSE_TAG", "OPEN_TAG", "FieldWords", "Wording", "built_in", "filled", "read_wording"]

BUILT_IN = "built-in"
BUILT_IN_FILE = Path(__file__).with_name("prompts.yaml")
OPEN_TAG, CLOSE_TAG = "<incident>", "</incident>"

_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")
# By text: what must stand in it once, and what may.
_PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "round1": (("incident",), ()),
    "round2": (("form", "names"), ("fields",)),
    "direct": (("incident", "form", "names"), ("fields",)),
}
# What takes several lines, or none at all.
_ALONE = ("incident", "names")
_JOINED = {"en": (", ", " and "), "zh": ("、", "和")}
_MOST_CHARS = 20_000


class FieldWords(NamedTuple):
    """What a prompt calls a field of the answer, and what the list of its names begins with."""

    asked: str
    list: str


@dataclass(frozen=True)
class Wording:
    """Texts (`round1`, `round2`, `direct`) and words of fields, by language. `place`: what messages call it."""

    texts: Mapping[str, Mapping[str, str]]
    fields: Mapping[str, Mapping[str, FieldWords]]
    place: str = field(default="the built-in prompts", compare=False)
    own_fields: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """Language and name of each field that a user's file has words for."""

    @cached_property
    def name(self) -> str:
        """`built-in`, or twelve digits that say what it says."""
        if self == built_in():
            return BUILT_IN
        told = json.dumps([self.texts, self.fields], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()

    def words(self, lang: str, name: str) -> FieldWords:
        """Those of a field; of one that nobody has words for, its name."""
        plain = name.replace("_", " ")
        default = FieldWords(f"the {plain}", f"{plain.capitalize()}: ")
        return self.fields[lang].get(name, default if lang == "en" else FieldWords(name, f"{name}："))

    def asked(self, lang: str, names: Sequence[str]) -> str:
        """Fields in a sentence: `the faulty service, the incident type and the severity`."""
        comma, last = _JOINED[lang]
        *first, end = (self.words(lang, name).asked for name in names)
        return last.join([comma.join(first), end] if first else [end])

    def as_yaml(self) -> str:
        """What `read_wording` reads; the built-in one as its file stands, with its explanations."""
        import yaml

        if self.name == BUILT_IN:
            return BUILT_IN_FILE.read_text(encoding="utf-8")
        told = {
            lang: {**texts, "fields": {name: words._asdict() for name, words in self.fields[lang].items()}}
            for lang, texts in self.texts.items()
        }
        return yaml.safe_dump(told, allow_unicode=True, sort_keys=False, width=10_000)

    def check_asked(self, more: Sequence[str]) -> None:
        """Raises IncidentError where the user's file has words for a field that is not asked for, as a typo has."""
        known = {*built_in().fields["en"], *more}
        for lang, name in self.own_fields:
            if name not in known:
                raise IncidentError(
                    f"{self.place}, key '{lang}.fields.{one_line(name, 60)}': no such field is asked for; those "
                    f"that are: {', '.join(('service', 'incident_type', *more))} (--answer-fields)"
                )


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with its placeholders filled in; a line that holds an empty one alone goes.

    In one pass: what an incident says in braces stays as it says it.
    """
    lines = (line for line in text.split("\n") if not (line[:1] == "{" and values.get(line[1:-1]) == ""))
    return _PLACE.sub(lambda match: values[match[1]], "\n".join(lines))


@lru_cache(maxsize=1)
def built_in() -> Wording:
    """That of `prompts.yaml`."""
    return _read(BUILT_IN_FILE, None)


def read_wording(path: str | Path) -> Wording:
    """A user's file: what it leaves out is as built in.

    Raises FileNotFoundError, or IncidentError with file, key, what was expected and how to mend it.
    """
    return _read(Path(path), built_in())


def _read(path: Path, base: Wording | None) -> Wording:
    texts: dict[str, dict[str, str]] = {}
    fields: dict[str, dict[str, FieldWords]] = {}
    own: list[tuple[str, str]] = []
    sections = read_yaml(path).fields((), LANGUAGES)
    for lang, section in sections.items():
        texts[lang] = dict(base.texts[lang]) if base else {}
        fields[lang] = dict(base.fields[lang]) if base else {}
        if section.absent():
            continue
        entries = section.fields((), (*_PLACES, "fields"))
        texts[lang].update((key, _text(entries[key], key)) for key in _PLACES if not entries[key].absent())
        if not entries["fields"].absent():
            for name, entry in entries["fields"].items():
                words = entry.fields((), ("asked", "list"))
                known = fields[lang].get(name, _named(name, lang))
                asked, heading = (words[key].text() if not words[key].absent() else None for key in ("asked", "list"))
                fields[lang][name] = FieldWords(
                    _clean(words["asked"], asked) or known.asked, _clean(words["list"], heading) or known.list
                )
                own.append((lang, name))
    place = "the built-in prompts" if base is None else one_line(path)
    return Wording(texts, fields, place, () if base is None else tuple(own))


def _named(name: str, lang: str) -> FieldWords:
    return Wording({}, {lang: {}}).words(lang, name)


def _text(entry: Entry, key: str) -> str:
    """A text of a round, checked."""
    text = entry.paragraphs()
    if len(text) > _MOST_CHARS:
        raise entry.fail(f"at most {_MOST_CHARS:,} characters", "shorten it")
    needed, free = _PLACES[key]
    known = ", ".join(f"{{{name}}}" for name in (*needed, *free))
    found = _PLACE.findall(text)
    for name in found:
        if name not in (*needed, *free):
            raise entry.fail(
                f"no other words in braces than {known}, but {{{one_line(name, 40)}}} is there", "rename it"
            )
        if found.count(name) > 1:
            raise entry.fail(f"{{{name}}} once, but it is there {found.count(name)} times", "keep one of them")
    for name in needed:
        if name not in found:
            raise entry.fail(f"the placeholder {{{name}}} in it ({known} are known)", "put it where it belongs")
        if name in _ALONE and f"{{{name}}}" not in text.split("\n"):
            raise entry.fail(f"{{{name}}} alone on its line", "break the line before and after it")
    _clean(entry, text)
    return text


def _clean(entry: Entry, text: str | None) -> str | None:
    """The text itself, which must not say anything to the chat template."""
    if text is not None:
        plain = text.replace(OPEN_TAG, "").replace(CLOSE_TAG, "")
        if neutralise(plain) != plain:
            raise entry.fail("no marks of chat templates and no invisible characters", "write it without them")
    return text

"""How the API pages read our docstrings: an extension of Griffe, which mkdocs.yml names."""

from __future__ import annotations

import re
from typing import Any

import griffe

# "low, high: (n,) bounds." in a section of arguments
TOGETHER = re.compile(r"^(?P<indent> +)(?P<first>\w+)(?P<more>(?:, \w+)+): (?P<said>.*(?:\n(?P=indent) +.*)*)$", re.M)


def apart(docstring: str) -> str:
    """Arguments that are described together as one each, as Griffe reads them; the later ones refer to the first."""

    def split(found: re.Match[str]) -> str:
        lines = [f"{found['first']}: {found['said']}"]
        lines += [f"{name}: as `{found['first']}`, in this order." for name in found["more"].split(", ")[1:]]
        return "\n".join(found["indent"] + line for line in lines)

    before, heading, after = docstring.partition("\nArgs:\n")
    arguments, ending, rest = after.partition("\n\n")
    return before + heading + TOGETHER.sub(split, arguments) + ending + rest


class NamesTogether(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = apart(obj.docstring.value)

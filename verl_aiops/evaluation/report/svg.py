"""Figures as SVG that follow the reader's colours: what is neither line nor marker of a run has the text's colour, runs
have other colours on dark screens, nothing has a ground. Text stays text, in the reader's fonts.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from verl_aiops.evaluation.report.fonts import user_fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "as_svg", "drawing", "save"]

# Okabe and Ito's colours, told apart by colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# The same hues; on a dark ground the dark blue and the vermilion come last.
_ON_DARK = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#4A90C2")
_NUMBERS = {colour.lower(): number for number, colour in enumerate(COLOURS)}
_INK, _INK_ON_DARK = "#24292f", "#e6e6e6"
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_CLASS = "verl-aiops-plot"
# What XML 1.0 cannot hold; labels may be read from anywhere.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@contextmanager
def drawing(letters: bool = False) -> Iterator[None]:
    """matplotlib's settings for a figure that `save` or `as_svg` takes, without a screen.

    Args:
        letters: they are drawn into the picture, so that those without a font are worth a warning.
    """
    import matplotlib

    matplotlib.use("Agg")
    colours = dict.fromkeys(_INKED, _INK)
    with warnings.catch_warnings(), matplotlib.rc_context({"font.size": 10, **colours, "svg.fonttype": "none"}):
        if not letters:
            warnings.filterwarnings("ignore", message=".*missing from font")
            with matplotlib.rc_context({"text.parse_math": False}):
                yield
            return
        with user_fonts():
            yield


def save(figure: Figure, path: str | Path, alt: str = "") -> None:
    """Write a figure by the suffix of its file: ``.svg`` as above, anything else as matplotlib does; and close it."""
    from matplotlib import pyplot as plt

    if Path(path).suffix.lower() == ".svg":
        Path(path).write_text(as_svg(figure, Path(path).stem, alt), encoding="utf-8")
        return
    figure.savefig(path, dpi=140)
    plt.close(figure)


def as_svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as one ``<svg>`` element, for a file of its own or for a page among others; closes the figure.

    Args:
        name: tells its inner references from those of other figures in a page.
        alt: what is seen, in words.
    """
    import matplotlib
    from matplotlib import pyplot as plt

    stream = io.StringIO()
    plain = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata=plain)
    plt.close(figure)
    return _following(_NO_XML.sub("\ufffd", stream.getvalue()), alt)


def _following(text: str, alt: str) -> str:
    """matplotlib's SVG with our style sheet, without what only a file of its own may have."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # metadata, and a style of all elements of whatever page it stands in
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w.-]+)", " ".join(value for each in root.iter() for value in each.attrib.values())))
    for element in root.iter():
        # such as axes_1, which every figure has: an id may stand in a page but once
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if "style" in element.attrib:
            _name_colours(element)
    root.set("class", _CLASS)
    root.set("role", "img")
    root.set("aria-label", _NO_XML.sub("\ufffd", alt))
    style = ET.Element(f"{{{_SVG}}}style")
    style.text = _style_sheet()
    root.insert(0, style)
    return ET.tostring(root, encoding="unicode") + "\n"


def _name_colours(element: ET.Element) -> None:
    """The text's colour, and a class for each of a run's, which the style sheet gives its colour."""
    kept, classes = [], []
    for declaration in element.get("style").replace(_INK, "currentColor").split("; "):
        what, _, colour = declaration.partition(": ")
        if colour in _NUMBERS:
            classes.append(f"{what}-{_NUMBERS[colour]}")
            element.set(what, colour)  # for readers without style sheets
        else:
            kept.append(declaration)
    element.set("style", "; ".join(kept))
    if classes:
        element.set("class", " ".join(classes))


def _style_sheet() -> str:
    light, dark = (
        "\n".join(
            [f".{_CLASS} {{ color: {ink} }}"]
            + [
                f".{_CLASS} .{what}-{number} {{ {what}: {colour} }}"
                for number, colour in enumerate(colours)
                for what in ("fill", "stroke")
            ]
        )
        for ink, colours in ((_INK, COLOURS), (_INK_ON_DARK, _ON_DARK))
    )
    joins = f".{_CLASS} * {{ stroke-linejoin: round; stroke-linecap: butt }}"
    return f"{joins}\n{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"

"""Fonts for plots whose labels are the users' and may be Chinese, which matplotlib's own font lacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["user_fonts"]

_OWN = "DejaVu Sans"
# By family name, and how their files are called.
_CHINESE = {
    "Noto Sans CJK SC": "NotoSansCJK",
    "Noto Sans CJK JP": "NotoSansCJK",
    "Noto Sans SC": "NotoSansSC",
    "Source Han Sans SC": "SourceHanSans",
    "WenQuanYi Micro Hei": "wqy-microhei",
    "WenQuanYi Zen Hei": "wqy-zenhei",
    "PingFang SC": "PingFang",
    "Microsoft YaHei": "msyh",
}


@contextmanager
def user_fonts() -> Iterator[None]:
    """matplotlib draws labels as they are written: with a Chinese font where there is one, dollar signs no formulas.

    Characters that no font has are drawn as boxes, with one warning for all.
    """
    import matplotlib

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with matplotlib.rc_context({"font.family": [_OWN, *_chinese()], "text.parse_math": False}):
            yield
    told = False
    for warning in caught:
        if "missing from font" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif not told:
            told = True
            warnings.warn(
                "some characters of labels are boxes in the plots: install a font that has them, such as Noto Sans CJK "
                "(Debian: fonts-noto-cjk)",
                stacklevel=2,
            )


def _chinese() -> list[str]:
    from matplotlib import font_manager

    known = font_manager.fontManager
    if not any(font.name in _CHINESE for font in known.ttflist):
        # matplotlib keeps its list of fonts between runs, so it knows none that was installed later
        for file in font_manager.findSystemFonts():
            if Path(file).name.startswith(tuple(_CHINESE.values())):
                known.addfont(file)
    there = {font.name for font in known.ttflist}
    return [name for name in _CHINESE if name in there]

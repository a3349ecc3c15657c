"""What MkDocs needs to make a site of pages that are written to be read in the checkout: the hooks of mkdocs.yml.

README and the other pages at the top become pages of the site; what a page links to outside docs/ travels with it, at
its path in the checkout. Links are turned to where their targets stand in the site, so each page stands once.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# pages at the top of the checkout, and where they stand in the site
TOP = {
    "README.md": "index.md",
    "README_zh.md": "zh/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s#:]+)(?P<anchor>#[^()\s]*)?\)")


def in_site(path: Path) -> str | None:
    """Where a file of the checkout stands in the site; None for a folder, and for what is not there."""
    if not path.is_file():
        return None
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return TOP.get(name, name)


def source_of(uri: str) -> Path:
    """The file that a page of the site is written in."""
    top = {site: name for name, site in TOP.items()}
    return ROOT / top[uri] if uri in top else DOCS / uri


def turned(text: str, uri: str) -> str:
    """The text of the page ``uri`` with its links as they are in the site. A link to a folder is its words alone."""
    source = source_of(uri)

    def turn(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(source.parent / link["target"]))
        target = in_site(path)
        if target is None:  # what is not there stays, for MkDocs to warn of
            return link["text"] if path.is_dir() else link[0]
        relative = posixpath.relpath(target, posixpath.dirname(uri) or ".")
        return f"[{link['text']}]({relative}{link['anchor'] or ''})"

    return LINK.sub(turn, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, site in TOP.items():
        if (ROOT / name).is_file():
            files.append(File.generated(config, site, abs_src_path=str(ROOT / name)))
    for page in files.documentation_pages():
        source = source_of(page.src_uri)
        for link in LINK.finditer(source.read_text(encoding="utf-8")):
            path = Path(os.path.normpath(source.parent / link["target"]))
            target = in_site(path)
            if target and not target.endswith(".md") and files.get_file_from_path(target) is None:
                # NOT_IN_NAV is what a picture is too
                files.append(
                    File.generated(config, target, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
                )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return turned(markdown, page.file.src_uri)

"""Links of all pages lead to files and headings that exist, those outside the site too; no page is without a place."""

import re
from functools import cache

import pytest

from helpers.pages import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
LINK = re.compile(r"\]\(\s*([^)\s]+)")
ELSEWHERE = re.compile(r"\w+:")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def slug_of(heading):
    """Return the anchor that GitHub and the site's generator both give to a plain heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


@cache
def anchors_of(page):
    """Return the anchors of a page's headings."""
    return {slug_of(found) for found in re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)}


def links_of(page):
    """Return the links of a page that lead into the repository, as they are written."""
    text = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))
    return [link for link in LINK.findall(text) if not ELSEWHERE.match(link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    broken = []
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


def test_there_are_links_and_anchors():
    links = [link for page in PAGES for link in links_of(page)]
    assert len(links) > 150
    assert sum("#" in link for link in links) > 25


@pytest.mark.parametrize(
    ("heading", "slug"),
    [("1. Install", "1-install"), ("`sweep`", "sweep"), ("Passes: `plain` and CompDemo", "passes-plain-and-compdemo")],
)
def test_an_anchor(heading, slug):
    assert slug_of(heading) == slug


def test_every_page_is_under_one_head():
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    named = re.findall(r"([\w/-]+\.md)$", nav, re.MULTILINE)
    assert sorted(named) == sorted(str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md"))
    heads = re.findall(r"^  - (\w[\w ]*):", nav, re.MULTILINE)
    assert heads == ["Home", "Tutorials", "How to", "Explanation", "Reference"]

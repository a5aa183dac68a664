"""The site builds strictly, renders docstrings, and asks no other server for anything.

`make check` builds the site, and asks this of what it has built; with TIDE_CACHE_TESTS=full it is built here.
"""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from helpers.fresh import IS_FULL
from helpers.pages import ROOT

BUILT = os.environ.get("TIDE_CACHE_SITE")
pytestmark = pytest.mark.skipif(not BUILT and not IS_FULL, reason="`make check` asks this of the site that it builds")

LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}
"""Attributes that make a browser fetch something; links that a reader follows are not among them."""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    if BUILT:
        return ROOT / BUILT
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Fetched(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self):
        super().__init__()
        self.urls = []
        self.classes = set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.classes |= set((given.get("class") or "").split())
        self.urls += [given[LOADS[tag]]] if given.get(LOADS.get(tag, "")) else []
        self.urls += [given["href"]] if tag == "link" and given.get("href") else []
        self.urls += re.findall(r"url\(([^)]+)\)", given.get("style") or "")


def test_pages_fetch_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        found = _Fetched()
        found.feed(page.read_text())
        assert found.urls
        elsewhere = [url for url in found.urls if re.match(r"(\w+:)?//", url)]
        assert not elsewhere, f"{page.name}: {elsewhere}"
        assert not found.classes & {"mermaid", "md-source"}, "the theme's script would fetch for it"


def test_style_sheets_fetch_nothing_from_elsewhere(site):
    for sheet in site.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')]+)", sheet.read_text())
        assert not [url for url in urls if re.match(r"(https?:)?//", url)], sheet.name


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("records", "One sample as both tokenizers see it"),
        ("objectives", "Return logits at a few ids, and logsumexp over all ids"),
        ("errors", "A training checkpoint is missing or incomplete, or belongs to another run"),
        ("config", "AdamW with warm-up and decay"),
        ("stage-1", "Draw a masked view"),
    ],
)
def test_docstrings_are_rendered(site, page, said):
    text = re.sub(r"<[^>]+>", "", (site / "reference" / f"{page}.html").read_text())
    assert said in text


def test_the_script_that_draws_is_no_page(site):
    assert (site / "pictures" / "chunks.svg").is_file()
    assert not list(site.rglob("*.py"))


def test_search_works_from_the_folder(site):
    """A page opened as a file may start no worker and fetch no index: both come as scripts of the site."""
    assert (site / "search/search_index.js").read_text().startswith("var __index = {")
    page = (site / "index.html").read_text()
    shim, bundle = page.index("assets/iframe-worker.js"), page.index("assets/javascripts/bundle")
    assert shim < bundle
    assert (site / "assets/iframe-worker.js").is_file()

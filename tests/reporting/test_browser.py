"""Pages in a real browser: what it makes of them, in both colour schemes and at the width of a phone."""

import shutil
import subprocess

import pytest
from matplotlib.image import imread

from helpers.run_examples import write_run
from tide_cache.reporting.cache_page import SECTIONS, cache_page, gather_cache
from tide_cache.reporting.run_pages import RUN_SECTIONS, run_page
from tide_cache.reporting.runs import read_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIGHT, DARK = "1", "0"
BACKGROUND = {LIGHT: (255, 255, 255), DARK: (18, 22, 29)}
MEASURE = "<script>document.title = document.documentElement.scrollWidth + ' in ' + window.innerWidth</script>"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def browse(*options, page):
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={page.parent / 'profile'}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(built, tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    found = {"cache": root / "cache.html", "run": root / "run.html"}
    found["cache"].write_text(cache_page(gather_cache(built.cache, str(built.tokenizer))))
    found["run"].write_text(run_page(read_run(write_run(root / "runs" / "student", nll=1.5))))
    return found


@pytest.mark.parametrize(("name", "sections"), [("cache", SECTIONS), ("run", RUN_SECTIONS)])
def test_the_browser_finds_all_sections_and_drawings_and_no_script(made, name, sections):
    dom = browse("--dump-dom", page=made[name])
    assert all(f'id="{section}"' in dom for section in sections)
    assert "<script" not in dom
    assert dom.count("<svg") == made[name].read_text().count("<svg")


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_the_page_follows_the_colour_scheme_and_its_ink_stands_out(made, tmp_path, scheme):
    picture = tmp_path / "page.png"
    options = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1200,1600", f"--screenshot={picture}")
    browse(*options, page=made["cache"])
    pixels = (imread(picture)[:, :, :3] * 255).round().astype(int)
    assert tuple(pixels[0, 0]) == BACKGROUND[scheme]
    brightness = pixels.mean(axis=2)
    assert (abs(brightness - brightness[0, 0]) > 180).sum() > 2000, "text and axes are far from the background"


@pytest.mark.parametrize("name", ["cache", "run"])
def test_nothing_is_wider_than_a_phone(made, tmp_path, name):
    """A script measures a copy of the page inside a frame of 400 pixels; the page itself has none."""
    copy = tmp_path / "copy.html"
    copy.write_text(made[name].read_text().replace("</body>", f"{MEASURE}</body>").replace('"', "&quot;"))
    frame = tmp_path / "frame.html"
    tell = "<script>onload = () => { document.title = document.querySelector('iframe').contentDocument.title }</script>"
    frame.write_text(f'<iframe srcdoc="{copy.read_text()}" style="width:400px;height:900px;border:0"></iframe>{tell}')
    assert "<title>400 in 400</title>" in browse("--dump-dom", page=frame)

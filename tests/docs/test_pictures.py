"""The committed pictures are what the library draws now, and show what their captions say."""

import xml.etree.ElementTree as ET

import draw
import pytest
from sample import ANSWER, make_sample

from helpers.pages import ROOT

FOLDER = ROOT / "docs" / "pictures"


@pytest.fixture(scope="module")
def sample():
    return make_sample()


@pytest.mark.parametrize("name", draw.PICTURES)
def test_a_picture_is_current(name, sample):
    drawn = draw.PICTURES[name](sample)
    assert ET.fromstring(drawn).tag.endswith("svg")
    assert (FOLDER / f"{name}.svg").read_text() == drawn, "run `make pictures`"


def test_chunks_cover_the_answer(sample):
    assert [ANSWER[start:end] for start, end in sample.chunks] == [
        "def",
        " s",
        "cale",
        "(x",
        "):",
        *[" return", " x"],
        " ",
        "*",
        " 50",
    ]


def test_the_flow_names_folders_that_exist(sample):
    boxes = {text.text for text in ET.fromstring(draw.flow(sample)).iter("{http://www.w3.org/2000/svg}text")}
    folders = {name for name in boxes if name.endswith("/") and " " not in name}
    assert len(folders) == 10
    assert all((ROOT / "tide_cache" / name).is_dir() for name in folders)

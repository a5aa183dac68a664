"""The tables of the docs show the figures that the benchmarks wrote."""

import pytest

from benchmarks.pages import PAGES, ROOT, find_faults

PAGE = """# Performance
## pairing
`benchmarks/results/pairing.json`:

| figure | value | bar | |
|---|---|---|---|
| `align_ratio` | {ratio} | at least 50 | met, by a factor of {factor} |
| whole pairing | {pairs} | | |
"""
RIGHT = {"ratio": "65.4", "factor": "1.3", "pairs": "848"}


@pytest.fixture
def faults_of(tmp_path, monkeypatch):
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "pairing.json").write_text('{"figures": {"align_ratio": 65.3685, "pair_samples_per_s": 848.067}}')
    monkeypatch.setattr("benchmarks.pages.ROOT", tmp_path)

    def check(**changed):
        (tmp_path / "page.md").write_text(PAGE.format(**RIGHT | changed))
        return find_faults([tmp_path / "page.md"])

    return check


def test_the_tables_agree_with_the_results():
    faults, num_compared = find_faults([ROOT / page for page in PAGES])
    assert not faults
    assert num_compared > 80


def test_what_agrees_is_counted(faults_of):
    assert faults_of() == ([], 3)


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"ratio": "65.5"}, "65.5"),
        ({"ratio": "848"}, "848"),  # a figure, but not the one that the row names
        ({"pairs": "849"}, "849"),
        ({"pairs": "848.1"}, ""),
        ({"pairs": "848.2"}, "848.2"),
        ({"factor": "1.4"}, "1.4"),
    ],
)
def test_a_number_that_drifted_is_named(faults_of, changed, number):
    faults, _ = faults_of(**changed)
    if number:
        assert any(f"{number!r} is no figure" in fault for fault in faults)
    else:
        assert not faults

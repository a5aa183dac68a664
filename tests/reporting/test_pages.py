"""Pages hold all they show, escape what a corpus says, and tell nothing of the machine they were made on."""

import json
import re
from html.parser import HTMLParser

import pytest

from helpers.run_examples import metrics, task_results, write_run
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.errors import RunFileError, RunFolderError
from tide_cache.reporting import cache_page as pages
from tide_cache.reporting.cache_page import cache_page, gather_cache
from tide_cache.reporting.comparing import compare_arms, make_arms
from tide_cache.reporting.page import duration, require_writable, write_page
from tide_cache.reporting.plots import NUM_COLOURS, Series, line_chart
from tide_cache.reporting.run_pages import COMPARISON_SECTIONS, RUN_SECTIONS, comparison_page, run_page
from tide_cache.reporting.runs import read_run, run_names

EVIL = '<script>alert("x")</script>'


class Elements(HTMLParser):
    """Collects a page's elements, ids and texts, and whether they are closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.refs, self.texts, self._open = [], [], [], [], []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.refs += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def require_self_contained(page, sections, tmp_path):
    found = Elements(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert set(sections) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids)), "ids are unique over all drawings"
    assert all(ref.startswith("#") and ref[1:] in found.ids for ref in found.refs)
    assert all(name in found.ids for name in re.findall(r"url\(#([^)]+)\)", page))
    assert not re.search(r"\bon\w+=|javascript:|@import|url\((?!#)", page)
    assert str(tmp_path) not in page
    assert "#0102" not in page, "placeholders of colours are replaced"
    assert "#01030" not in page
    return found


@pytest.fixture(scope="module")
def evil_cache(tmp_path_factory, build_values):
    """A cache of code with every signal and both passes, the student's tokenizer and the teacher's."""
    root = tmp_path_factory.mktemp("pages")
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{EVIL} & {i}"}]}
        for i in range(6)
    ]
    (root / "evil.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = build_values(
        root / "cache", "cross", build__passes=("plain", "compdemo"), signals__kinds=("truth", "topk", "chunks"),
        corpus__spec=str(root / "evil.jsonl"), teacher__max_length=128, student__max_length=128,
    )  # fmt: skip
    build_cache(BuildRun.model_validate(values))
    return root / "cache", values["student"]["tokenizer"]["path"], values["teacher"]["model"]


@pytest.fixture(scope="module")
def evil_page(evil_cache):
    return cache_page(gather_cache(*evil_cache))


def test_a_cache_page_is_self_contained_and_escapes_the_corpus(evil_cache, evil_page):
    page = evil_page
    found = require_self_contained(page, pages.SECTIONS, evil_cache[0].parent)
    assert found.tags.count("svg") == 6
    assert page.count("&lt;") > 3
    text = "".join(found.texts)
    for part in ("Pass compdemo", "candidate mass", "top-1 accuracy, plain", "Largest columns", "shared_vocab_size"):
        assert part in text
    assert "mark" in found.tags


def test_the_text_of_a_view_is_on_the_page_as_it_stands(evil_cache):
    cache, student, _ = evil_cache
    report = gather_cache(cache, student, views=[0])
    (view,) = report.views
    assert EVIL in view.text.replace("⟦", "").replace("⟧", "")
    blocks = re.findall(r'<p class="view">(.*?)</p>', cache_page(report), re.DOTALL)
    shown = "".join(Elements(f"<p>{blocks[0]}</p>").texts).replace("↵", "")
    assert shown == view.text.replace("⟦", "").replace("⟧", "")


def test_without_a_tokenizer_the_page_says_that_it_shows_ids(evil_cache):
    page = cache_page(gather_cache(evil_cache[0]))
    assert "--tokenizer" in page
    assert "alert" not in page


def test_pages_are_the_same_when_they_are_made_again(evil_cache, evil_page):
    assert cache_page(gather_cache(*evil_cache)) == evil_page


def test_a_run_page_shows_losses_evaluations_and_settings(tmp_path):
    run = read_run(write_run(tmp_path / "runs" / "student", nll=1.25))
    found = require_self_contained(run_page(run), RUN_SECTIONS, tmp_path)
    text = "".join(found.texts)
    for part in ("ce + 0.5 kl", "eval.json: data/held-out.jsonl", "Mean NLL 1.2500", "objective.1.weight"):
        assert part in text
    assert found.tags.count("svg") == 3 + 1 + 2 + 3, "loss, ce, kl; stages; evaluation; rate, speed, stall"
    assert "somebody" not in text


def test_a_run_without_evaluation_says_how_to_get_one(tmp_path):
    folder = write_run(tmp_path / "run", finished=False, lines=[metrics(1, 1.0)], kinds=(EVIL,))
    page = run_page(read_run(folder))
    require_self_contained(page, RUN_SECTIONS, tmp_path)
    assert "tide-cache eval RUN/model" in page
    assert "not finished" in page


def test_a_run_that_diverged_is_drawn_up_to_there(tmp_path):
    lines = [metrics(1, 2.0), metrics(2, float("nan")), metrics(3, float("inf"))]
    run = read_run(write_run(tmp_path / "run", lines=lines))
    assert run.curve.values["loss"] == (2.0, None, None)
    require_self_contained(run_page(run), RUN_SECTIONS, tmp_path)


def test_curves_of_a_student_its_baseline_and_its_teacher_are_drawn(tmp_path):
    folder = write_run(tmp_path / "runs" / "student")
    of_teacher = task_results("/home/somebody/teacher/model", student=[(0.9, 1.0, 0.8), (0.5, 2.0, 0.8)])
    of_student = task_results(
        str(folder / "model"), student=[(0.9, 2.0, 0.6), (0.5, 3.0, 0.58)], baseline=[(0.9, 1.0, 0.4)]
    )
    for name, document in (("eval", of_student), ("eval-teacher", of_teacher)):
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(json.dumps(document))
    run = read_run(folder)
    assert list(run.curves["sums"]) == ["student", "baseline", "teacher"]
    found = require_self_contained(run_page(run), RUN_SECTIONS, tmp_path)
    text = " ".join(found.texts)
    for part in ("sums: accuracy against parallelism", "teacher", "160.0", "AUP"):
        assert part in text
    arms = make_arms([run, read_run(write_run(tmp_path / "runs" / "other", kinds=("kl",)), "runs/other")])
    text = comparison_page(arms, compare_arms(arms))
    require_self_contained(text, COMPARISON_SECTIONS, tmp_path)
    assert "sums: accuracy against parallelism" in text
    (folder / "eval" / "results.json").write_text('{"results": []}')
    with pytest.raises(RunFolderError, match=r"eval/results\.json: found no results of tasks"):
        read_run(folder)


def test_a_comparison_shows_paired_differences_and_what_differs(tmp_path):
    folders = [
        write_run(tmp_path / f"{len(kinds)}-{seed}", kinds=kinds, seed=seed, nll=2.0 - 0.25 * len(kinds) + seed)
        for kinds in (("ce",), ("ce", "kl"))
        for seed in (0, 1)
    ]
    arms = make_arms([read_run(f, n) for f, n in zip(folders, run_names(folders), strict=True)])
    found = require_self_contained(comparison_page(arms, compare_arms(arms)), COMPARISON_SECTIONS, tmp_path)
    text = " ".join(found.texts)
    assert "-0.250 ± 0.000" in text
    assert "2 of 2" in text
    assert "objective.1.kind" in text


def test_runs_of_other_lengths_stand_side_by_side(tmp_path):
    folders = [
        write_run(tmp_path / "a", seed=0),
        write_run(tmp_path / "b", seed=1, lines=[metrics(step, 1.0) for step in range(1, 9)]),
    ]
    arms = make_arms([read_run(f, n) for f, n in zip(folders, run_names(folders), strict=True)])
    assert len(arms) == 1
    require_self_contained(comparison_page(arms, compare_arms(arms)), COMPARISON_SECTIONS, tmp_path)


def test_more_lines_than_colours_and_lines_with_gaps_can_be_drawn():
    lines = [Series(f"<{place}>", (0, 1), (None, place), place, place) for place in range(NUM_COLOURS + 2)]
    chart = line_chart("many", 'a "title" & more', lines, "t", "y")
    assert 'aria-label="a &#34;title&#34; &amp; more"' in chart.svg
    assert len(chart.legend) == NUM_COLOURS + 2


def test_only_our_own_pages_are_written_over(tmp_path, built):
    ours, other = tmp_path / "ours.html", tmp_path / "other.html"
    write_page(ours, run_page(read_run(write_run(tmp_path / "run"))))
    other.write_text("<html>mine</html>")
    require_writable(ours, force=False)
    require_writable(other, force=True)
    with pytest.raises(RunFileError, match="not a page of tide-cache; give another name with --out, or --force"):
        require_writable(other, force=False)
    with pytest.raises(RunFileError, match="is a cache, which holds its own files only"):
        require_writable(built.cache / "report.html", force=True)
    with pytest.raises(RunFileError, match="found a folder, expected a file"):
        require_writable(tmp_path / "run", force=True)
    with pytest.raises(RunFileError, match="found no folder"):
        require_writable(tmp_path / "none" / "x.html", force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.html", "ours.html", "run"], (
        "nothing is left over"
    )


def test_times_are_written_in_their_largest_unit():
    assert [duration(s) for s in (1.0, 90.0, 5400.0)] == ["1.0 s", "1.5 min", "1.5 h"]

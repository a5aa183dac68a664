"""The tokenkit aligner: the right package is found, others are refused, and wrong chunks never get through.

bminixhofer/tokenkit itself is not on the test machine: a package of the same interface stands in for it.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tide_cache.errors import RunFileError
from tide_cache.pairing import PairedRows, SamplePairer, TextTokenizer
from tide_cache.records import ChatRow

INSTALL = "pip install git+https://github.com/bminixhofer/tokenkit"
ALIGN = '''
def get_alignment_indices(tokens_teacher, tokens_student, attention_mask_teacher, attention_mask_student,
                          tokenizer_teacher, tokenizer_student, check=True):
    """Align by length, as tokenkit does when no special tokens are named."""
    assert attention_mask_teacher.all() and attention_mask_student.all()
    assert tokenizer_teacher.model_kind_cls.replacements == tokenizer_student.model_kind_cls.replacements == {}
    found, i, j, start = [], 0, 0, (0, 0)
    left = right = ""
    while i < len(tokens_teacher) or j < len(tokens_student):
        if len(left) <= len(right):
            left, i = left + tokens_teacher[i], i + 1
        else:
            right, j = right + tokens_student[j], j + 1
        if left == right:
            found.append((start[0], i, start[1], j))
            start = (i, j)
    return found, tokens_teacher, tokens_student, [], []
'''
SHIFTED = ALIGN.replace(
    "return found,", "return [(a, b, c, d - 1) if len(found) > 4 and k % 3 == 0 else (a, b, c, d) "
    "for k, (a, b, c, d) in enumerate(found)],"
)  # fmt: skip
REPEATED = ALIGN.replace("return found,", "return found + found[:1] * (len(found) > 4),")

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package named tokenkit on the path; without files, make sure that there is none."""
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "tokenkit"}

    def install(files: dict[str, str], about: str | None = None) -> Path:
        folder = tmp_path / "tokenkit"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        if about is not None:
            (tmp_path / "tokenkit-0.1.3.dist-info").mkdir()
            (tmp_path / "tokenkit-0.1.3.dist-info" / "METADATA").write_text(about)
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        return folder

    yield install
    for name in [name for name in sys.modules if name.split(".")[0] == "tokenkit"]:
        del sys.modules[name]
    sys.modules.update(others)


def make_pairer(teacher: TextTokenizer, student: TextTokenizer, aligner: str) -> SamplePairer:
    return SamplePairer(
        teacher,
        student,
        teacher_max_length=512,
        student_max_length=512,
        student_block_size=8,
        fill_last_block=False,
        aligner=aligner,
    )


def chunks(result: PairedRows) -> list[list[list[int]]]:
    return [pair.chunks_C4.tolist() for pair in result.pairs]


def test_nothing_of_that_name(small: TextTokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenkit", None)
    with pytest.raises(RunFileError, match="no such package is installed") as error:
        make_pairer(small, small, "tokenkit")
    assert INSTALL in str(error.value)


def test_the_unrelated_package_is_refused_unrun(small: TextTokenizer, install: Install):
    """The layout of the package on the Python index: its __init__ imports its one module."""
    about = "Metadata-Version: 2.4\nName: tokenkit\nVersion: 0.1.3\nSummary: Fertility and parity metrics\n"
    code = "raise SystemExit('this code was run')"
    folder = install({"__init__.py": "from .tokenkit import fertilize", "tokenkit.py": code}, about)
    with pytest.raises(RunFileError, match=r"no module tokenkit\.align") as error:
        make_pairer(small, small, "tokenkit")
    message = str(error.value)
    assert f"found tokenkit 0.1.3 (Fertility and parity metrics) at {folder}" in message
    assert "unrelated project; remove it: pip uninstall tokenkit" in message
    assert INSTALL in message


def test_a_module_without_the_function_is_refused(small: TextTokenizer, install: Install):
    folder = install({"__init__.py": "", "align.py": "def align(a, b): ..."})
    with pytest.raises(RunFileError, match=r"tokenkit\.align has no get_alignment_indices") as error:
        make_pairer(small, small, "tokenkit")
    assert f"at {folder}" in str(error.value)


def test_missing_requirements_are_named(small: TextTokenizer, install: Install):
    install({"__init__.py": "", "align.py": "import jax_that_is_not_here"})
    with pytest.raises(RunFileError, match="cannot be imported: No module named 'jax_that_is_not_here'") as error:
        make_pairer(small, small, "tokenkit")
    assert "requirements.txt" in str(error.value)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def get_alignment_indices(**given): return [(0, 1, 0, 1)], [], []", r"it gave \[\(0, 1, 0, 1\)\], expected"),
        ("def get_alignment_indices(a, b): return []", "it raised TypeError"),
    ],
)
def test_a_function_that_answers_otherwise_is_refused(small: TextTokenizer, install: Install, code: str, found: str):
    install({"__init__.py": "", "align.py": code})
    with pytest.raises(RunFileError, match="does not align as bminixhofer/tokenkit does") as error:
        make_pairer(small, small, "tokenkit")
    error.match(found)


words = st.sampled_from(["the", " cat", "forty", " 42", "über", "한국", "🎉", "\n", "  ", "e\u0301", "<|im_end|>"])
content = st.lists(words, max_size=8).map("".join)


def test_the_right_one_gives_the_chunks_of_bytes(small, large, make_row, install: Install):
    """On normalised text too: tokenkit is shown the bytes of the text that each token covers."""
    install({"__init__.py": "", "align.py": ALIGN})
    sides = [(large, small), (small, large)]
    pairers = [[make_pairer(*side, aligner) for aligner in ("bytes", "tokenkit")] for side in sides]

    @given(st.lists(content, min_size=2, max_size=4))
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(texts: list[str]) -> None:
        rows = [make_row(*texts, "the cat"), make_row("x", "the mat", name="b")]
        for bytes_pairer, tokenkit_pairer in pairers:
            want, found = bytes_pairer.pair_many(rows), tokenkit_pairer.pair_many(rows)
            assert chunks(found) == chunks(want)
            assert found.report == want.report

    check()


def test_straddling_tokens_are_in_no_chunk(load_shared, make_row, install: Install):
    """cl100k reads `>The` as one token: half of it is the template's."""
    install({"__init__.py": "", "align.py": ALIGN})
    row: ChatRow = make_row("How long?", "The trip takes 2 days.")
    found, want = (
        make_pairer(load_shared("cl100k"), load_shared("qwen"), aligner).pair_many([row])
        for aligner in ("tokenkit", "bytes")
    )
    assert chunks(found) == chunks(want)


@pytest.mark.parametrize("code", [SHIFTED, REPEATED])
def test_wrong_chunks_are_dropped_and_counted(small, large, make_row, install: Install, code: str):
    install({"__init__.py": "", "align.py": code})
    rows = [make_row("the cat sat on the mat", "twelve and thirty are forty two")]
    want = make_pairer(large, small, "bytes").pair_many(rows)
    result = make_pairer(large, small, "tokenkit").pair_many(rows)
    (right,), (kept,) = chunks(want), chunks(result)
    num_dropped = len(right) - len(kept)
    assert result.report.chunks_rejected == (num_dropped if code == SHIFTED else 2) > 0
    assert [chunk for chunk in right if chunk in kept] == kept
    assert (np.diff(np.array(kept), axis=0) > 0).all()

"""A view can be read back from its description."""

import pytest

from tide_cache.errors import CacheMismatchError, RunFileError
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.reporting.viewing import describe_view


def test_a_view_as_text_is_the_clean_text_with_brackets(built):
    tokenizer = TextTokenizer.load(str(built.tokenizer))
    manifest = Manifest.load(built.cache)
    pairs = manifest.reader(built.cache, "pairs", 1).read_pairs(0)
    shown = describe_view(built.cache, 9 * 3 + 2, str(built.tokenizer))
    assert (shown.sample_id, shown.view) == (pairs[1].sample_id, 2)
    assert shown.text.replace("⟦", "").replace("⟧", "") == tokenizer.decode(pairs[1].student_ids_L)
    in_brackets = "".join(part.split("⟧")[0] for part in shown.text.split("⟦")[1:])
    assert in_brackets == "".join(chunk.text for chunk in shown.chunks), "here every masked token is a chunk"
    assert shown.num_masked == sum(chunk.student_end - chunk.student_start for chunk in shown.chunks)
    assert all(chunk.teacher_logprob < 0 for chunk in shown.chunks)


def test_a_view_without_a_tokenizer_shows_ids(built):
    manifest = Manifest.load(built.cache)
    pair = manifest.reader(built.cache, "pairs", 0).read_pairs(0)[0]
    shown = describe_view(built.cache, 0)
    assert shown.text.replace("⟦", "").replace("⟧", "").split() == [str(i) for i in pair.student_ids_L]


def test_a_view_that_is_not_there_is_refused(built):
    with pytest.raises(RunFileError, match="found no view 60; expected 0 to 59"):
        describe_view(built.cache, 60)


def test_another_tokenizer_is_refused(built):
    with pytest.raises(CacheMismatchError, match="found a tokenizer with hash"):
        describe_view(built.cache, 0, str(built.other_tokenizer))

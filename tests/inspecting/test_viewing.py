"""A view can be read back from its description."""

from math import exp, log

import pytest

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheMismatchError, RunFileError
from tide_cache.inspecting.viewing import Candidate, describe_view, example_views, worth_showing
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer


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


def test_pieces_of_a_view_are_its_text_and_point_at_their_chunks(built):
    shown = describe_view(built.cache, 4, str(built.tokenizer))
    assert "".join(segment.text for segment in shown.segments) == shown.text.replace("⟦", "").replace("⟧", "")
    for segment in shown.segments:
        if segment.chunk is not None:
            assert segment.is_masked
            assert segment.text == shown.chunks[segment.chunk].text
    assert [s.chunk for s in shown.segments if s.chunk is not None] == list(range(len(shown.chunks)))


def test_the_first_candidate_is_the_true_text_exactly_where_the_teacher_was_right(tmp_path, build_values):
    """With one tokenizer on both sides a chunk is one token, and its kept ids can be read as text."""
    cache, values = tmp_path / "cache", build_values(tmp_path / "cache", "shared")
    build_cache(BuildRun.model_validate(values))
    manifest = Manifest.load(cache)
    source = CacheSource(cache, manifest)
    records = {4 * sample + view: source.records([sample], view)[0] for sample in range(40) for view in range(4)}
    right = [number for number, record in records.items() if record.signal.is_top1_N.any()]
    assert right, "a random teacher is right now and then"
    tokenizer = values["student"]["tokenizer"]["path"]
    chunks = [chunk for number in {0, *right[:6]} for chunk in describe_view(cache, number, tokenizer).chunks]
    assert any(chunk.is_top1 for chunk in chunks)
    for chunk in chunks:
        assert chunk.candidates
        assert (chunk.candidates[0].text == chunk.text) == chunk.is_top1
        logprobs = [candidate.logprob for candidate in chunk.candidates]
        assert logprobs == sorted(logprobs, reverse=True)
        assert sum(map(exp, logprobs)) <= chunk.candidate_mass + 1e-3
        for candidate in chunk.candidates:
            if candidate.text == chunk.text:
                assert candidate.logprob == pytest.approx(chunk.teacher_logprob, abs=2e-2)


def test_candidates_across_tokenizers_are_spelled_for_the_student(tmp_path, build_values):
    values = build_values(tmp_path / "cache", "cross", signals__kinds=("truth", "topk", "chunks"), signals__chunk_k=4)
    run = BuildRun.model_validate(values)
    build_cache(run)
    student, teacher = values["student"]["tokenizer"]["path"], values["teacher"]["model"]
    spelled = [describe_view(tmp_path / "cache", number, student, teacher) for number in range(8)]
    as_ids = [describe_view(tmp_path / "cache", number) for number in range(8)]
    tokenizer = TextTokenizer.load(student)
    longer = 0
    for text_chunk, id_chunk in zip(
        (c for view in spelled for c in view.chunks), (c for view in as_ids for c in view.chunks), strict=True
    ):
        if id_chunk.kept_ids is None:
            longer += 1
            for spelled_candidate, ids in zip(text_chunk.candidates, id_chunk.candidates, strict=True):
                assert spelled_candidate.text == tokenizer.decode([int(i) for i in ids.text.split()])
    assert longer


def test_examples_are_views_of_one_sample_from_low_to_high_t(built):
    numbers = example_views(built.cache)
    shown = [describe_view(built.cache, number) for number in numbers]
    assert len({view.sample_id for view in shown}) == 1
    assert [view.t for view in shown] == sorted(view.t for view in shown)
    assert len(numbers) == 3


def test_unlikely_candidates_are_not_shown_but_the_first_is():
    def candidates(*probabilities):
        return tuple(Candidate(str(p), log(p)) for p in probabilities)

    assert worth_showing(candidates(0.9, 0.05, 0.001)) == candidates(0.9, 0.05)
    assert worth_showing(candidates(0.001, 0.0005)) == candidates(0.001)


def test_another_teacher_tokenizer_and_a_pass_that_is_not_there_are_refused(built):
    with pytest.raises(CacheMismatchError, match="the cache's teacher tokenizer has"):
        describe_view(built.cache, 0, None, str(built.other_tokenizer))
    with pytest.raises(RunFileError, match="found no pass 'compdemo'; expected one of plain"):
        describe_view(built.cache, 0, signal_pass="compdemo")

"""Bytes of a plan by signal, in any codec; what would be stored twice is said."""

from types import SimpleNamespace

from tide_cache.building.planning.signals import bytes_by_signal, repeats


def test_every_byte_has_an_owner_in_any_codec():
    plain = {"sample_id": 1, "teacher_masked": 2, "truth_logprobs": 4, "topk_ids": 8, "chunk_rows": 16, "footer": 32}
    assert bytes_by_signal(plain) == {"views": 35, "truth": 4, "topk": 8, "chunks": 16}
    packed = {"topk_ids_high": 1, "topk_ids_wide": 2, "topk_logprobs_low": 4, "chunk_ids_low": 8, "tail_ids_high": 16}
    assert bytes_by_signal(packed) == {"topk": 7, "chunks": 8, "tail": 16}


def test_what_is_stored_twice_is_said_and_only_that():
    def told(passes, kinds, student):
        identity = SimpleNamespace(
            teacher_tokenizer={"a": "1"}, student_tokenizer={"a": student}, signals=SimpleNamespace(kinds=kinds)
        )
        by_signal = {name: {"topk": 3_000_000, "chunks": 2_000_000} for name in passes}
        return repeats(SimpleNamespace(identity=identity), by_signal)

    assert told(["plain"], ["truth", "topk"], "1") == ()
    assert told(["plain"], ["truth", "topk", "chunks"], "2") == ()
    (one,) = told(["plain"], ["truth", "topk", "chunks"], "1")
    assert "chunks takes 2.0 MB. Leave it out: chunk_kl then reads topk" in one
    (two,) = told(["plain", "compdemo"], ["truth"], "1")
    assert "(plain 5.0 MB, compdemo 5.0 MB)" in two

"""Agreement with the teacher: perfect with oneself, and equal to the plain computation with anybody else."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.errors import CacheMismatchError, RunFileError
from tide_cache.evaluation import teacher_agreement
from tide_cache.loading.collate import BatchLayout
from tide_cache.modeling.packing import pack_block
from tide_cache.records import SampleId, SamplePair, ViewRecord
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.views import active_chunks, draw_view

VOCAB, MASK, PAD, BLOCK = 40, 39, 38, 4
PLAN = BatchLayout(MASK, PAD, BLOCK, shared_vocab_size=VOCAB, temperatures=(1.0, 2.0))
VIEWS = ViewsConfig(num_views=6, seed=0, time_sampling="stratified", schedule="linear", complementary=False)


def sample(index, length):
    """Chunks of one token, but for one of two tokens in the middle."""
    ids = np.random.default_rng(index).integers(0, PAD, length, dtype=np.int32)
    middle = length // 2
    starts = np.delete(np.arange(length, dtype=np.int32), middle)
    ends = np.append(starts[1:], np.int32(length))
    return SamplePair(
        SampleId(f"s{index}"), ids, np.arange(length) >= 2, ids, np.stack([starts, ends, starts, ends], axis=1)
    )


def ask(teacher, top_k=VOCAB, lengths=(9, 16, 6)):
    pairs = [sample(index, length) for index, length in enumerate(lengths)]
    views = [[draw_view(pair, view, VIEWS) for view in range(VIEWS.num_views)] for pair in pairs]
    capture = CaptureSettings(
        context="block",
        block_size=BLOCK,
        mask_id=MASK,
        shared_vocab_size=VOCAB,
        views_per_forward=2,
        batch_tokens=100,
        head_rows=16,
        signals=SignalsConfig(("truth", "topk") if top_k else ("truth",), top_k=top_k, top_p=1.0),
    )
    signals = Teacher(teacher, capture).signals(pairs, views)
    return [
        ViewRecord(pair, view, signal)
        for pair, of_pair, said in zip(pairs, views, signals, strict=True)
        for view, signal in zip(of_pair, said, strict=True)
    ]


def logprobs(backbone, pair, view):
    x_0 = torch.from_numpy(pair.student_ids_L).long()[None]
    x_t = torch.where(torch.from_numpy(view.is_student_masked_L), MASK, x_0)
    with torch.no_grad():
        hidden = backbone(pack_block(x_t[:, None], x_0, torch.ones_like(x_0, dtype=torch.bool), BLOCK))
    return (hidden[0, : x_0.shape[1]] @ backbone.head_VD.T).log_softmax(-1)


def plain(student, teacher, records):
    """Full logits of both models, chunk by chunk."""
    agrees, kl, difference = [], [], []
    for record in records:
        pair = record.pair
        q, p = (logprobs(model, pair, record.view) for model in (student, teacher))
        for start, end in pair.chunks_C4[active_chunks(pair, record.view), 2:]:
            places, truth = torch.arange(start, end), torch.from_numpy(pair.student_ids_L[start:end]).long()
            difference.append(abs((q[places, truth] - p[places, truth]).sum().item()))
            if end - start == 1:
                agrees.append((q[start].argmax() == p[start].argmax()).item())
                kl.append((p[start].exp() * (p[start] - q[start])).sum().item())
    return agrees, kl, difference


def test_a_model_agrees_with_itself(backbone):
    report = teacher_agreement(backbone, ask(backbone, top_k=5), PLAN)
    assert report.num_views == 18
    assert report.overall.num_rows > 20
    assert report.overall.top1_agreement == 1
    assert report.overall.kl == pytest.approx(0, abs=1e-5)
    assert report.overall.chunk_logprob_difference == pytest.approx(0, abs=1e-5)


def test_it_equals_the_plain_computation(backbone, make_backbone):
    other = make_backbone(seed=1)
    records = ask(other)
    overall = teacher_agreement(backbone, records, PLAN, batch_tokens=64).overall
    agrees, kl, difference = plain(backbone, other, records)
    assert (overall.num_rows, overall.num_chunks) == (len(kl), len(difference))
    assert len(difference) > len(kl), "there should be chunks of two tokens"
    assert overall.top1_agreement == pytest.approx(np.mean(agrees))
    assert overall.kl == pytest.approx(np.mean(kl), rel=1e-4)
    assert overall.kl > 0.1
    assert overall.chunk_logprob_difference == pytest.approx(np.mean(difference), rel=1e-4)


def test_keeping_fewer_ids_never_raises_the_kl(backbone, make_backbone):
    other = make_backbone(seed=1)
    values = [teacher_agreement(backbone, ask(other, top_k=k), PLAN).overall.kl for k in (1, 4, VOCAB)]
    assert values[0] <= values[1] <= values[2]


def test_buckets_of_t_partition_the_whole(backbone, make_backbone):
    records = ask(make_backbone(seed=1))
    fullest = max(range(len(records)), key=lambda i: active_chunks(records[i].pair, records[i].view).sum())
    at_one = dataclasses.replace(records[fullest].view, t=1.0)
    records[fullest] = dataclasses.replace(records[fullest], view=at_one)
    report = teacher_agreement(backbone, records, PLAN)
    assert [bucket.t_from for bucket in report.by_time] == [index / 10 for index in range(10)]
    assert sum(bucket.num_rows for bucket in report.by_time) == report.overall.num_rows
    assert sum(bucket.num_chunks for bucket in report.by_time) == report.overall.num_chunks
    for name, number in (("kl", "num_rows"), ("chunk_logprob_difference", "num_chunks")):
        total = sum(getattr(b, name) * getattr(b, number) for b in report.by_time if getattr(b, number))
        assert total / getattr(report.overall, number) == pytest.approx(getattr(report.overall, name))
    for bucket in report.by_time:
        inside = [r for r in records if bucket.t_from <= r.view.t < bucket.t_to or bucket.t_to == r.view.t == 1]
        assert bucket.num_chunks == sum(active_chunks(r.pair, r.view).sum() for r in inside)
    assert json.loads(json.dumps(dataclasses.asdict(report)))["num_views"] == 18


def test_without_candidates_chunks_are_compared(backbone, make_backbone):
    other = make_backbone(seed=1)
    records = ask(other, top_k=0)
    overall = teacher_agreement(backbone, records, PLAN).overall
    assert (overall.num_rows, overall.top1_agreement, overall.kl) == (0, None, None)
    assert overall.chunk_logprob_difference == pytest.approx(np.mean(plain(backbone, other, records)[2]), rel=1e-4)


def test_candidates_that_the_student_lacks_count_as_rest(backbone):
    records = ask(backbone)
    whole, half, none = (
        teacher_agreement(backbone, records, dataclasses.replace(PLAN, shared_vocab_size=size)).overall
        for size in (VOCAB, VOCAB // 2, 0)
    )
    assert whole.num_rows > half.num_rows > none.num_rows == 0
    assert half.kl == pytest.approx(0, abs=1e-5)
    assert whole.num_chunks == half.num_chunks == none.num_chunks


def test_batches_do_not_matter_progress_is_told_and_the_mode_is_kept(backbone, make_backbone):
    records, told = ask(make_backbone(seed=1)), []
    backbone.train()
    small = teacher_agreement(
        backbone, records, PLAN, batch_tokens=1, progress=lambda done, total: told.append((done, total))
    )
    assert backbone.training
    assert told == [(done, 18) for done in range(1, 19)]
    large = teacher_agreement(backbone, records, PLAN)
    for one, other in zip((small.overall, *small.by_time), (large.overall, *large.by_time), strict=True):
        assert (one.num_rows, one.num_chunks, one.top1_agreement) == (
            other.num_rows,
            other.num_chunks,
            other.top1_agreement,
        )
        assert one.kl == pytest.approx(other.kl, abs=1e-4)


def test_what_cannot_be_compared_is_refused(backbone):
    records = ask(backbone)
    backbone.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(RunFileError, match="there is no view"):
        teacher_agreement(backbone, [], PLAN)
    mute = [records[0], dataclasses.replace(records[7], signal=None)]
    with pytest.raises(CacheMismatchError, match=r"1 of 2 views carry no teacher signal, first that of sample 's1'"):
        teacher_agreement(backbone, mute, PLAN)
    with pytest.raises(CacheMismatchError, match=r"holds temperatures \[2.0\], expected 1.0"):
        teacher_agreement(backbone, records, dataclasses.replace(PLAN, temperatures=(2.0,)))
    long = dataclasses.replace(records[0], pair=sample(9, 49))
    with pytest.raises(RunFileError, match=r"sample 's9' has 49 tokens, the model's limit is 48"):
        teacher_agreement(backbone, [long], PLAN)

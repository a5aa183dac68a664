"""Views that are made ready as a row group give the batches that their records give one by one, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.shard_examples import RULES, make_compdemo, make_shard
from helpers.target_examples import leaves
from tide_cache.loading.collate import BatchLayout, batch_of, collate, ready_records
from tide_cache.loading.joining import join_columns
from tide_cache.loading.mix import mixed_layout
from tide_cache.loading.ready_views import READY, make_ready
from tide_cache.loading.taking import TakenViews
from tide_cache.shards.record_columns import pairs_to_columns, signals_to_columns

T = RULES.temperatures
LAYOUT = BatchLayout(98, 99, 4, shared_vocab_size=30, temperatures=T, schedule="cosine", complementary=True)
KINDS = {
    "truth": (),
    "topk": ("topk",),
    "tail": ("topk", "tail"),
    "chunks": ("topk", "tail", "chunks"),
    "projected": ("projected", "chunks"),
}


def records_of(kind, seed=0, view=1):
    """Views whose log-probs are those that a shard gives back."""
    rules = replace(RULES, num_views=2, parts=frozenset(KINDS[kind]))
    indexes, _, records = make_shard(seed, 24, rules, max_chunks=20)
    return indexes, [shared(one) for one in (make_compdemo(seed, records) if kind == "tail" else records)[view]]


def shared(record):
    """The view of a sample whose one-to-one chunks are the same token on both sides."""
    pair = record.pair
    student_ids_L = pair.student_ids_L.copy()
    for a, b, c, d in pair.chunks_C4:
        if (b - a, d - c) == (1, 1):
            student_ids_L[c] = pair.teacher_ids_M[a]
    return replace(record, pair=replace(pair, student_ids_L=student_ids_L))


def with_steps(record):
    rows = int(record.view.is_student_masked_L.sum())
    return replace(record, signal=replace(record.signal, steps_to_reveal_N=np.arange(1, rows + 1, dtype=np.uint16)))


def table_of(indexes, records, layout, source=0):
    columns = pairs_to_columns(indexes, [record.pair for record in records])
    law = layout.law(source)
    joined = join_columns(columns, signals_to_columns(indexes, records, "float32"), law.own, law.temperatures)
    return make_ready(joined, law)


def bits(one):
    """Every array of a batch and its targets."""
    arrays = {name: value for part in one for name, value in leaves(part).items()}
    return {
        name: (value.dtype, tuple(value.shape), value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value
        for name, value in arrays.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_group_is_the_views_in_it(kind):
    indexes, records = records_of(kind)
    if kind == "topk":
        records = [with_steps(record) for record in records]
    table = table_of(indexes, records, LAYOUT)
    alone = [view for record in records for view in ready_records([record], LAYOUT)]
    for name in READY if kind == "topk" else READY.keys() - {"steps"}:
        found = TakenViews(table.all()).parts(name)
        assert [part.tobytes() for part in found] == [
            part.astype(found[0].dtype).tobytes() for part in TakenViews(alone).parts(name)
        ], name
    order = [7, 0, 3, 8]
    views = [table.all()[place] for place in order]
    expected = bits(collate([records[place] for place in order], LAYOUT))
    assert bits(batch_of([[(view,)] for view in views], LAYOUT)) == expected
    assert (expected["steps_to_reveal_N"] is None) == (kind != "topk")
    assert (len(table.values["kept_id"]) > 0) == (kind != "truth")
    assert (len(table.values["drawn_place"]) > 0) == ("tail" in KINDS[kind])
    assert (len(table.values["token_place"]) > 0) == ("chunks" in KINDS[kind])


def test_tables_of_a_mix_meet_in_a_batch():
    """Each with its own T, ids and signals; one has candidates for single tokens, the other for chunks too."""
    other = replace(LAYOUT, shared_vocab_size=12, temperatures=(T[1], 4.0), schedule="linear", complementary=False)
    layout = mixed_layout([LAYOUT, other])
    groups = [records_of("chunks"), records_of("topk", seed=1)]
    records = [[replace(record, source=source) for record in group] for source, (_, group) in enumerate(groups)]
    tables = [table_of(indexes, records[source], layout, source) for source, (indexes, _) in enumerate(groups)]
    order = [(0, 2), (1, 8), (1, 1), (0, 4), (0, 3), (1, 5)]
    views = [tables[source].all()[place] for source, place in order]
    found = bits(batch_of([[(view,)] for view in views], layout))
    assert found == bits(collate([records[source][place] for source, place in order], layout))
    tails = batch_of([[(view,)] for view in views], layout)[1].topk.log_tail_NT
    assert torch.isnan(tails).any()

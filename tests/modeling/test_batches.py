"""The plan of forwards: every view once, within the budget, the same each time."""

from hypothesis import given
from hypothesis import strategies as st

from tide_cache.modeling.batches import ViewGroup, plan_batches


@st.composite
def arguments_of_a_plan(draw):
    samples = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12))
    return {
        "lengths": [length for length, _ in samples],
        "num_views": [num_views for _, num_views in samples],
        "views_per_forward": draw(st.integers(1, 5)),
        "copies": draw(st.integers(0, 1)),
        "batch_tokens": draw(st.integers(1, 500)),
    }


arguments = arguments_of_a_plan()


def padded_tokens(batch, lengths, copies):
    return len(batch) * max(lengths[group.sample] for group in batch) * (len(batch[0].views) + copies)


@given(arguments)
def test_every_view_of_every_sample_once(arguments):
    batches = plan_batches(**arguments)
    seen = [(group.sample, view) for batch in batches for group in batch for view in group.views]
    assert sorted(seen) == [(s, v) for s, count in enumerate(arguments["num_views"]) for v in range(count)]


@given(arguments)
def test_the_budget_holds_unless_a_group_alone_exceeds_it(arguments):
    for batch in plan_batches(**arguments):
        tokens = padded_tokens(batch, arguments["lengths"], arguments["copies"])
        assert len(batch) == 1 or tokens <= arguments["batch_tokens"]


@given(arguments)
def test_the_groups_of_a_batch_have_equally_many_views(arguments):
    for batch in plan_batches(**arguments):
        sizes = {len(group.views) for group in batch}
        assert len(sizes) == 1
        assert max(sizes) <= arguments["views_per_forward"]


@given(arguments)
def test_the_plan_depends_on_its_arguments_alone(arguments):
    assert plan_batches(**arguments) == plan_batches(**arguments)


def test_samples_of_similar_length_share_a_batch():
    batches = plan_batches([30, 3, 29, 4], num_views=[2] * 4, views_per_forward=2, copies=1, batch_tokens=180)
    assert batches == [
        [ViewGroup(1, (0, 1)), ViewGroup(3, (0, 1))],
        [ViewGroup(2, (0, 1)), ViewGroup(0, (0, 1))],
    ]


def test_a_remainder_of_views_goes_in_batches_of_its_own():
    batches = plan_batches([5, 5], num_views=[3, 3], views_per_forward=2, copies=1, batch_tokens=1000)
    assert batches == [
        [ViewGroup(0, (0, 1)), ViewGroup(1, (0, 1))],
        [ViewGroup(0, (2,)), ViewGroup(1, (2,))],
    ]


def test_samples_may_have_different_numbers_of_views():
    batches = plan_batches([5, 5, 5, 5], num_views=[3, 0, 2, 1], views_per_forward=2, copies=1, batch_tokens=1000)
    assert batches == [
        [ViewGroup(0, (0, 1)), ViewGroup(2, (0, 1))],
        [ViewGroup(0, (2,)), ViewGroup(3, (0,))],
    ]

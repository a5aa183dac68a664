"""Figures as people read them."""

from tide_cache.wording import PLAIN_BARS, leaves, sparkline, visible


def test_a_sparkline_has_one_bar_for_each_value_between_the_lowest_and_the_highest():
    assert sparkline([0.0, 0.5, 1.0, None, -3, 9], 0, 1) == "▁▅█ ▁█"
    assert sparkline([0.0, 0.5, 1.0], 0, 1, PLAIN_BARS) == ".+@"
    assert sparkline([2, 2], 2, 2) == "▁▁", "no range is no division by zero"
    assert PLAIN_BARS.isascii()


def test_spaces_at_the_ends_and_line_breaks_are_seen():
    assert visible(" the ") == "␣the␣"
    assert visible("  ") == "␣␣"
    assert visible(":\n    return x") == ":↵    return x"
    assert visible("") == ""


def test_leaves_have_dotted_names_and_plain_values():
    nested = {
        "a": {"b": None, "c": True},
        "list": ["x", "y"],
        "sections": [{"kind": "ce"}, {"kind": "kl"}],
        "h": "f" * 64,
    }
    assert dict(leaves(nested)) == {
        "a.b": "-", "a.c": "yes", "list": "x, y", "sections.0.kind": "ce", "sections.1.kind": "kl", "h": "f" * 16,
    }  # fmt: skip

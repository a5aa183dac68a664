"""A copy in a process of its own answers as the original, errors too, and ends with the one that made it."""

from collections import Counter
from functools import partial
from os import _exit

import pytest

from tide_cache.aside import Aside


def test_a_copy_keeps_its_state_and_gives_answers_and_errors():
    aside = Aside(Counter("aab"))
    assert aside.call("most_common", 1) == [("a", 2)]
    with pytest.raises(KeyError, match="missing"):
        aside.call("pop", "missing")
    aside.call("update", "bbb")
    assert aside.call("most_common", 1) == [("b", 4)]


def test_what_it_prints_is_no_answer_and_it_ends_with_its_owner():
    aside = Aside(partial(print, "x"))
    assert aside.call("__call__") is None
    process = aside._popen
    del aside
    assert process.poll() == 0


def test_its_end_is_said():
    with pytest.raises(RuntimeError, match="ended, exit code 3"):
        Aside(partial(_exit, 3)).call("__call__")

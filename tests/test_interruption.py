"""A signal asks for a stop; where any point is safe, it gets one in time."""

import os
import signal
import time

import pytest

from tide_cache.errors import Interrupted
from tide_cache.interruption import StopRequest


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]


def work_on_after(number):
    with StopRequest(patience_s=0.2) as stop:
        os.kill(os.getpid(), number)
        assert stop.is_set
        while True:
            time.sleep(10)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_long_step_is_cut_off_when_patience_ends(number, code):
    before = handlers()
    started_s = time.monotonic()
    with pytest.raises(Interrupted, match="in the middle of a step; what was committed is kept") as caught:
        work_on_after(number)
    assert caught.value.exit_code == code
    assert 0.2 <= time.monotonic() - started_s < 60
    assert handlers() == before


def test_a_step_that_ends_in_time_is_not_cut_off():
    before = handlers()
    with StopRequest(patience_s=60) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), "nothing is left that would cut off what follows"
    assert stop.is_set
    assert handlers() == before


def test_without_a_limit_a_step_is_waited_for():
    before = signal.getsignal(signal.SIGALRM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set
        assert signal.getsignal(signal.SIGALRM) == before

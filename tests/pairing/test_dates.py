"""Templates that write the date: one day, whatever the clock says, in English, with nothing else changed."""

import datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tide_cache.pairing.dates import on_day, random_names, writes_date

DAY = datetime.date(2026, 3, 7)
FORMATS = [
    "%d %b %Y",
    "%A %d %B",
    "%-d %B, 100%% of %Y",
    "%c|%x|%X|%r|%p|%I",
    "%j %U %W %V %G %u %w",
    "%F %T %e %_d %^a",
]


def rendered(template: str) -> str:
    (text,), _ = render_jinja_template([[{"role": "user", "content": "hi"}]], chat_template=template)
    return str(text)


@pytest.mark.parametrize("form", FORMATS)
def test_every_code_is_what_strftime_gives_on_that_day(form: str) -> None:
    source = f"\n  {{{{ strftime_now('{form}') }}}}|{{% if true %}}{{{{ strftime_now(format='%d') }}}}{{% endif %}}"
    midnight = datetime.datetime(DAY.year, DAY.month, DAY.day)
    assert rendered(on_day(source, DAY)) == f"\n  {midnight.strftime(form)}|07"


def test_a_template_without_the_date_stays_as_it_is() -> None:
    for source in ("{# strftime_now #}strftime_now {{ messages[0].content }}", "{% for m in messages %}x{% endfor %}"):
        assert not writes_date(source)
        assert on_day(source, DAY) is source
    assert writes_date("{% if strftime_now is defined %}{% break %}{% endif %}{% generation %}")


def test_what_is_drawn_at_random_is_found() -> None:
    assert random_names("{{ messages | random }}{{ lipsum() }}") == ("random", "lipsum")
    assert random_names("{{ 'random' }}") == ()

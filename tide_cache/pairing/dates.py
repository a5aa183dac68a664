"""Templates that write the date: they get one fixed day, so that what they render does not change overnight.

transformers gives templates a function `strftime_now`, which reads the clock. A macro of the same name, put before the
template, hides it. All names are English whatever the locale, and the time of day is midnight.
"""

import datetime
import json
from collections.abc import Iterator
from functools import cache

from jinja2 import Environment, TemplateSyntaxError

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_NUMBERS = "CdegGHIjklmMSuUVwWyY"
"""Codes of C's strftime that no locale changes."""
_PERCENT = "\ufdd0"
"""Stands for a percent sign that was written `%%`; a code point that is no character."""


def today() -> datetime.date:
    """Return today's date; the only place where a build or a run reads the clock."""
    return datetime.date.today()


@cache
def writes_date(template: str) -> bool:
    """Return whether a chat template asks for the date.

    Args:
        template: Its source; a mention in a comment or in plain text does not count.
    """
    return "strftime_now" in _names(template)


@cache
def random_names(template: str) -> tuple[str, ...]:
    """List what a template uses that yields a different text each time: Jinja's filter `random` and function `lipsum`.

    Args:
        template: Its source.
    """
    return tuple(name for name in ("random", "lipsum") if name in _names(template))


def on_day(template: str, day: datetime.date) -> str:
    """Return a template that renders as this one does on a given day, at midnight; errors keep their line numbers.

    Args:
        template: Its source.
        day: The day it takes for today.
    """
    if not writes_date(template):
        return template
    codes = ", ".join(f"[{json.dumps(code)}, {json.dumps(text)}]" for code, text in _codes(day))
    return (
        "{%- macro strftime_now(format) -%}"
        f'{{%- set text = namespace(value=format.replace("%%", "{_PERCENT}")) -%}}'
        f"{{%- for code, words in [{codes}] -%}}"
        "{%- set text.value = text.value.replace(code, words) -%}"
        "{%- endfor -%}"
        f'{{{{- text.value.replace("{_PERCENT}", "%") -}}}}'
        "{%- endmacro +%}"  # the plus: a line break at the start of the template stays
        f"{template}"
    )


def _codes(day: datetime.date) -> Iterator[tuple[str, str]]:
    """Yield codes of strftime and what they stand for, with the flags that glibc takes for numbers."""
    at = datetime.datetime(day.year, day.month, day.day)
    weekday, month = _DAYS[day.weekday()], _MONTHS[day.month - 1]
    yield from {
        "%a": weekday[:3], "%A": weekday, "%b": month[:3], "%B": month, "%h": month[:3], "%p": "AM", "%P": "am",
        "%c": f"{weekday[:3]} {month[:3]} {day.day:2d} 00:00:00 {day.year}", "%x": f"{day:%m/%d/%y}", "%X": "00:00:00",
        "%D": f"{day:%m/%d/%y}", "%F": f"{day:%Y-%m-%d}", "%r": "12:00:00 AM", "%R": "00:00", "%T": "00:00:00",
        "%f": "000000", "%n": "\n", "%t": "\t", "%z": "", "%Z": "",
        "%s": str(int(at.replace(tzinfo=datetime.UTC).timestamp())),
        "%^a": weekday[:3].upper(), "%^A": weekday.upper(), "%^b": month[:3].upper(), "%^B": month.upper(),
    }.items()  # fmt: skip
    for flag in ("", "-", "_", "0"):
        yield from ((f"%{flag}{code}", at.strftime(f"%{flag}{code}")) for code in _NUMBERS)


def _names(template: str) -> frozenset[str]:
    """Return the names that a template's code uses; of one that cannot be read, all its words."""
    try:
        tokens = list(Environment(extensions=["jinja2.ext.loopcontrols"]).lex(template))
    except TemplateSyntaxError:
        return frozenset(word for word in ("strftime_now",) if word in template)
    return frozenset(value for _, kind, value in tokens if kind == "name")

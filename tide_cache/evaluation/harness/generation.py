"""A task's settings for writing answers, read as lm-eval's own models read them."""

from collections.abc import Mapping
from typing import Any

from tide_cache.errors import RunFileError

BUDGET = 256
"""New tokens if neither the settings nor the task says how many; also lm-eval's default."""

BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names for the most tokens of an answer; if several are given, the first one applies, as in lm-eval."""

_READ = {*BUDGETS, "until", "do_sample", "temperature", "steps"}
_WHEN_DRAWN = {"top_p", "top_k", "min_p", "typical_p"}
_NEUTRAL = {"num_beams": 1, "top_p": 1, "repetition_penalty": 1, "num_return_sequences": 1, "use_cache": True}


def normalised(settings: Mapping[str, Any], budget: int, where: str) -> dict[str, Any]:
    """Return the settings with the budget as `max_gen_toks`, and with `do_sample` if a temperature asks for draws.

    A temperature above 0 means draws if `do_sample` is not stated; `do_sample: false` means the likeliest token at any
    temperature.

    Args:
        settings: `generation_kwargs` of a task.
        budget: The default.
        where: Name of the task, for messages.

    Raises:
        RunFileError: The budget or the temperature is not a usable number.
    """
    rest = {key: value for key, value in settings.items() if key not in BUDGETS}
    name = next((name for name in BUDGETS if settings.get(name) is not None), None)
    new_tokens = budget if name is None else _number(name, settings[name], int, 1, where)
    result = {**rest, "max_gen_toks": new_tokens}
    if rest.get("do_sample") is None and _number("temperature", rest.get("temperature") or 0, float, 0, where) > 0:
        result["do_sample"] = True
    return result


def temperature_of(settings: Mapping[str, Any]) -> float:
    """Return the temperature of draws, by normalised settings; 0 for the likeliest token."""
    return float(settings.get("temperature", 1.0)) if settings.get("do_sample") else 0.0


def without_effect(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that the block sampler ignores, and that would change another sampler's answer."""
    is_drawn = temperature_of(settings) > 0
    return [
        f"{key} = {value!r}"
        for key, value in settings.items()
        if key not in _READ
        and value is not None
        and not (key in _WHEN_DRAWN and not is_drawn)
        and not (key in _NEUTRAL and value == _NEUTRAL[key])
    ]


def _number(key: str, value: Any, kind: type[int] | type[float], least: int, where: str) -> float:
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or not least <= number < float("inf"):
        raise RunFileError(
            f"--tasks {where}: generation_kwargs.{key}: found {value!r}, expected a number from {least} on"
        )
    return number

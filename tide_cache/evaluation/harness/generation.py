"""What a task says of how its answers are written, read as lm-eval's own models read it."""

from collections.abc import Mapping
from typing import Any

from tide_cache.errors import RunFileError

BUDGET = 256
"""New tokens where neither the settings nor the task says how many; lm-eval's own default too."""

BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the most tokens of an answer; where several are given the first of them holds, as in lm-eval."""

_READ = {*BUDGETS, "until", "do_sample", "temperature", "steps"}
_WHEN_DRAWN = {"top_p", "top_k", "min_p", "typical_p"}
_NEUTRAL = {"num_beams": 1, "top_p": 1, "repetition_penalty": 1, "num_return_sequences": 1, "use_cache": True}


def normalised(settings: Mapping[str, Any], budget: int, where: str) -> dict[str, Any]:
    """Return the settings with the budget as `max_gen_toks` and `do_sample` where a temperature asks for draws.

    A temperature above 0 draws where `do_sample` is not said; `do_sample: false` takes the likeliest, whatever the
    temperature. What says so already stays as it is.

    Args:
        settings: `generation_kwargs` of a task.
        budget: Where none is given.
        where: Name of the task, for messages.

    Raises:
        RunFileError: The budget or the temperature is no number that can be used.
    """
    rest = {key: value for key, value in settings.items() if key not in BUDGETS}
    name = next((name for name in BUDGETS if settings.get(name) is not None), None)
    new_tokens = budget if name is None else _number(name, settings[name], int, 1, where)
    result = {**rest, "max_gen_toks": new_tokens}
    if rest.get("do_sample") is None and _number("temperature", rest.get("temperature") or 0, float, 0, where) > 0:
        result["do_sample"] = True
    return result


def temperature_of(settings: Mapping[str, Any]) -> float:
    """Return the temperature of draws, 0 for the likeliest token; of normalised settings."""
    return float(settings.get("temperature", 1.0)) if settings.get("do_sample") else 0.0


def without_effect(settings: Mapping[str, Any]) -> list[str]:
    """Name the settings that the block sampler has no use for, and that would change an answer elsewhere."""
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

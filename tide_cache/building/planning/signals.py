"""Which bytes of a pass belong to which signal, and what is stored twice."""

from collections.abc import Mapping

from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.shards import PassName
from tide_cache.signal_table import PARTS
from tide_cache.wording import size

OF_VIEWS = "views"
"""What is stored for a view whatever the teacher says: masks, names, the footer."""


def bytes_by_signal(columns: Mapping[str, int]) -> dict[str, int]:
    """Add up the bytes of a pass by signal.

    Args:
        columns: Bytes by column, of any codec: a packed column begins with the name of what it packs.
    """
    owners = {field.column: part.name for part in PARTS for field in part.fields}
    result: dict[str, int] = {}
    for name, num_bytes in columns.items():
        found = [column for column in owners if name == column or name.startswith(f"{column}_")]
        owner = owners[max(found, key=len)] if found else OF_VIEWS
        result[owner] = result.get(owner, 0) + num_bytes
    return result


def repeats(build: PreparedBuild, by_signal: Mapping[PassName, Mapping[str, int]]) -> tuple[str, ...]:
    """Say what a cache of this build would hold twice.

    Args:
        build: A checked build.
        by_signal: Bytes of each signal, by pass.
    """
    result = []
    if len(by_signal) > 1:
        sizes = ", ".join(f"{name} {size(sum(of_pass.values()))}" for name, of_pass in by_signal.items())
        result.append(
            f"passes: each holds every signal ({sizes}), and compdemo takes two forwards a view. A run reads one pass; "
            "the other can be added later (build.passes)."
        )
    identity = build.identity
    is_shared = identity.teacher_tokenizer == identity.student_tokenizer
    if is_shared and {"topk", "chunks"} <= set(identity.signals.kinds):
        twice = sum(of_pass.get("chunks", 0) for of_pass in by_signal.values())
        result.append(
            "signals.kinds: teacher and student have one tokenizer, so nearly every chunk is one token, of which topk "
            f"and chunks hold the same numbers: chunks takes {size(twice)}. Leave it out: chunk_kl then reads "
            "topk."
        )
    return tuple(result)

"""One row of what an engine said of a text: its likeliest next tokens at each position, checked against themselves.

Shape suffixes: M tokens of the text, E listed ids of all positions, one after the other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tide_cache.corpus.rows import RowFault, kind_of
from tide_cache.corpus.store import RowKind
from tide_cache.records import Bools, Float32s, Int32s
from tide_cache.shards.checks import LOGPROB_SLACK, MASS_TOLERANCE

UNKNOWN = -1
"""A token that a file does not state."""


class Entry(NamedTuple):
    """One token of a list, as an engine wrote it."""

    token_id: int
    logprob: float
    rank: int | None = None
    text: str | None = None


class Top(NamedTuple):
    """What is said of one token.

    Attributes:
        truth_logprob: log p of the true one, NaN where it is not stated.
        is_top1: Whether that is the likeliest.
        listed: The likeliest tokens, most likely first, without a true one behind them.
        is_certain: False where the last listed one is the true one, which may stand there only because it is true.
    """

    truth_logprob: float
    is_top1: bool
    listed: list[Entry]
    is_certain: bool


@dataclass(frozen=True, eq=False)
class EngineRow:
    """What an engine said of one text.

    Attributes:
        origin: Where the row was read, for messages: `topk.jsonl:17`.
        name: Of its sample, empty where the file does not say.
        is_padded: The last token may be one that was appended to the text.
        token_ids_M: Tokens of the text; `UNKNOWN` for the first where the file does not say.
        truth_logprobs_M: log p of each token, given those before it; NaN where it is not stated.
        is_top1_M: Whether the token was the likeliest one.
        depths_M: Number of listed tokens at each position, 0 where nothing is said.
        is_certain_M: As in `Top`.
        ids_E: Listed tokens, most likely first at each position.
        logprobs_E: Their log-probs.
        texts_M: Text of each token as the engine wrote it; empty where it did not.
    """

    origin: str
    name: str
    is_padded: bool
    token_ids_M: Int32s
    truth_logprobs_M: Float32s
    is_top1_M: Bools
    depths_M: Int32s
    is_certain_M: Bools
    ids_E: Int32s
    logprobs_E: Float32s
    texts_M: tuple[str, ...]


def row_of(
    origin: str,
    name: str,
    token_ids: Sequence[int],
    positions: Sequence[Sequence[Entry] | None],
    vocab_size: int,
    is_padded: bool = False,
    lists_truth: bool = True,
) -> EngineRow:
    """Check what is said at each position, and put it into arrays.

    Args:
        origin: As in `EngineRow`.
        name: As in `EngineRow`.
        token_ids: Tokens of the text.
        positions: For each token what the engine listed for it; None where it said nothing.
        vocab_size: Ids are below it.
        is_padded: As in `EngineRow`.
        lists_truth: The engine lists the true token too where it is not among the likeliest.

    Raises:
        RowFault: Numbers contradict each other; names the position.
    """
    tops = []
    for place, (token_id, entries) in enumerate(zip(token_ids, positions, strict=True)):
        try:
            tops.append(None if entries is None else top_of(entries, token_id, vocab_size, lists_truth))
        except RowFault as fault:
            raise RowFault(f"position {place}: {fault}") from None
    listed = [entry for top in tops if top is not None for entry in top.listed]
    texts = [
        next((e.text or "" for e in entries or () if e.token_id == token_id), "")
        for token_id, entries in zip(token_ids, positions, strict=True)
    ]
    return EngineRow(
        origin=origin,
        name=name,
        is_padded=is_padded,
        token_ids_M=np.array(token_ids, np.int32),
        truth_logprobs_M=np.array([math.nan if top is None else top.truth_logprob for top in tops], np.float32),
        is_top1_M=np.array([top is not None and top.is_top1 for top in tops], bool),
        depths_M=np.array([0 if top is None else len(top.listed) for top in tops], np.int32),
        is_certain_M=np.array([top is not None and top.is_certain for top in tops], bool),
        ids_E=np.array([entry.token_id for entry in listed], np.int32),
        logprobs_E=np.array([entry.logprob for entry in listed], np.float32),
        texts_M=tuple(texts),
    )


def entries_of(value: object) -> list[Entry] | None:
    """Read the list of one position: an object by token id, or a list of such entries; None where nothing is said.

    Args:
        value: As decoded from JSON or Parquet.

    Raises:
        RowFault: It has another shape.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        found = [_entry(key, said) for key, said in value.items() if said is not None]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        found = [_entry_of_list(item) for item in value]
    else:
        raise RowFault(f"found {kind_of(value)}, expected an object of token ids, as vLLM's prompt_logprobs has them")
    return found or None


def _entry_of_list(item: object) -> Entry:
    if isinstance(item, Mapping):
        return _entry(item.get("token_id", item.get("id")), item)
    if isinstance(item, Sequence) and len(item) == 2:
        return _entry(*item)
    raise RowFault(f"found {kind_of(item)} in a list, expected an object with token_id and logprob")


def _entry(key: object, said: Any) -> Entry:
    try:
        token_id = int(key)  # type: ignore[call-overload]
        if not isinstance(said, Mapping):
            return Entry(token_id, float(said))
        rank, text = said.get("rank"), said.get("decoded_token")
        return Entry(token_id, float(said["logprob"]), None if rank is None else int(rank), text)
    except (KeyError, TypeError, ValueError):
        raise RowFault(f"found {key!r}: {said!r}, expected a token id and its logprob") from None


def top_of(entries: Sequence[Entry], true_id: int, vocab_size: int, lists_truth: bool = True) -> Top:
    """Sort the tokens of one position, and tell the likeliest from a true one that was added.

    Args:
        entries: As the engine wrote them.
        true_id: Token of the text.
        vocab_size: Ids are below it.
        lists_truth: As for `row_of`.

    Raises:
        RowFault: They are not the log-probs of the likeliest tokens in their order.
    """
    _require_numbers(entries, vocab_size)
    true = next((entry for entry in entries if entry.token_id == true_id), None)
    if all(entry.rank is not None for entry in entries):
        ordered, listed = _by_rank(entries, true)
    else:
        if lists_truth and list(entries) == [true]:
            raise RowFault("found the true token alone, without its rank, which tells whether it is the likeliest")
        ordered = [entry for entry in entries if entry is not true or not lists_truth]
        _require_falling(ordered)
        if true is not None and lists_truth:
            place = sum(entry.logprob >= true.logprob for entry in ordered)
            ordered.insert(place, true)
        listed = ordered
    _require_falling(ordered)
    _require_mass(ordered, len(listed), vocab_size)
    is_certain = not lists_truth or len(listed) < len(ordered) or ordered[-1] is not true
    return Top(
        truth_logprob=math.nan if true is None else true.logprob,
        is_top1=true is not None and len(listed) > 0 and true.logprob >= listed[0].logprob,
        listed=listed,
        is_certain=is_certain,
    )


def _by_rank(entries: Sequence[Entry], true: Entry | None) -> tuple[list[Entry], list[Entry]]:
    """Return all tokens by rank, and those whose ranks have no gap."""
    ordered = sorted(entries, key=lambda entry: (entry.rank or 0, entry is true))
    depth = next((place for place, entry in enumerate(ordered) if entry.rank != place + 1), len(ordered))
    if ordered[depth:] and ordered[depth:] != [true]:
        found = ", ".join(str(entry.rank) for entry in ordered[depth:][:3])
        raise RowFault(f"found rank {found} behind {depth} ranks in order; expected rank {depth + 1}")
    return ordered, ordered[:depth]


def _require_numbers(entries: Sequence[Entry], vocab_size: int) -> None:
    seen = set()
    for entry in entries:
        if not 0 <= entry.token_id < vocab_size:
            raise RowFault(f"found token id {entry.token_id}; the teacher's vocabulary has {vocab_size} ids")
        if entry.token_id in seen:
            raise RowFault(f"found token id {entry.token_id} twice; expected each once")
        if not math.isfinite(entry.logprob) or entry.logprob > LOGPROB_SLACK:
            raise RowFault(
                f"found log-prob {entry.logprob} of token id {entry.token_id}; expected a finite number, at most 0"
            )
        seen.add(entry.token_id)


def _require_falling(ordered: Sequence[Entry]) -> None:
    for one, other in pairwise(ordered):
        if other.logprob > one.logprob:
            raise RowFault(
                f"top-k is out of order: found token id {other.token_id} with log-prob {other.logprob:.6g} behind "
                f"{one.token_id} with {one.logprob:.6g}; expected the likeliest first"
            )


def _require_mass(ordered: Sequence[Entry], depth: int, vocab_size: int) -> None:
    mass = math.fsum(math.exp(entry.logprob) for entry in ordered)
    if mass > 1 + MASS_TOLERANCE:
        raise RowFault(f"found probabilities that sum to {mass:.6g}; expected at most 1")
    most = (vocab_size - len(ordered)) * math.exp(ordered[depth - 1].logprob) if depth else 1.0
    if 1 - mass > most + MASS_TOLERANCE:
        raise RowFault(
            f"found probabilities that sum to {mass:.6g}, and {vocab_size - len(ordered)} other ids, none likelier "
            f"than the last, make up {most:.6g} at most; expected log-probs over the whole vocabulary at temperature 1"
        )


def _columns_of(rows: Sequence[EngineRow]) -> list[list[Any]]:
    return [[getattr(row, field.name) for row in rows] for field in ENGINE_ROWS.schema]


def _rows_of(batch: Any) -> Iterator[EngineRow]:
    arrays = ("token_ids_M", "truth_logprobs_M", "is_top1_M", "depths_M", "is_certain_M", "ids_E", "logprobs_E")
    for values in zip(*batch.columns, strict=True):
        found = dict(zip(batch.schema.names, values, strict=True))
        yield EngineRow(
            origin=found["origin"].as_py(),
            name=found["name"].as_py(),
            is_padded=found["is_padded"].as_py(),
            texts_M=tuple(found["texts_M"].as_py()),
            **{name: np.array(found[name].values.to_numpy(zero_copy_only=False)) for name in arrays},
        )


ENGINE_ROWS: RowKind[EngineRow] = RowKind(
    schema=pa.schema(
        [
            ("origin", pa.string()),
            ("name", pa.string()),
            ("is_padded", pa.bool_()),
            ("token_ids_M", pa.list_(pa.int32())),
            ("truth_logprobs_M", pa.list_(pa.float32())),
            ("is_top1_M", pa.list_(pa.bool_())),
            ("depths_M", pa.list_(pa.int32())),
            ("is_certain_M", pa.list_(pa.bool_())),
            ("ids_E", pa.list_(pa.int32())),
            ("logprobs_E", pa.list_(pa.float32())),
            ("texts_M", pa.list_(pa.string())),
        ]
    ),
    columns_of=_columns_of,
    rows_of=_rows_of,
    hashed_form=lambda row: b"",  # the file's own hash is in the identity
    size_of=lambda row: len(row.token_ids_M) + 2 * len(row.ids_E),
)

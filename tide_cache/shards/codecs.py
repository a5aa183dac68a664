"""The codecs by name: how the columns of the signals table are stored and restored."""

from collections.abc import Callable
from dataclasses import dataclass

from tide_cache.config.settings import CodecName
from tide_cache.shards.columns import Columns
from tide_cache.shards.compact import pack, unpack


@dataclass(frozen=True, slots=True)
class Codec:
    """Two functions on the columns of a row group; `unpack(pack(x))` is `x` to the last bit.

    Attributes:
        pack: Turns plain columns into those of the codec's schema.
        unpack: The inverse. Contradictory columns raise a `ValueFault`; a group of columns may be absent.
    """

    pack: Callable[[Columns], Columns]
    unpack: Callable[[Columns], Columns]


CODECS: dict[CodecName, Codec] = {
    "plain": Codec(pack=lambda columns: columns, unpack=lambda columns: columns),
    "compact": Codec(pack, unpack),
}

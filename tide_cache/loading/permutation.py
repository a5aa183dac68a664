"""A keyed permutation that is computed place by place: what is stored of it does not grow with its length.

A Feistel network is a permutation whatever its round function is: in turns each half is changed by what the other one
says. Numbers beyond the length are sent through again
until they fall below it (cycle walking), which leaves a permutation of those below.

Source: Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002.
"""

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Int64s, Ints
from tide_cache.views.random import KeyedRandom

ROUNDS = 6
MOST_DRAWN = 1024
"""Permutations up to this length are drawn whole: each is as likely as any other."""

UInt64s = npt.NDArray[np.uint64]
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class KeyedPermutation:
    """A permutation of `range(size)` that depends on its key alone."""

    def __init__(self, size: int, *key: str | int):
        self._size = size
        random = KeyedRandom(*key)
        self._drawn = random.permutation(size) if size <= MOST_DRAWN else None
        bits = (size - 1).bit_length()
        self._shift = np.uint64(bits // 2)
        self._masks = [np.uint64((1 << bits - bits // 2) - 1), np.uint64((1 << bits // 2) - 1)]
        self._keys = random.words(ROUNDS)

    def __call__(self, places: Ints) -> Int64s:
        """Return the numbers at some places, each below the size."""
        if self._drawn is not None:
            return self._drawn[places]
        found = self._once(places.astype(np.uint64))
        while len(outside := np.flatnonzero(found >= self._size)):
            found[outside] = self._once(found[outside])
        return found.astype(np.int64)

    def _once(self, numbers: UInt64s) -> UInt64s:
        halves = [numbers >> self._shift, numbers & self._masks[1]]
        for number, key in enumerate(self._keys):
            own = number % 2
            halves[own] = halves[own] ^ (_mixed(halves[1 - own] ^ key) & self._masks[own])
        return halves[0] << self._shift | halves[1]


def _mixed(words: UInt64s) -> UInt64s:
    """Mix 64 bits, as the finaliser of SplitMix64 does."""
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))

"""Replayable random numbers: a counter-based generator keyed by names, so that a manifest determines every mask.

Philox (Salmon et al., SC'11) maps key and counter to random words without state. The key is a hash of the names, so
numbers depend neither on the order in which samples are visited nor on the number of workers.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from tide_cache.records import Float32s


class KeyedRandom:
    """Uniform numbers that depend only on the key and on how many were drawn before."""

    def __init__(self, *key: str | int):
        digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
        self._words = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))

    def uniform(self, size: int) -> Float32s:
        """Draw from [0, 1): multiples of 2^-24, exact in float32."""
        words = self.words(size)
        return ((words >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)

    def permutation(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Draw an order of `range(size)`; ties between 64-bit words are broken by position."""
        return np.argsort(self.words(size), kind="stable")

    def words(self, size: int) -> npt.NDArray[np.uint64]:
        """Draw words of 64 bits."""
        return np.atleast_1d(self._words.random_raw(size)) if size else np.zeros(0, np.uint64)

"""A corpus that somebody else has read: what is known of it, and its rows should they be needed after all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tide_cache.corpus.store import Corpus, Row
from tide_cache.errors import CacheMismatchError


@dataclass(frozen=True)
class KnownCorpus:
    """What is known of a corpus that was read before.

    Attributes:
        content_hash: As of a `Corpus`.
        num_rows: Rows of it.
        skipped: As of a `Corpus`.
    """

    content_hash: str
    num_rows: int
    skipped: tuple[str, ...] = ()


class UnreadCorpus(Corpus[Row]):
    """Stands for a corpus whose samples are published; reads it when a row is asked for."""

    def __init__(self, known: KnownCorpus, read: Callable[[], Corpus[Row]]) -> None:
        """Read nothing.

        Args:
            known: What whoever has read it found.
            read: Reads it.
        """
        self.content_hash, self.skipped, self.notes = known.content_hash, known.skipped, ()
        self._num_rows, self._read = known.num_rows, read
        self._corpus: Corpus[Row] | None = None

    def __len__(self) -> int:
        return self._num_rows

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield rows; see `Corpus`.

        Raises:
            CacheMismatchError: What is read is not the corpus that is known.
        """
        if self._corpus is None:
            self._corpus = self._read()
            if self._corpus.content_hash != self.content_hash:
                raise CacheMismatchError(
                    f"the corpus has changed: found rows with the hash {self._corpus.content_hash[:16]}, the cache was "
                    f"begun with {self.content_hash[:16]}.\nRestore its files, or give another build.out."
                )
        return self._corpus.rows(start, stop)

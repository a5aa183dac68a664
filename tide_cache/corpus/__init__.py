"""From a corpus spec to chat rows.

| name ends in | holds |
|---|---|
| `.jsonl`, `.jsonl.gz`, `.jsonl.zst` | one JSON object per line |
| `.json` | an array of objects, or `{"data": [objects]}`; read whole, so for small corpora |
| `.parquet` | columns named as the fields of a row |
| `.txt` | paragraphs separated by blank lines; each is one message of the assistant |

A folder is either what `save_to_disk` of `datasets` wrote, or its files of these kinds in order of name. `owner/name`
where no such file lies is a hub dataset. What the fields of a row may be is in `shapes`, selections in `spec`.
"""

from tide_cache.corpus.reading import open_corpus
from tide_cache.corpus.store import Corpus

__all__ = ["Corpus", "open_corpus"]

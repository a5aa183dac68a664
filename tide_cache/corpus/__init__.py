"""From a corpus spec to chat rows, or to rows that are already tokenised.

| name ends in | holds |
|---|---|
| `.jsonl`, `.jsonl.gz`, `.jsonl.zst` | one JSON object per line |
| `.json` | an array of objects, or `{"data": [objects]}`; read whole, so for small corpora |
| `.parquet` | columns named as the fields of a row |
| `.txt` | paragraphs separated by blank lines; each is one message of the assistant |

A folder is what `save_to_disk` of `datasets` wrote, or holds files of these kinds, read in order of name. `owner/name`
where no such file lies is a hub dataset. What the fields of a row may be is in `shapes`, or for preprocessed sets in
`preprocessed`, selections in `spec`.
"""

from tide_cache.config.settings import PreprocessedFormat
from tide_cache.corpus.preprocessed import open_preprocessed
from tide_cache.corpus.reading import open_corpus
from tide_cache.corpus.store import Corpus, Row
from tide_cache.corpus.trajectories import trajectories_of, trajectory_field

__all__ = [
    "Corpus",
    "PreprocessedFormat",
    "Row",
    "open_corpus",
    "open_preprocessed",
    "trajectories_of",
    "trajectory_field",
]

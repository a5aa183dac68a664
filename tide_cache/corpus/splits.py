"""Which split a file belongs to, judged by its name as `datasets` does (pure).

`train-00000-of-00001.parquet`, `my_test.jsonl` and `validation/part-0.json` name a split; `rows.jsonl` names none. A
folder in which no name tells a split is all `train`, and so is a file named directly.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from tide_cache.errors import CorpusError

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
USUAL_SPLITS = frozenset(_WORDS)
_CANONICAL = {word: split for split, words in _WORDS.items() for word in words}
_SHARD = re.compile(r"(?P<split>\w[\w.]*)-\d{5}-of-\d{5}\b.*")
_SHOWN = 5


def canonical_split(word: str) -> str:
    """Return the usual name of a split: `val`, `dev` and `valid` are `validation`."""
    return _CANONICAL.get(word.lower(), word)


def splits_of(path: PurePath) -> frozenset[str]:
    """Return the splits that a file's name tells, else those of its folders, the nearest first.

    Args:
        path: Relative to the folder that was named.
    """
    if shard := _SHARD.fullmatch(path.name):
        return frozenset([canonical_split(shard["split"])])
    stem = path.name.split(".", 1)[0]
    for name in (path.name, *reversed(path.parts[:-1])):
        words = {word for word in re.split(r"[-._ 0-9]+", name.lower()) if word in _CANONICAL}
        if words:
            return frozenset([*(_CANONICAL[word] for word in words), *([stem] if name == path.name else [name])])
    return frozenset([stem, *path.parts[:-1]])


def tells_split(path: PurePath) -> bool:
    """Return whether a name names a usual split, or is a shard of any split."""
    return bool(_SHARD.fullmatch(path.name)) or not _WORDS.keys().isdisjoint(splits_of(path))


def files_of_split(files: Sequence[PurePath], word: str, where: str) -> list[PurePath]:
    """Choose the files of a split.

    Args:
        files: Paths relative to the folder.
        word: The split.
        where: The folder, for messages.

    Raises:
        CorpusError: No file is of this split; lists those there are.
    """
    split = canonical_split(word)
    chosen = [path for path in files if split in splits_of(path)]
    if chosen:
        return chosen
    if split == "train" and not any(map(tells_split, files)):
        return list(files)
    found = sorted({name for path in files if tells_split(path) for name in splits_of(path) if name in _WORDS})
    found += sorted({match["split"] for path in files if (match := _SHARD.fullmatch(path.name))} - set(_CANONICAL))
    told = ", ".join(found) if found else "train, since no name of its files tells a split"
    first = found[0] if found else "train"
    raise CorpusError(
        f"{where}: found no file of split {word!r}; expected one of: {told}. Write [{first}:] after the folder's name, "
        f"or name the files. Files: {listed(files)}."
    )


def require_split_of_file(path: PurePath, word: str, where: str) -> None:
    """Refuse a split word that does not match a single file.

    Args:
        path: The file's name.
        word: The split.
        where: The file, for messages.

    Raises:
        CorpusError: The word is neither train nor told by the file's name.
    """
    if canonical_split(word) not in {"train", *splits_of(PurePath(path.name))}:
        raise CorpusError(
            f"{where}: found the split {word!r}; a file has no splits, and this one's name does not say {word!r}. "
            "Leave the word out, or write [train:N] for the first N rows."
        )


def listed(names: Iterable[object]) -> str:
    """Return some names, and say how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more

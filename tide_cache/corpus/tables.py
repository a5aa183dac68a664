"""Readers of Arrow tables: Parquet files, datasets saved to disk, and datasets of the Hugging Face hub.

Only columns that a shape uses are decoded: a column of images would cost time, and some types cannot become Python
values at all. The other columns appear under their names with a placeholder.
"""

import os
from collections.abc import Container, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tide_cache.corpus.rows import RawRow, RowFault
from tide_cache.corpus.shapes import NOT_READ
from tide_cache.errors import CorpusError, UnreadableError
from tide_cache.unreadable import is_there, told_apart

_ROWS_PER_BATCH = 256


def read_parquet(path: Path, wanted: Container[str]) -> Iterator[RawRow]:
    """Stream a Parquet file."""
    try:
        with told_apart(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            columns = _columns_to_read(names, wanted)
            yield from _rows(file.iter_batches(_ROWS_PER_BATCH, columns=columns), names)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{path}: cannot be read: {error}; expected a whole Parquet file. Copy or download it again."
        ) from None


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `datasets.save_to_disk` wrote a folder."""
    is_single = is_there(folder / "state.json") and is_there(folder / "dataset_info.json")
    return is_single or is_there(folder / "dataset_dict.json")


def read_saved_dataset(folder: Path, split: str | None, wanted: Container[str]) -> Iterator[RawRow]:
    """Stream a folder that `datasets.save_to_disk` wrote; several splits need one to be named."""
    import datasets  # slow to import; most corpora are plain files

    try:
        with told_apart(folder):
            saved = datasets.load_from_disk(str(folder))
    except UnreadableError:
        raise
    except Exception as error:  # whatever a foreign library meets in a broken folder
        raise CorpusError(
            f"{folder}: cannot be read: {type(error).__name__}: {error}; expected a folder that save_to_disk of "
            "datasets wrote. Copy it again, or save it again."
        ) from None
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            found = f"no split {split!r}" if split else f"{len(saved)} splits and none selected"
            raise CorpusError(
                f"{folder}: found {found}; expected one of {', '.join(saved)}. Select it with "
                f"[{next(iter(saved), 'train')}:] after the folder's name."
            )
        saved = saved[split]
    elif split is not None and split != str(saved.split or "train"):
        told = f"it is split {str(saved.split)!r}" if saved.split is not None else "it has no splits"
        raise CorpusError(
            f"{folder}: found the split {split!r} selected; {told}. Leave the word out, or write "
            f"[{saved.split or 'train'}:N] for its first N rows."
        )
    with told_apart(folder):
        yield from _dataset_rows(saved, wanted)


def read_hub(name: str, config: str | None, split: str | None, wanted: Container[str]) -> Iterator[RawRow]:
    """Stream a hub dataset, downloaded or from the local hub cache; the default split is train.

    No code of the dataset is ever run: `trust_remote_code` stays off.
    """
    if os.path.isdir(name):
        raise CorpusError(
            f"{name}: is a folder of the working directory and would be taken for the hub dataset of that name. "
            f"Give its path as ./{name} from corpus.folder, or start from another directory."
        )
    from tide_cache.hub import ask_for_dataset, is_told_by_hub, refusal, require_usable_cache, unasked_hub

    found = ask_for_dataset(name)
    try:
        with unasked_hub() if found is not None else nullcontext():
            dataset = _load_split(name, config, split or "train")
    except Exception as error:  # the network, the hub and every builder have their own
        require_usable_cache(error)
        if found is not None and not isinstance(error, ValueError):  # a ValueError knows configurations and splits
            raise CorpusError(refusal(name, None, found, "datasets/")) from None
        if is_told_by_hub(error):
            raise CorpusError(refusal(name, None, error, "datasets/")) from None
        raise CorpusError(
            f"{name}: no such local file, and not loadable as a hub dataset "
            f"(configuration {config or 'default'}, split {split or 'train'}): {type(error).__name__}: {error}\n"
            "Check the name, name:<configuration> and split. Without a network, load it once where there is one and "
            "copy its HF_HOME here, or save it there with save_to_disk of datasets and give that folder."
        ) from None
    yield from _dataset_rows(dataset, wanted)


def _load_split(name: str, config: str | None, split: str) -> Any:
    """Load one split of a hub dataset, without fetching the files of the others.

    `datasets.load_dataset` prepares all splits whichever is asked for. A single split is kept in a separate cache
    folder, `splits/NAME` of the usual one, so that the usual one never holds a dataset that lacks some splits.
    """
    import datasets

    root = os.path.join(datasets.config.HF_DATASETS_CACHE, "splits", split)
    builder = None
    with suppress(Exception):  # not reachable, and not kept alone: the usual way has the rest of the answers
        builder = datasets.load_dataset_builder(name, config, cache_dir=root)
    if builder is None:
        return datasets.load_dataset(name, config, split=split)
    files = builder.config.data_files
    if files is not None and split not in files:
        raise ValueError(f"Unknown split {split!r}. Should be one of {list(map(str, files))}.")
    kept_whole = os.path.join(datasets.config.HF_DATASETS_CACHE, os.path.relpath(builder.cache_dir, root))
    if os.path.isdir(kept_whole):
        return datasets.load_dataset(name, config, split=split)
    if files is not None:
        builder.config.data_files = datasets.data_files.DataFilesDict({split: files[split]})
        builder.info.splits = None  # it lists all of them, and is compared with what is prepared
        builder.info.download_checksums = None
    builder.download_and_prepare(verification_mode="no_checks")
    return builder.as_dataset(split=split)


def _dataset_rows(dataset: Any, wanted: Container[str]) -> Iterator[RawRow]:
    names = dataset.column_names
    narrowed = dataset.select_columns(_columns_to_read(names, wanted)).with_format("arrow")
    batches = (
        batch for table in narrowed.iter(batch_size=_ROWS_PER_BATCH) for batch in table.combine_chunks().to_batches()
    )
    return _rows(batches, names)


def _columns_to_read(names: list[str], wanted: Container[str]) -> list[str]:
    """Return the wanted columns, or else the first one, because rows without any column cannot be counted."""
    return [name for name in names if name in wanted] or names[:1]


def _rows(batches: Iterable[Any], names: list[str]) -> Iterator[RawRow]:
    placeholders = dict.fromkeys(names, NOT_READ)
    number = 0
    for batch in batches:
        for value in _values(batch):
            yield RawRow(number, None, value if isinstance(value, RowFault) else {**placeholders, **value})
            number += 1


def _values(batch: Any) -> Iterator[dict[str, Any] | RowFault]:
    """Decode a batch; a string that is not UTF-8 spoils its own row only."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield RowFault(f"a string is not UTF-8 ({error.reason}); expected UTF-8 text")
            return
        for row in range(batch.num_rows):
            yield from _values(batch.slice(row, 1))

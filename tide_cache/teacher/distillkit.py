"""DistillKit's Parquet: for each token but the first the likeliest ids in packed bits, and their log-probs.

Only the log-probs that it stores as they are count (`exact_k` of its configuration); what it approximates behind them
is not read. It does not keep log p of a token that is not among the likeliest.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.corpus.rows import RawRow, RowFault
from tide_cache.errors import EngineFileError
from tide_cache.teacher.engine_rows import EngineRow, Entry, row_of
from tide_cache.unreadable import told_apart

COLUMNS = frozenset({"input_ids", "compressed_logprobs", "bytepacked_indices"})
LEGACY_COLUMNS = frozenset({"packed_indices", "exact_values", "coeffs"})
CONFIGURATION = "compression_config.yaml"
DTYPES = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}


def refuse_legacy(file: Path) -> None:
    """Refuse the form of its first releases.

    Raises:
        EngineFileError: Always.
    """
    raise EngineFileError(
        f"{file}: found DistillKit's legacy compression ({', '.join(sorted(LEGACY_COLUMNS))}), which is not read. "
        "Sample the logits again with a release that writes compressed_logprobs, or import vLLM's prompt_logprobs"
    )


@dataclass(frozen=True)
class Packing:
    """How a file is packed; the fields are those of DistillKit's configuration.

    Attributes:
        d: Ids of the vocabulary.
        k: Packed ids at a position.
        exact_k: How many of them have a stored log-prob.
        exact_dtype: Of what is stored.
        delta_encoding: What is stored are differences, but for the first.
    """

    d: int
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    delta_encoding: bool = True

    @classmethod
    def beside(cls, file: Path) -> "Packing":
        """Read the configuration beside a file.

        Args:
            file: Of DistillKit.

        Raises:
            EngineFileError: There is none, or it keeps no log-prob as it is.
        """
        import yaml

        path = file.parent / CONFIGURATION
        try:
            with told_apart(path):
                raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise EngineFileError(
                f"{path}: cannot be read: {error}; DistillKit writes it beside its Parquet files, and they cannot be "
                "unpacked without it"
            ) from None
        names = cls.__dataclass_fields__
        stated = {name: raw[name] for name in names if name in raw} if isinstance(raw, Mapping) else {}
        numbers = {name: stated.get(name) for name in ("d", "k", "exact_k")}
        if not all(isinstance(value, int) and value >= 0 for value in numbers.values()):
            raise EngineFileError(f"{path}: found {numbers}, expected three numbers")
        found = cls(**stated)
        if not found.exact_k:
            raise EngineFileError(
                f"{path}: exact_k: found 0: all log-probs are approximated, and none can be imported. Sample the "
                "logits again with exact_k above 0, or import vLLM's prompt_logprobs"
            )
        if found.exact_dtype not in DTYPES:
            raise EngineFileError(
                f"{path}: exact_dtype: found {found.exact_dtype!r}, expected one of {', '.join(DTYPES)}"
            )
        return found

    def reader(self, vocab_size: int) -> Callable[[RawRow, str], EngineRow]:
        """Return what reads a row.

        Args:
            vocab_size: Ids of the teacher are below it.
        """

        def read(raw: RawRow, origin: str) -> EngineRow:
            value: Any = raw.value
            ids, packed, stored = (value[name] for name in ("input_ids", "bytepacked_indices", "compressed_logprobs"))
            if not len(packed) == len(stored) == len(ids) - 1:
                raise RowFault(
                    f"found {len(ids)} input_ids, {len(packed)} bytepacked_indices and {len(stored)} "
                    "compressed_logprobs; expected one less of both than tokens"
                )
            positions = []
            for place, (ids_said, logprobs) in enumerate(zip(packed, stored, strict=True), start=1):
                try:
                    positions.append(self.entries(bytes(ids_said), bytes(logprobs)))
                except RowFault as fault:
                    raise RowFault(f"position {place}: {fault}") from None
            return row_of(origin, "", ids, [None, *positions], vocab_size, is_padded=True, lists_truth=False)

        return read

    def entries(self, packed_ids: bytes, stored: bytes) -> list[Entry]:
        """Unpack one position.

        Args:
            packed_ids: `k` ids, each in as many bits as the vocabulary needs, the highest bit first.
            stored: The log-probs.

        Raises:
            RowFault: There are too few bytes.
        """
        num_bits = math.ceil(np.log2(np.float32(self.d)))
        bits = np.unpackbits(np.frombuffer(packed_ids, np.uint8))
        num_bytes = self.exact_k * np.dtype(DTYPES[self.exact_dtype]).itemsize
        if len(bits) < self.k * num_bits or len(stored) < num_bytes:
            raise RowFault(
                f"found {len(packed_ids)} bytes of ids and {len(stored)} of log-probs; expected at least "
                f"{-(-self.k * num_bits // 8)} and {num_bytes}, as {CONFIGURATION} says"
            )
        powers = 1 << np.arange(num_bits - 1, -1, -1, dtype=np.int64)
        ids_K = bits[: self.k * num_bits].reshape(self.k, num_bits).astype(np.int64) @ powers
        logprobs = self._floats(stored[:num_bytes])
        if self.delta_encoding:
            logprobs = np.cumsum(logprobs)
        pairs = zip(ids_K[: self.exact_k].tolist(), logprobs.astype(np.float32).tolist(), strict=True)
        return [Entry(token_id, logprob) for token_id, logprob in pairs if logprob > -math.inf]

    def _floats(self, stored: bytes) -> npt.NDArray[np.float64]:
        values = np.frombuffer(stored, DTYPES[self.exact_dtype])
        if self.exact_dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        result: npt.NDArray[np.float64] = values.astype(np.float64)
        return result

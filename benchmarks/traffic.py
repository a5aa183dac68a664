"""What ranks read and decode of a cache in an epoch, compared with what there is: a store's log, and counted positions.

The store is an HTTP server on this machine that answers ranges and counts the bytes that it sends. Ranks run one after
the other, each with a source of its own, in the order of training.
"""

import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.material import Loading, Shape, write_cache
from benchmarks.options import Options
from tide_cache.config.settings import LANES
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.order import LaneOrder
from tide_cache.locations import cache_path
from tide_cache.manifest import Manifest
from tide_cache.shards import Columns, ragged

MOST_SAMPLES, LENGTH, PROMPT, WORLDS = 5120, 256, 32, (1, 2, 4, 8)
GLOBAL_BATCH = 64


class _Counting(CacheSource):
    """A source that counts the masked positions that it decodes."""

    decoded = 0

    def _read(self, key: tuple[int, int]) -> tuple[Columns, Columns]:
        pairs, signals = super()._read(key)
        self.decoded += len(ragged(signals, "truth_logprobs").values)
        return pairs, signals


def run(options: Options) -> dict[str, float]:
    """Go through an epoch with 1, 2, 4 and 8 ranks."""
    figures: dict[str, float] = {}
    samples = min(options.rows * 4, MOST_SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "cache")
        loading = Loading(root, write_cache(root, Shape("cross", samples, LENGTH, PROMPT)), ("truth", "chunks"))
        stored = sum(path.stat().st_size for path in root.rglob("*.parquet"))
        with served(root) as (url, sent):
            for world in WORLDS:
                before, worst = sent[0], 0.0
                for rank in range(world):
                    decoded, own = _epoch_of_rank(url, loading, rank, world)
                    worst = max(worst, decoded / own)
                figures[f"decoded_by_own_measured_w{world}"] = worst
                figures[f"store_bytes_by_cache_w{world}"] = (sent[0] - before) / stored
    return figures


def _epoch_of_rank(url: str, loading: Loading, rank: int, world: int) -> tuple[int, int]:
    """Return the positions that a rank decodes, and those that it takes."""
    root = cache_path(url)
    source = _Counting(root, Manifest.load(root), held_groups=LANES // world, signals=loading.signals)
    order, own = LaneOrder(source.groups, "traffic", 0, LANES), 0
    for first in range(0, order.num_samples, GLOBAL_BATCH):
        turns = range(first + rank, min(first + GLOBAL_BATCH, order.num_samples), world)
        records = source.records([visit.sample for visit in order.visits(turns)], 0)
        own += sum(int(record.view.is_teacher_masked_M.sum()) for record in records)
    return source.decoded, own


@contextmanager
def served(root: Path) -> Iterator[tuple[str, list[int]]]:
    """Serve a folder; the list holds the number of bytes of bodies sent so far."""
    sent = [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def _answer(self, has_body: bool) -> None:
            path = root / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, stop = (int(asked[1]), int(asked[2] or size - 1) + 1) if asked else (0, size)
            stop = min(stop, size)
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(stop - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            if has_body:
                with path.open("rb") as file:
                    file.seek(start)
                    self.wfile.write(file.read(stop - start))
                sent[0] += stop - start

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", sent
        finally:
            server.shutdown()

"""Teacher signals to Parquet bytes and back."""

from tide_cache.config.settings import CodecName, PassName, SignalKind
from tide_cache.shards.checks import ShardRules
from tide_cache.shards.columns import Array, Column, Columns, Ragged, ragged, rows_of, scalars
from tide_cache.shards.files import LOCAL_FILES, Files, LocalFiles, is_temporary
from tide_cache.shards.layout import SAMPLES_PER_GROUP, ShardLayout
from tide_cache.shards.publish import (
    OtherBytesError,
    canonical_json,
    file_sha256,
    naming_refusals,
    publish,
    publish_json,
    replace_json,
)
from tide_cache.shards.reader import ShardFacts, ShardReader
from tide_cache.shards.record_columns import columns_to_pairs, columns_to_views, masks_of
from tide_cache.shards.remote_files import FsspecFiles, files_of, reads_at_once
from tide_cache.shards.schema import (
    CONDITIONAL_VERSION,
    FORMAT_VERSION,
    NEWEST_VERSION,
    PARTS_VERSION,
    PASSES,
    PROJECTED_VERSION,
    SHARED_VIEWS_VERSION,
    TRAJECTORY_VERSION,
    ShardHeader,
    TableName,
)
from tide_cache.shards.writer import EncodedShard, at_former_levels, encode_pairs, encode_signals

__all__ = [
    "CONDITIONAL_VERSION",
    "FORMAT_VERSION",
    "LOCAL_FILES",
    "NEWEST_VERSION",
    "PARTS_VERSION",
    "PASSES",
    "PROJECTED_VERSION",
    "SAMPLES_PER_GROUP",
    "SHARED_VIEWS_VERSION",
    "TRAJECTORY_VERSION",
    "Array",
    "CodecName",
    "Column",
    "Columns",
    "EncodedShard",
    "Files",
    "FsspecFiles",
    "LocalFiles",
    "OtherBytesError",
    "PassName",
    "Ragged",
    "ShardFacts",
    "ShardHeader",
    "ShardLayout",
    "ShardReader",
    "ShardRules",
    "SignalKind",
    "TableName",
    "at_former_levels",
    "canonical_json",
    "columns_to_pairs",
    "columns_to_views",
    "encode_pairs",
    "encode_signals",
    "file_sha256",
    "files_of",
    "is_temporary",
    "masks_of",
    "naming_refusals",
    "publish",
    "publish_json",
    "ragged",
    "reads_at_once",
    "replace_json",
    "rows_of",
    "scalars",
]

"""Sections that the run files of both stages share."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from tide_cache.config.base import Frozen, LocationMark
from tide_cache.config.objectives import AnyObjective
from tide_cache.config.settings import OnBadRow, PreprocessedFormat
from tide_cache.locations import RemotePath, cache_path

Location = Annotated[str, LocationMark, Field(min_length=1)]
"""A local folder or file, or a name on a hub."""

CacheLocation = Annotated[
    Path | RemotePath,
    BeforeValidator(lambda value: cache_path(value) if isinstance(value, str) else value),
    WithJsonSchema({"format": "path", "type": "string"}),
]
"""A folder, or a URL of an object store: s3://bucket/cache, gs://..., any protocol of fsspec."""

ObjectiveEntry = Annotated[AnyObjective, Field(discriminator="kind")]
"""An entry of `[[objective]]`, told from others by its `kind`."""


class CorpusConfig(Frozen):
    """Where the conversations come from."""

    spec: str = Field(
        min_length=1,
        description="Files, folders or hub names joined by '+', each with an optional [selection]: a.jsonl[train:500].",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Mapping for unusual rows: {user = 'question_text', assistant = 'reply'} or {messages = 'conv'}.",
    )
    on_bad_row: OnBadRow = Field(
        default="error", description="A row without a usable field stops the build, or is counted and listed."
    )
    folder: Path = Field(default=Path("."), description="Where relative file names of `spec` are looked up.")
    format: Literal["chat", PreprocessedFormat] = Field(
        default="chat",
        description="Conversations, or a set that TIDE's preprocessing tokenised: with `ranges` (tide-cross), or "
        "with `align_student` and `align_teacher` (tide-shared); for building only.",
    )


class TokenizerConfig(Frozen):
    """One tokenizer with its chat template and mask token."""

    path: Location = Field(description="Folder with tokenizer.json, or a hub name.")
    revision: str | None = Field(default=None, description="Commit of a hub tokenizer.")
    mask_token: str | None = Field(
        default=None, description="The mask token's text; by default the tokenizer's own mask_token."
    )
    add_mask_token: bool = Field(
        default=False,
        description="Append the mask token to a vocabulary that lacks it, for training from scratch.",
    )
    chat_template: Path | None = Field(default=None, description="Jinja file that replaces the tokenizer's template.")

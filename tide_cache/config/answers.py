"""The run file of `tide-cache answers`."""

import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tide_cache.config.base import Frozen
from tide_cache.config.build import TeacherConfig
from tide_cache.config.common import CorpusConfig
from tide_cache.config.settings import Remasking

OnUnfinished = Literal["keep", "drop"]
"""What becomes of an answer that does not end within `max_new_tokens`."""


class DecodingConfig(Frozen):
    """How the teacher writes; what has no meaning for a causal model is refused there."""

    max_new_tokens: int = Field(default=256, ge=1, description="Maximum tokens per answer.")
    steps_per_block: int | None = Field(
        default=None, ge=1, description="Maximum forwards per block; by default one per token."
    )
    threshold: float | None = Field(
        default=None, description="Keep at once every token whose probability exceeds this (0 < P <= 1)."
    )
    remasking: Remasking = Field(default="low_confidence", description="Which predictions a step keeps.")
    temperature: float = Field(default=0.0, ge=0, description="0 takes the most likely token; above, tokens are drawn.")
    top_k: int | None = Field(default=None, ge=1, description="Sample only from this many likeliest tokens.")
    top_p: float | None = Field(
        default=None, description="Sample only from the likeliest tokens whose probabilities reach this sum."
    )
    cfg_scale: float = Field(default=0.0, ge=0, description="Classifier-free guidance towards the prompt; 0 for none.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="An answer ends before the first of these texts."
    )
    seed: int = Field(default=0, ge=0, description="With the sample's id it determines every draw of its answer.")


class AnswersConfig(Frozen):
    """Where the answers go and how the work is cut."""

    out: Path = Field(description="File to write: JSON lines, NAME.jsonl.")
    unfinished: OnUnfinished = Field(
        default="keep", description="Answers that do not end within max_new_tokens are kept, or left out and counted."
    )
    trajectory: bool = Field(
        default=False, description="Write in which order the answer's tokens were revealed, for views of a build."
    )
    date: datetime.date | None = Field(
        default=None, description="Day that a chat template takes for today; by default that of the first run."
    )
    samples_per_shard: int = Field(default=64, ge=1, description="Answers of a part, which is what a stop can cost.")
    batch_size: int = Field(default=32, ge=1, description="Answers that are written together.")


class AnswersRun(Frozen):
    """A whole run file of `tide-cache answers`.

    Of the section `teacher`, `context` is by default what the checkpoint was trained with, and so is `block_size`.
    """

    corpus: CorpusConfig
    teacher: TeacherConfig
    decoding: DecodingConfig = DecodingConfig()
    answers: AnswersConfig

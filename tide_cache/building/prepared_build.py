"""A checked build: what a worker needs besides the teacher's weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tide_cache.building.identity import TokensIdentity
from tide_cache.building.paired_corpus import PairedCorpus
from tide_cache.config.build import BuildRun
from tide_cache.config.sections import BuildViewsConfig
from tide_cache.config.settings import PassName
from tide_cache.corpus import Corpus
from tide_cache.corpus.stamps import FileStamp
from tide_cache.manifest import CacheFolder, CacheIdentity, ShardPlan
from tide_cache.modeling.backbone import CheckpointInfo
from tide_cache.pairing import Pairer, Spelling
from tide_cache.progress import doing
from tide_cache.records import Int32s, MaskedView, SamplePair, UInt16s
from tide_cache.teacher.capture import CaptureSettings
from tide_cache.teacher.engine_topk import EngineTopK
from tide_cache.views import draw_view, whole_view
from tide_cache.views.trajectory import trajectory_view


@dataclass(frozen=True, eq=False)
class PreparedBuild:
    """A checked build: all that a worker needs besides the teacher's weights.

    Attributes:
        corpus: The rows.
        make_pairer: Makes what turns them into samples; where these are published, it reads the tokenizers first.
        checkpoint: Of the teacher.
        identity: What the cache will hold.
        plan: How it is cut into shards.
        views: How views are drawn, and split for the compdemo pass.
        passes: What is captured.
        capture: How the teacher is run.
        special_tokens: What teacher's and student's tokenizers call their special tokens, where these are read.
        paired: The samples of all rows; None where somebody else has paired them.
        stamps: The files of the corpus as they were before it was read; None where it is on a hub.
        published: The cache, where its pairs table holds the samples of all rows.
        remarks: Remarks for the user about the rows.
        topk: What an engine wrote, which takes the place of the teacher's weights.
    """

    corpus: Corpus[Any]
    make_pairer: Callable[[], Pairer]
    checkpoint: CheckpointInfo
    identity: CacheIdentity
    plan: ShardPlan
    views: BuildViewsConfig
    passes: tuple[PassName, ...]
    capture: CaptureSettings
    special_tokens: dict[str, dict[str, str | list[str]]]
    paired: PairedCorpus | None = None
    stamps: tuple[FileStamp, ...] | None = None
    published: CacheFolder | None = None
    remarks: tuple[str, ...] = ()
    topk: EngineTopK | None = None

    @cached_property
    def pairer(self) -> Pairer:
        """What turns rows into samples."""
        return self.make_pairer()

    def draw_views(self, pair: SamplePair) -> list[MaskedView]:
        """Draw the views of a sample that are captured and stored; for those of trajectories, views like them."""
        if self.identity.is_shared:
            return [whole_view(pair)]
        return [draw_view(pair, number, self.views) for number in range(self.views.num_views)]

    def take_views(self, pair: SamplePair, step_L: Int32s) -> list[tuple[MaskedView, UInt16s]]:
        """Return the views of a sample at steps of a decoding, each with the steps until its tokens are revealed."""
        return [trajectory_view(pair, number, self.views, step_L) for number in range(self.views.num_views)]

    def spelling(self) -> Spelling | None:
        """Spell the teacher's vocabulary for the student, where its texts are wanted; takes seconds."""
        if not self.capture.signals.tuples_per_chunk:
            return None
        with doing("Spelling the teacher's vocabulary in student tokens", self.checkpoint.vocab_size, "ids"):
            return self.pairer.spelling(self.checkpoint.vocab_size)


def capture_settings(run: BuildRun, tokens: TokensIdentity) -> CaptureSettings:
    """Return how the teacher of a build is run.

    Args:
        run: The run file.
        tokens: What the identity says of the tokenizers.
    """
    return CaptureSettings(
        context=run.teacher.context,
        block_size=run.teacher.block_size,
        mask_id=tokens.mask_id,
        shared_vocab_size=tokens.shared_vocab_size,
        views_per_forward=run.build.views_per_forward,
        batch_tokens=run.build.batch_tokens,
        head_rows=run.build.head_rows,
        signals=run.signals,
        seed=run.views.seed,
    )

"""A checked build: what a worker needs besides the teacher's weights."""

from dataclasses import dataclass
from typing import Any

from tide_cache.building.paired_corpus import PairedCorpus
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
        pairer: Turns them into samples.
        checkpoint: Of the teacher.
        identity: What the cache will hold.
        plan: How it is cut into shards.
        views: How views are drawn, and split for the compdemo pass.
        passes: What is captured.
        capture: How the teacher is run.
        special_tokens: What teacher's and student's tokenizers call their special tokens.
        paired: The samples of all rows; None where somebody else has paired them.
        stamps: The files of the corpus as they were before it was read; None where it is on a hub.
        published: The cache, where its pairs table holds the samples of all rows.
        remarks: Remarks for the user about the rows.
        topk: What an engine wrote, which takes the place of the teacher's weights.
    """

    corpus: Corpus[Any]
    pairer: Pairer
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

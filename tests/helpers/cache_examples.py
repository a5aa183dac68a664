"""The example cache that these tests build, whole or in part."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from helpers.shard_examples import STUDENT_VOCAB, TEACHER_VOCAB, TEMPERATURES, encode_both, encode_compdemo
from tide_cache.manifest import (
    CacheFolder,
    CacheIdentity,
    Manifest,
    PairingIdentity,
    ShardPlan,
    SignalsIdentity,
    StudentIdentity,
    ViewsIdentity,
    VocabSizes,
)
from tide_cache.shards import EncodedShard, PassName

IDENTITY = CacheIdentity(
    corpus_hash="c" * 64,
    num_rows=10,
    teacher={"weights": "a" * 64, "model_type": "qwen3", "revision": None, "block_size": 32, "scale": 1.0},
    teacher_tokenizer={"tokenizer": "b" * 64},
    student_tokenizer={"tokenizer": "d" * 64, "template": "e" * 64},
    vocab_sizes=VocabSizes(student=STUDENT_VOCAB, teacher=TEACHER_VOCAB),
    student=StudentIdentity(max_length=512, block_size=32, fill_last_block=True),
    pairing=PairingIdentity(aligner="bytes", shared_vocab_size=0),
    views=ViewsIdentity(num_views=2, seed=0, time_sampling="stratified", schedule="linear", complementary=False),
    signals=SignalsIdentity(
        kinds=("truth", "topk"), top_k=64, top_p=0.999, temperatures=TEMPERATURES, logprob_dtype="float16"
    ),
)
PLAN = ShardPlan(num_rows=10, samples_per_shard=4, batch_tokens=8192, head_rows=1024, views_per_forward=4)


@dataclass
class Builder:
    """Builds the example cache, whole or in part."""

    root: Path
    plan: ShardPlan = PLAN
    passes: tuple[PassName, ...] = ("plain",)

    def folder(self) -> CacheFolder:
        folder = CacheFolder(self.root)
        folder.begin(IDENTITY, self.plan, self.passes)
        return folder

    def shards(self, shard: int) -> list[EncodedShard]:
        arguments = (shard, len(self.plan.rows_of(shard)), IDENTITY.shard_rules, self.folder().header("pairs", shard))
        encoded = (*encode_both(*arguments), encode_compdemo(*arguments))
        return [one for one in encoded if one.header.table in ("pairs", *self.passes)]

    def build(self, shards: Iterable[int] | None = None) -> CacheFolder:
        folder = self.folder()
        for shard in range(self.plan.num_shards) if shards is None else shards:
            for encoded in self.shards(shard):
                folder.commit(encoded, {"samples": encoded.num_samples, "share": 0.5})
        return folder

    def finish(self) -> Manifest:
        return self.build().finish(self.passes)

    def tree(self) -> dict[str, bytes]:
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}

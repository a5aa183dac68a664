"""One worker of `answers`; as a separate process it is `python -m` this file."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from tide_cache.answering.prepare import PreparedAnswers, prepare_answers
from tide_cache.answering.record import day_begun, part_path, require_fits
from tide_cache.answering.shard import write_part
from tide_cache.building.executors.worker_process import serve
from tide_cache.building.shard import BuiltShard
from tide_cache.config.answers import AnswersRun
from tide_cache.modeling.backbone import DTYPES, Backbone, load_backbone
from tide_cache.unreadable import is_there


class AnswersWorker:
    """Writes parts on one device."""

    def __init__(self, prepared: PreparedAnswers, device: str) -> None:
        self._prepared, self._device = prepared, device
        self._backbone: Backbone | None = None

    @classmethod
    def elsewhere(cls, task: dict[str, Any]) -> "AnswersWorker":
        """Return a worker in another process, which reads prompts, tokenizer and checkpoint itself.

        Raises:
            TideCacheError: What it reads differs from what the run began with.
        """
        run = AnswersRun.model_validate(task["run"])
        prepared = prepare_answers(run, day_begun(run.answers.out))
        require_fits(run.answers.out, prepared.identity)
        return cls(prepared, task["device"])

    def build(self, shard: int, on_views: Callable[[int], None]) -> "Future[BuiltShard]":
        """Write a part, unless it exists.

        Args:
            shard: Its number.
            on_views: Called with the number of answers as they are written; may raise to stop.
        """
        done: Future[BuiltShard] = Future()
        if is_there(part_path(self._prepared.run.answers.out, shard)):
            done.set_result(BuiltShard(shard, 0, 0))
            return done
        if self._backbone is None:
            teacher = self._prepared.run.teacher
            self._backbone = load_backbone(
                self._prepared.checkpoint, DTYPES[teacher.dtype], self._device, **asdict(teacher.loading)
            )
        done.set_result(write_part(self._prepared, self._backbone, shard, on_views))
        return done


if __name__ == "__main__":
    serve(AnswersWorker.elsewhere)

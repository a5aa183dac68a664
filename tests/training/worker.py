"""One process among several: trains the runs that a JSON file lists, one after the other."""

import json
import os
import signal
import sys
from pathlib import Path

from tide_cache.config.train import TrainRun
from tide_cache.errors import Interrupted
from tide_cache.training import engine, gradients
from tide_cache.training.run import train

engine.PERSISTENT_ELEMENTS = 0  # else ZeRO 3 would leave every weight of so small a model whole
gradients.MOST_ELEMENTS = 2000  # else all gradients of so small a model would be one message

for job in json.loads(Path(sys.argv[1]).read_text()):

    def stop(metrics, _, at=job["stop_at"]):
        if metrics.step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(TrainRun.model_validate(job["run"]), resume=job["resume"], on_step=stop)
    except Interrupted:
        assert job["stop_at"]

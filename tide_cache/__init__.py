"""Offline distillation for diffusion language models: capture a teacher once, train many students from the cache.

The names in `__all__` are stable (docs/python-api.md); all others may move from release to release. They are loaded
when they are first asked for, so that `import tide_cache` costs nothing of what torch costs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tide_cache.version import __version__

if TYPE_CHECKING:
    from tide_cache.api import Cache, open_cache, preset_objectives
    from tide_cache.building.driver import build_cache
    from tide_cache.config.base import load_run_file
    from tide_cache.config.build import BuildRun
    from tide_cache.config.presets import PRESETS, Preset
    from tide_cache.config.train import TrainRun
    from tide_cache.errors import (
        CacheIncompleteError,
        CacheMismatchError,
        CheckpointError,
        CorpusError,
        DeviceMemoryError,
        Interrupted,
        ModelError,
        PairingError,
        RunFileError,
        ShardCorruptError,
        TeacherOutputError,
        TideCacheError,
        UnreadableError,
    )
    from tide_cache.evaluation.measuring import Measurement, measure
    from tide_cache.evaluation.nll import NllReport
    from tide_cache.loading.torch_dataset import MicroBatches
    from tide_cache.manifest import CacheIdentity
    from tide_cache.modeling.backbone import Backbone, load_backbone, read_checkpoint
    from tide_cache.modeling.checkpoint import save_student
    from tide_cache.modeling.moving import on_device
    from tide_cache.modeling.rows import masked_hidden
    from tide_cache.modeling.stock import StockBackbone
    from tide_cache.objectives import OBJECTIVES, Needs, Objective, ids_to_gather, union_of_needs
    from tide_cache.objectives.calm import BernoulliKL, Calm, ReverseCalm
    from tide_cache.objectives.ce import CrossEntropy
    from tide_cache.objectives.chunk_kl import ChunkKL
    from tide_cache.objectives.kl import ForwardKL, ReverseKL
    from tide_cache.objectives.tidal import Tidal
    from tide_cache.pairing import TextTokenizer
    from tide_cache.records import (
        ChunkCandidates,
        MaskedView,
        RowStatistics,
        SamplePair,
        StudentBatch,
        Targets,
        TeacherSignal,
        TopK,
        ViewRecord,
    )
    from tide_cache.student.model import Student
    from tide_cache.student.row_statistics import row_statistics
    from tide_cache.training.run import train

__all__ = [
    "OBJECTIVES",
    "PRESETS",
    "Backbone",
    "BernoulliKL",
    "BuildRun",
    "Cache",
    "CacheIdentity",
    "CacheIncompleteError",
    "CacheMismatchError",
    "Calm",
    "CheckpointError",
    "ChunkCandidates",
    "ChunkKL",
    "CorpusError",
    "CrossEntropy",
    "DeviceMemoryError",
    "ForwardKL",
    "Interrupted",
    "MaskedView",
    "Measurement",
    "MicroBatches",
    "ModelError",
    "Needs",
    "NllReport",
    "Objective",
    "PairingError",
    "Preset",
    "ReverseCalm",
    "ReverseKL",
    "RowStatistics",
    "RunFileError",
    "SamplePair",
    "ShardCorruptError",
    "StockBackbone",
    "Student",
    "StudentBatch",
    "Targets",
    "TeacherOutputError",
    "TeacherSignal",
    "TextTokenizer",
    "Tidal",
    "TideCacheError",
    "TopK",
    "TrainRun",
    "UnreadableError",
    "ViewRecord",
    "__version__",
    "build_cache",
    "ids_to_gather",
    "load_backbone",
    "load_run_file",
    "masked_hidden",
    "measure",
    "on_device",
    "open_cache",
    "preset_objectives",
    "read_checkpoint",
    "row_statistics",
    "save_student",
    "train",
    "union_of_needs",
]

_MODULES = {
    "api": "Cache open_cache preset_objectives",
    "building.driver": "build_cache",
    "config.base": "load_run_file",
    "config.build": "BuildRun",
    "config.presets": "PRESETS Preset",
    "config.train": "TrainRun",
    "errors": "CacheIncompleteError CacheMismatchError CheckpointError CorpusError DeviceMemoryError Interrupted "
    "ModelError PairingError RunFileError ShardCorruptError TeacherOutputError TideCacheError "
    "UnreadableError",
    "evaluation.measuring": "Measurement measure",
    "evaluation.nll": "NllReport",
    "loading.torch_dataset": "MicroBatches",
    "manifest": "CacheIdentity",
    "modeling.backbone": "Backbone load_backbone read_checkpoint",
    "modeling.checkpoint": "save_student",
    "modeling.moving": "on_device",
    "modeling.rows": "masked_hidden",
    "modeling.stock": "StockBackbone",
    "objectives": "OBJECTIVES Needs Objective ids_to_gather union_of_needs",
    "objectives.calm": "BernoulliKL Calm ReverseCalm",
    "objectives.ce": "CrossEntropy",
    "objectives.chunk_kl": "ChunkKL",
    "objectives.kl": "ForwardKL ReverseKL",
    "objectives.tidal": "Tidal",
    "pairing": "TextTokenizer",
    "records": "ChunkCandidates MaskedView RowStatistics SamplePair StudentBatch Targets TeacherSignal TopK ViewRecord",
    "student.model": "Student",
    "student.row_statistics": "row_statistics",
    "training.run": "train",
}
_MODULE_OF = {name: f"tide_cache.{module}" for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tide_cache' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

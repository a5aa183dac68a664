"""Which kernels a run uses: refused before anything is loaded, or tried on its device."""

import torch

from tide_cache.config.train import TrainRun
from tide_cache.errors import ModelError
from tide_cache.modeling.attention import flex_problem
from tide_cache.modeling.backbone import DTYPES, Backbone, resolve_device
from tide_cache.modeling.stock import StockBackbone
from tide_cache.objectives import objective_of, union_of_needs
from tide_cache.student.head_way import kernels_problem


def kernel_faults(run: TrainRun) -> list[str]:
    """Return what is wrong with the kernels that a run asks for, as far as it is known without its device."""
    device, faults = torch.device(resolve_device(run.train.device)), []
    if run.student.attention == "flex" and device.type != "cuda":  # on CUDA it is tried, once the model is there
        use = "use sdpa, or auto, which takes flex where it runs"
        faults.append(f"student.attention = 'flex': {flex_problem(device)}; {use}")
    if run.train.head == "triton" and (device.type != "cuda" or run.train.precision == "float32"):
        problem = kernels_problem(device, DTYPES[run.train.precision], 1, (1.0,))
        faults.append(f"train.head = 'triton': {problem}; use torch, or auto, which takes triton where it works")
    return faults


def choose_kernels(run: TrainRun, backbone: Backbone, device: str) -> list[str]:
    """Set the student's attention kernel, and try the fused head's; return remarks on what is not the preferred one.

    Raises:
        ModelError: A kernel that is asked for does not run here.
    """
    return [*_choose_attention(run.student.attention, backbone, device), *_try_head(run, backbone, device)]


def _choose_attention(wanted: str, backbone: Backbone, device: str) -> list[str]:
    if wanted == "sdpa":
        return []
    if problem := flex_problem(torch.device(device)):
        if wanted == "flex":
            raise ModelError(f"student.attention = 'flex': {problem}; use sdpa")
        return [f"student.attention = 'auto': sdpa is used, not flex: {problem}"]
    assert isinstance(backbone, StockBackbone), "only stock architectures are trained"
    backbone.use_attention("flex")
    return []


def _try_head(run: TrainRun, backbone: Backbone, device: str) -> list[str]:
    place, dtype = torch.device(device), DTYPES[run.train.precision]
    if run.train.head == "torch" or (run.train.head == "auto" and (place.type != "cuda" or dtype == torch.float32)):
        return []
    needs = union_of_needs(objective_of(entry).needs for entry in run.objective)
    temperatures = tuple(sorted(needs.student_temperatures))
    problem = kernels_problem(place, dtype, backbone.head_VD.shape[1], temperatures)
    if problem is None:
        return []
    if run.train.head == "triton":
        raise ModelError(f"train.head = 'triton': {problem}; use torch")
    return [f"train.head = 'auto': torch is used, not triton: {problem}"]

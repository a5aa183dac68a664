"""A GPU that is none: tensors say that they lie on `cuda:0`, and are computed on the CPU.

Under `Pretended`, whatever asks for `cuda` gets an `OnGpu` tensor. Every operation that mixes devices is recorded, and
every place where the host waits for the device. A copy to the host that does not wait holds garbage until an event that
was recorded after it has been waited for. The C++ side takes all tensors for the CPU's, so autograd runs as ever.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

import tide_cache

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
PLACES = tuple(Path(package.__file__).parent for package in (tide_cache, transformers))
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.bincount, aten.multinomial, aten.equal,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.is_nonzero, aten.histc,
}  # fmt: skip
"""Operations whose result, or its shape, the host must know."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


@dataclass(frozen=True)
class Seen:
    """Something that was recorded: which operation, and the innermost place in the tree, or in transformers."""

    operation: str
    file: str
    function: str
    line: int

    @property
    def place(self) -> str:
        """File and function."""
        return f"{self.file}:{self.function}"


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU; `held` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        result = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CPU
        )
        result.held = held
        return result

    def __repr__(self) -> str:
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Pretended.now().compute(func, args, kwargs or {})


class Event:
    """Knows the copies that were begun before it."""

    def __init__(self, copies):
        self._copies = copies

    def synchronize(self):
        """Let what was copied arrive."""
        Pretended.now().note("event.synchronize")
        for arriving, sent in self._copies:
            arriving.copy_(sent)
        self._copies = []


class Pretended(TorchFunctionMode):
    """The GPU, while it is entered; one at a time, in any thread.

    Attributes:
        waits: Where the host waited for the device.
        mixes: Operations on tensors of both.
    """

    _now: "Pretended | None" = None

    def __init__(self):
        super().__init__()
        self.waits: list[Seen] = []
        self.mixes: list[Seen] = []
        self._under_way: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._pinned: dict[int, torch.UntypedStorage] = {}
        self._stack = ExitStack()

    @classmethod
    def now(cls) -> "Pretended":
        """Return the one that is entered."""
        assert cls._now is not None, "a tensor of a pretended GPU outlived it"
        return cls._now

    def __enter__(self):
        Pretended._now = self
        patches = {
            "current_stream": lambda *_: self,
            "synchronize": lambda *_: Event(self._under_way).synchronize(),
            "get_device_capability": lambda *_: (9, 0),
            "is_available": lambda: True,
            "device_count": lambda: 1,
        }
        for name, value in patches.items():
            self._stack.enter_context(mock.patch.object(torch.cuda, name, value))
        self._stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: self.pin(tensor)))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._stack.close()
        Pretended._now = None

    def record_event(self) -> Event:
        """Return an event behind all copies so far."""
        return Event(list(self._under_way))

    def counts(self) -> Counter[str]:
        """Count the waits of each place."""
        return Counter(seen.place for seen in self.waits)

    def note(self, operation: str, *, mixes: bool = False) -> None:
        """Record a wait, or a mixture, with its place."""
        frame = sys._getframe(1)
        while frame is not None:
            for root in PLACES:
                if (path := Path(frame.f_code.co_filename)).is_relative_to(root):
                    name = str(path.relative_to(root.parent))
                    seen = Seen(operation, name, frame.f_code.co_name, frame.f_lineno)
                    (self.mixes if mixes else self.waits).append(seen)
                    return
            frame = frame.f_back
        (self.mixes if mixes else self.waits).append(Seen(operation, "elsewhere", "", 0))

    # -- what Python calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "backward":  # else nothing would be seen of it: a mode is off while it is asked
            with _Pushed(self):
                return torch.autograd.Variable._execution_engine.run_backward(
                    args[:1],
                    (torch.ones_like(args[0]),),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
        if name in ("to", "cpu", "cuda") and isinstance(args[0], torch.Tensor):
            return self._to(func, name, args, kwargs)
        is_here = bool(args) and isinstance(args[0], OnGpu)
        if name == "tolist" and is_here:
            self.note(name)
            return args[0].held.tolist()
        if name in ("numpy", "__array__") and is_here:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name == "is_pinned":
            return self.is_pinned(args[0])
        if name in ("new_tensor",) and is_here:
            self.note(name)
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            result = func(*args, **{**kwargs, "device": CPU})
            if name in ("tensor", "as_tensor") and result.numel():
                self.note(name)
            return result if isinstance(result, OnGpu) else tree_map(self._wrapped, result)
        return func(*args, **kwargs)

    def _to(self, func, name, args, kwargs):
        tensor, *rest = args
        wanted = {"cpu": CPU, "cuda": GPU}.get(name, kwargs.get("device"))
        for given in rest if name == "to" else ():
            if isinstance(given, torch.Tensor):
                wanted, rest = given.device, [given.device, given.dtype]
            elif isinstance(given, (str, torch.device)):
                wanted = given
        dtypes = [given for given in (*rest, kwargs.get("dtype")) if isinstance(given, torch.dtype)]
        from_gpu = isinstance(tensor, OnGpu)
        to_gpu = from_gpu if wanted is None else torch.device(wanted).type == "cuda"
        if from_gpu == to_gpu:
            copies = {"copy": True} if kwargs.get("copy") else {}
            return func(tensor, dtypes[0] if dtypes else tensor.dtype, **copies) if name == "to" else tensor
        if dtypes:
            tensor = func(tensor, dtypes[0])
        assert not tensor.requires_grad or tensor.is_leaf, "no gradient crosses devices here"
        is_leaf_with_grad = tensor.requires_grad
        moved = self.send(tensor.detach(), bool(kwargs.get("non_blocking")), to_gpu)
        return moved.requires_grad_(is_leaf_with_grad)

    def send(self, tensor: torch.Tensor, non_blocking: bool, to_gpu: bool) -> torch.Tensor:
        """Copy between host and device."""
        if to_gpu:
            if not (non_blocking and self.is_pinned(tensor)):
                self.note("copy from pageable memory" if non_blocking else "copy to the device")
            return OnGpu(tensor.clone())
        sent = tensor.held.clone()
        if not non_blocking:
            self.note("copy to the host")
            return sent
        arriving = sent.logical_not() if sent.dtype == torch.bool else torch.full_like(sent, _garbage(sent.dtype))
        self._under_way.append((arriving, sent))
        self._pinned[arriving.data_ptr()] = arriving.untyped_storage()
        return arriving

    def pin(self, tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        """Copy to pinned memory."""
        assert not isinstance(tensor, OnGpu), "only memory of the host can be pinned"
        if self.is_pinned(tensor):
            return tensor
        result = tensor.clone()
        self._pinned[result.data_ptr()] = result.untyped_storage()
        return result

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor lies in pinned memory."""
        return tensor.numel() == 0 or tensor.untyped_storage().data_ptr() in self._pinned

    @staticmethod
    def _wrapped(value):
        return OnGpu(value) if type(value) in (torch.Tensor, torch.nn.Parameter) else value

    # -- what reaches the device

    def compute(self, func, args, kwargs):
        """Compute an operation with at least one tensor on the device."""
        packet = func.overloadpacket
        self._check(packet, args, kwargs)
        if packet in (aten.copy_,):
            return self._copy(*args, **kwargs)
        values, options = tree_map(_held, args), tree_map(_held, kwargs)
        if func is aten.mm.dtype:
            result = values[0].to(values[2]) @ values[1].to(values[2])
        elif func is aten.addmm.dtype_out:
            result = options["out"].copy_(values[0] + values[1].to(values[3]) @ values[2].to(values[3]))
        elif packet in (aten._grouped_mm,):
            result = _grouped(*values, **options)
        else:
            result = func(*values, **options)
        if packet is aten._local_scalar_dense:
            return result
        return _as_written(func, args, kwargs, result)

    def _check(self, packet, args, kwargs):
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        if packet in WAITING or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
            self.note(str(packet))
        if packet in INDEXING:
            indices = [index for index in args[1] if index is not None]
            of_one_value = len(args) > 2 and args[2].numel() == 1
            if any(not isinstance(index, OnGpu) for index in indices):
                self.note(f"{packet} by indices of the host")
            if any(index.dtype == torch.bool for index in indices) and not of_one_value:
                self.note(f"{packet} by a mask")
            tensors = [args[0], *args[2:3]]
        if packet is not aten.copy_ and any(not isinstance(one, OnGpu) and one.dim() for one in tensors):
            self.note(str(packet), mixes=True)

    def _copy(self, into, source, non_blocking=False):
        if isinstance(into, OnGpu) and isinstance(source, OnGpu):
            into.held.copy_(source.held)
        elif isinstance(into, OnGpu):
            if source.dim() != 0 and not (non_blocking and self.is_pinned(source)):
                self.note("copy_ to the device")
            into.held.copy_(source)
        else:
            self.note("copy_ to the host")
            into.copy_(source.held)
        return into


def on_gpu(module: torch.nn.Module) -> torch.nn.Module:
    """Put a module's weights on the device, tied ones together."""
    moved: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fresh = torch.nn.Parameter(OnGpu(weight.detach()), requires_grad=weight.requires_grad)
                part._parameters[name] = moved.setdefault(id(weight), fresh)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved.setdefault(id(buffer), OnGpu(buffer))
    return module


class _Pushed:
    """Have functions of torch ask a mode that is entered already."""

    def __init__(self, mode):
        self._mode = mode

    def __enter__(self):
        TorchFunctionMode.__enter__(self._mode)

    def __exit__(self, *error):
        TorchFunctionMode.__exit__(self._mode, *error)


def _held(value):
    return value.held if isinstance(value, OnGpu) else value


def _garbage(dtype: torch.dtype) -> float | int:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


def _as_written(func, args, kwargs, result):
    """Wrap results; an argument that was written in place is given back itself."""
    written = [
        value
        for place, value in zip(func._schema.arguments, args, strict=False)
        if place.alias_info is not None and place.alias_info.is_write
    ]
    written += [
        kwargs[place.name]
        for place in func._schema.arguments
        if place.name in kwargs and place.alias_info is not None and place.alias_info.is_write
    ]
    if written:
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map(Pretended._wrapped, result)


def _grouped(x_TD, weights_EDX, offs=None, bias=None, out_dtype=None):
    """Do what one kernel does for all experts."""
    starts = [0, *offs.tolist()]
    parts = [x_TD[a:b].float() @ w.float() for a, b, w in zip(starts, starts[1:], weights_EDX, strict=False)]
    return torch.cat(parts).to(x_TD.dtype)

"""DeepSpeed, imported here alone: it says nothing on the standard output, probes nothing and compiles nothing.

Everything else in this folder takes it from here, so that what must come before its import comes before it.
"""

import contextlib
import sys

with contextlib.redirect_stdout(sys.stderr):  # its logger keeps the stream that it finds
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import bf16_optimizer

__all__ = ["deepspeed"]

# To ask which operators can be compiled here, it would run compilers, and on a machine with a GPU and no CUDA toolkit
# print a warning for each. None is used. Without `deepspeed_shm_comm`, CPU ranks talk through gloo; with it, DeepSpeed
# compiles C++ when the first training starts: a minute, and a compiler, for nothing that a small run would notice.
vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False

# The bfloat16 optimizer reports the machine's memory four times as it is made: twelve lines that every user would
# read before the first step, and a garbage collection for each.
bf16_optimizer.see_memory_usage = lambda *_, **__: None

"""The fused head's kernels, compiled for a GPU without one.

python tests/helpers/compiled_head.py says what each needs: registers, bytes that do not fit into them, shared memory.
"""

import math
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

POINTERS = {
    "hidden": "*bf16", "head": "*bf16", "gradient": "*bf16", "codes": "*i32", "first": "*i32", "rounds": "*i32",
    **dict.fromkeys(("largest", "sums", "gathered", "shifts", "factors", "at_ids"), "*fp32"),
}  # fmt: skip
HOPPER = 90


def compiled(kernel: str, cut: Any, is_whole: bool = True, capability: int = HOPPER) -> Any:
    """Compile a kernel as a run would, for bfloat16, at T = 2 and 1.

    kernel: its name; cut: of the work; is_whole: whether steps divide the hidden size.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tide_cache.student import fused_kernels

    function = getattr(fused_kernels, kernel)
    scale = math.log2(math.e)
    constants = {
        "IS_WHOLE": is_whole, "HAS_IDS": True, "SCALES": (scale / 2, scale), "SQUARED": (False, True), "PLACES": 2,
        "ROWS": cut.rows, "IDS": cut.ids, "STEP": cut.step, "TILES": cut.tiles, "IN_FLOAT32": False,
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    types = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in function.arg_names}
    aligned = [place for place, name in enumerate(types) if name in POINTERS or name.endswith("_stride")]
    source = ASTSource(function, types, constants, {(place,): [["tt.divisibility", 16]] for place in aligned})
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


class Hopper:
    """What Triton asks the driver of a GPU before it compiles a kernel that is called."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", HOPPER, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0


class Compiled:
    """Stands for a kernel: what would be launched is compiled, as the call has it, and no more."""

    def __init__(self, kernel: Any, into: list[Any]):
        self._kernel, self._into = kernel, into

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        return lambda **arguments: self._into.append(self._kernel.warmup(grid=(*grid, 1), **arguments))


def needs(found: Any) -> dict[str, int]:
    """Return what a compiled kernel needs of a multiprocessor."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout).groups()  # type: ignore[union-attr]
    return {"registers": int(registers), "spilled_bytes": int(stack), "shared_bytes": found.metadata.shared}


if __name__ == "__main__":
    from tide_cache.student.fused_head import CUT

    for name in ("sums_of_powers", "gradient_of_logits"):
        for whole in (True, False):
            print(name, "" if whole else "any hidden size", needs(compiled(name, CUT, whole)))

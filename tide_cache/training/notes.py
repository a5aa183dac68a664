"""What ranks tell each other besides gradients: numbers that are added up with the counts of a step."""

import torch


class Notes:
    """Sums over all ranks, on their way to the host.

    A GPU adds them up before the forwards of the step that they were given to. Whoever reads them after that step has
    been launched waits for the step before it, and not for this one.
    """

    def __init__(self, sums_N: torch.Tensor) -> None:
        """Start to copy them.

        Args:
            sums_N: On the device, where they may still be computed.
        """
        self._host_N = sums_N.to("cpu", non_blocking=True)  # of a GPU: to pinned memory
        self._arrived = torch.cuda.current_stream(sums_N.device).record_event() if sums_N.is_cuda else None

    def read(self) -> list[float]:
        """Return them, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[float] = self._host_N.tolist()
        return values

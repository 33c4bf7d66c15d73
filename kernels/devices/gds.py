"""Files read straight into a CUDA device's memory (GPUDirect Storage), through kvikio, where the system has it.

kvikio also works without, through buffers of its own in host memory; that would be a second way of what we do.
So nothing is read in this way unless the driver says that it can.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def is_direct() -> bool:
    """Whether kvikio is installed and the system reads straight into device memory."""
    with suppress(Exception):  # whatever a driver that is half there raises
        import kvikio  # type: ignore[import-not-found, unused-ignore]

        available = bool(kvikio.cufile_driver.get("is_gds_available"))
        return available and not kvikio.defaults.is_compat_mode_preferred()
    return False


class GdsFile:
    """The file ``path``. Raises OSError."""

    def __init__(self, path: Path) -> None:
        import kvikio

        self._file: Any = kvikio.CuFile(path, "r")

    def read(self, into: torch.Tensor, offset: int) -> None:
        """Fill ``into``, bytes on a device, from ``offset`` on. Raises OSError, also at the end of the file."""
        try:
            count = self._file.pread(into, into.nbytes, offset).get()
        except RuntimeError as error:
            raise OSError(f"reading straight into device memory failed: {error}") from error
        if count != into.nbytes:
            raise OSError(f"{count} bytes instead of {into.nbytes} at {offset}")

    def close(self) -> None:
        self._file.close()

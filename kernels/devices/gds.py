"""Reads from files straight into a CUDA device's memory (GPUDirect Storage), through kvikio, where the system has it.

kvikio also works without it, through its own buffers in host memory. That would duplicate our own path, so this one is
used only if the driver supports direct reads.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def is_direct() -> bool:
    """Return whether kvikio is installed and the system reads straight into device memory."""
    with suppress(Exception):  # an incomplete driver may raise anything
        import kvikio  # type: ignore[import-not-found, unused-ignore]

        available = bool(kvikio.cufile_driver.get("is_gds_available"))
        return available and not kvikio.defaults.is_compat_mode_preferred()
    return False


class GdsFile:
    """The file ``path``, open for reads into device memory. Raises OSError."""

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
        """Close the file."""
        self._file.close()

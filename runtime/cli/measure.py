"""Small measurements that several commands report."""

import sys
from pathlib import Path


def peak_resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The largest resident set of this process so far, in bytes.

    Not getrusage: that also remembers the process that started this one.
    """
    try:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

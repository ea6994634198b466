"""What the system says of this machine's processor."""
import functools
import platform
from pathlib import Path


@functools.lru_cache(maxsize=None)
def _facts():
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:                                             # another system than Linux
        return {}
    return dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)


def name():
    """Returns the processor's name, or that of its architecture if nothing tells it."""
    return _facts().get("model name", platform.machine())


def has(extension):
    """Returns whether the processor is known to have an extension such as "avx512f"."""
    return extension in _facts().get("flags", "").split()

"""Stands for a disk that is full: files cannot grow beyond a number of bytes."""
import contextlib
import resource


@contextlib.contextmanager
def room_for(size):
    """Lets this process write files of at most `size` bytes while the context lasts.

    Longer writes are cut there, as on a disk that fills up; what is left fails with EFBIG.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

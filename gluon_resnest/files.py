"""Files that are there whole or not at all."""
import contextlib
import os
from pathlib import Path

from gluon_resnest.errors import UserError


def write_whole(path, content, advice="choose a writable folder with space"):
    """Writes a file, whole or not at all; makes its folder.

    Args:
      content: str, written as UTF-8, or bytes.
      advice: what to do if it cannot be written.

    Raises:
      UserError: if it cannot be written; what was there before is still there.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"cannot write {str(path)!r}: it is no name of a file; {advice}")
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")      # two writers do not mix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; {advice}") from error

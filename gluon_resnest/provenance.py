"""Says where files come from: the commit of this source tree, checksums."""
import hashlib
import subprocess
from pathlib import Path


def commit():
    """Returns the git commit of this package's checkout, with "+changes" if it has some.

    Returns "unknown" outside of a checkout and where there is no git.
    """
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return "unknown"
    try:
        git = ["git", "-C", str(folder)]
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True,
                              text=True, timeout=60).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"],
                                 capture_output=True, check=True, text=True,
                                 timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name + ("+changes" if changed else "")


def sha256(path):
    """Computes the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()

"""Says where files come from: the commit of this source tree, checksums."""
import hashlib
import subprocess
from pathlib import Path

COMMIT = "COMMIT"       # file that setup.py writes beside this one, into what is installed


def commit():
    """Returns the git commit of this package's checkout, with "+changes" if it has some.

    An installed package returns that of the checkout it was built from. Returns "unknown" where
    nothing tells, or where there is no git.
    """
    file = Path(__file__).resolve()
    folder = file.parents[1]
    if not (folder / ".git").exists():
        built = file.with_name(COMMIT)
        return built.read_text().strip() if built.is_file() else "unknown"
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


def short(commit, digits=7):
    """Returns the first digits of a commit, with the mark of a tree that had changes."""
    name, mark, changes = commit.partition("+")
    return name[:digits] + mark + changes


def sha256(path):
    """Computes the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()

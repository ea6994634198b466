"""The weight store: finds, downloads and verifies published parameter files.

Files are kept as `{root}/{name}-{hash8}.params`, in GluonCV's folder and under GluonCV's names, so
that what either library has fetched serves both. `hash8` is the beginning of the file's SHA-1.
"""
import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path

import filelock
from tqdm import tqdm

from gluon_resnest.errors import UserError, nearest

# Where the published files were put; {file} is `{name}-{hash8}`. The first was reported dead in
# February 2024 (dmlc/gluon-cv#1778), links of the authors before (zhanghang1989/ResNeSt#153, #183).
MIRRORS = (
    "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/models/{file}.zip",
    "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step2/{file}.zip",
)
MIRROR_VARIABLE = "GLUON_RESNEST_MIRROR"    # a folder or URL, asked first

_TIMEOUT_SECONDS = 20
_LOCK_SECONDS = 3600
_RESUMES = 5                # of one download, as long as each brings new bytes
_MAX_BYTES = 1 << 30        # the largest published file, resnest269, has 0.44 GB
_MAX_MEMBERS = 16
_CHUNK = 1 << 20


class _Refused(Exception):
    """Why one mirror did not deliver; the message goes into the list of what was tried."""


def resolve(name, versions, pretrained=True, root=None):
    """Returns the verified parameter file of a network, downloading it if need be.

    Safe to call from many processes at once: one downloads, the others wait for it. An interrupted
    download is continued by the next call.

    Args:
      name: name of the network.
      versions: SHA-1 sums (40 hex digits) of the published files, newest first.
      pretrained: True for the newest, or the first 8 or more digits of a version's sum.
      root: folder of the files; None means `$MXNET_HOME/models`, or `~/.mxnet/models`.

    Returns:
      Path of a `.params` file whose SHA-1 is as published.

    Raises:
      UserError: if there is no such version, or no mirror delivers it; lists what was tried.
    """
    sha1 = _version(name, versions, pretrained)
    target = _folder(root) / f"{name}-{sha1[:8]}.params"
    return _obtain(_mirrors(target.stem), target, sha1)


def fetch(source, root=None):
    """Returns the path of a weight file given as a path or an http(s) or file URL.

    A URL is downloaded once. If its file is called `*-{8 hex digits}.params` or `.zip`, the SHA-1
    of the parameter file must begin so.

    Raises:
      UserError: if the file is absent or the URL does not deliver.
    """
    source = os.fspath(source)
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.is_file():
            near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
            raise UserError(f"there is no weight file {source!r}{near}")
        return path
    stem, extension = os.path.splitext(os.path.basename(urllib.parse.urlsplit(source).path))
    extension = ".params" if extension in (".zip", "") else extension
    tag = re.search(r"-([0-9a-f]{8})$", stem) if extension == ".params" else None
    if not tag:             # two servers may use one file name
        stem = f"{stem}-url{hashlib.sha1(source.encode()).hexdigest()[:8]}"
    return _obtain([source], _folder(root) / (stem + extension), tag.group(1) if tag else "")


def _version(name, versions, pretrained):
    if not versions:
        raise UserError(f"no weights were ever published for {name!r}; train it, or convert a file "
                        "you have (`python tools/convert_weights.py FILE OUT`) and load that")
    if pretrained is True:
        return versions[0]
    wanted = str(pretrained).lower()
    found = [sha1 for sha1 in versions if len(wanted) >= 8 and sha1.startswith(wanted)]
    if not found:
        known = ", ".join(sha1[:8] for sha1 in versions)
        raise UserError(f"{name!r} has no weights of version {pretrained!r}; "
                        f"known, newest first: {known}")
    return found[0]


def _folder(root):
    if root is None:
        home = os.environ.get("MXNET_HOME")
        root = os.path.join(home, "models") if home else os.path.join("~", ".mxnet", "models")
    return Path(root).expanduser()


def _mirrors(file):
    """Lists the addresses to try, in order; a path becomes a file URL."""
    addresses = [mirror.format(file=file) for mirror in MIRRORS]
    own = os.environ.get(MIRROR_VARIABLE)
    if own:
        base = own if "://" in own else Path(own).expanduser().resolve().as_uri()
        addresses[:0] = [f"{base.rstrip('/')}/{file}{kind}" for kind in (".params", ".zip")]
    return addresses


def _obtain(addresses, target, sha1):
    """Returns target once its SHA-1 begins with `sha1`, trying one address after the other."""
    if target.is_file() and _sha1(target).startswith(sha1):
        return target                       # also where the folder is read-only
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{target}.lock", timeout=_LOCK_SECONDS):
            tried = []
            if target.is_file():            # another process may have brought it meanwhile
                try:
                    return _verified(target, sha1)
                except _Refused as error:
                    tried.append(f"{target}: {error}")
            for address in addresses:
                try:
                    return _from_mirror(address, target, sha1)
                except _Refused as error:
                    public = address.partition("?")[0]      # a query may hold a signature
                    tried.append(f"{public}: {error}")
    except filelock.Timeout as error:
        raise UserError(f"another process has held {error.lock_file} for {_LOCK_SECONDS} s; "
                        "end it, or delete that file if none is running") from error
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}; "
                        "choose another root") from error
    raise UserError(
        f"could not obtain {target.name}; tried {'; '.join(tried)}; a file you have is taken from "
        f"{target}, one of another framework after `python tools/convert_weights.py FILE OUT` with "
        f"`--weights OUT`, and {MIRROR_VARIABLE}=FOLDER|URL names another mirror")


def _from_mirror(address, target, sha1):
    """Downloads, unpacks, verifies and only then moves a file to its place."""
    part = target.with_name(f"{target.name}.{hashlib.sha1(address.encode()).hexdigest()[:8]}.part")
    _download(address, part)
    try:
        with open(part, "rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
        if zipped and target.suffix == ".params":
            unpacked = target.with_name(target.name + ".unpacked")
            try:
                _unpack(part, unpacked)
                os.replace(_verified(unpacked, sha1), target)
            finally:
                _remove(unpacked)
        else:
            os.replace(_verified(part, sha1), target)
    finally:
        _remove(part)
    return target


def _download(address, part):
    """Fetches an address into `part`, continuing what is there; a failure keeps what came."""
    if urllib.parse.urlsplit(address).scheme not in ("http", "https", "file"):
        raise _Refused("only http, https and file addresses are read")
    for _ in range(1 + _RESUMES):
        begun = part.stat().st_size if part.exists() else 0
        try:
            if _continue(address, part, begun):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code == 416 and begun:         # nothing follows the bytes we have
                return
            raise _Refused(f"HTTP {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError,
                socket.timeout, ssl.SSLError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if not part.exists() or part.stat().st_size <= begun:
            break
    raise _Refused(reason)


def _continue(address, part, begun):
    """Appends the rest of a download to `part`; says whether it is complete."""
    headers = {"User-Agent": "gluon_resnest"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        if response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            mode, size = "ab", begun
        else:                                       # the server sends the whole file
            mode, size = "wb", 0
        length = response.headers.get("Content-Length")
        total = size + int(length) if length else None
        with open(part, mode) as stream, tqdm(
                total=total, initial=size, unit="B", unit_scale=True, disable=None,
                desc=part.name.partition(".")[0]) as bar:
            while True:
                chunk = response.read(_CHUNK)
                if not chunk:
                    return total is None or size == total
                size += len(chunk)
                if size > _MAX_BYTES:
                    stream.truncate(0)
                    raise _Refused(f"it is larger than {_MAX_BYTES} bytes")
                stream.write(chunk)
                bar.update(len(chunk))


def _unpack(archive, unpacked):
    """Writes the one `.params` member of an archive to `unpacked`, whatever its name."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            for member in members:
                parts = member.filename.replace("\\", "/").split("/")
                if ".." in parts or parts[0] == "" or ":" in parts[0]:
                    raise _Refused(f"the archive's member {member.filename!r} points outside")
            size = sum(member.file_size for member in members)
            if len(members) > _MAX_MEMBERS or size > _MAX_BYTES:
                raise _Refused(f"the archive unpacks to {len(members)} files of {size} bytes, "
                               f"more than {_MAX_MEMBERS} or {_MAX_BYTES}")
            members = [member for member in members if member.filename.endswith(".params")
                       and member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
            if len(members) != 1:
                raise _Refused(f"the archive holds {len(members)} .params files instead of one")
            with opened.open(members[0]) as source, open(unpacked, "wb") as stream:
                shutil.copyfileobj(source, stream, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise _Refused(f"the archive is damaged ({error})") from error


def _verified(path, sha1):
    """Returns path if its SHA-1 begins with `sha1`; else deletes the file and says both."""
    found = _sha1(path)
    if not found.startswith(sha1):
        _remove(path)
        raise _Refused(f"its SHA-1 is {found}, expected {sha1}; it was deleted")
    return path


def _sha1(path):
    digest = hashlib.sha1()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path):
    if path.exists():
        path.unlink()

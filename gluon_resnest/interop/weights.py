"""Parameter files: reading them safely, loading them strictly, writing them atomically.

A `.params` file is a sequence of named arrays. `read_params` parses it here rather than through
`mx.nd.load`: a size that does not fit the file is then noticed before any memory is asked for.
"""
import fnmatch
import math
import os
import re
import struct
import tempfile
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnest.errors import UserError, nearest
from gluon_resnest.params_file import ARRAY_V2, ARRAY_V3, DENSE, DTYPES, LIST_MAGIC

_CONVERT = "convert a file of another framework by `python tools/convert_weights.py FILE OUT`"
_SHOWN = 10
_CONVENTIONS = "conventions:"       # begins the name of an empty tensor that says a detector's
_OFFSET = re.compile(r"\.conv\.offset\.(weight|bias)$")    # of a `models.deform.DeformableConv2D`


def load_parameters(net, file, *, ctx=None, ignore=()):
    """Loads a parameter file into a net, all of it or nothing.

    Names, shapes, types and finiteness are checked before the net is touched. Reads the structural
    names of `Block.save_parameters`, the `arg:`/`aux:` names of `HybridBlock.export`, and names
    whose beginning is in the net's `name_aliases` ({theirs: ours}), if it has any. Floating point
    values are cast to the type of the parameter; other types must agree.

    Args:
      net: Block; its parameters may be uninitialised, deferred or initialised.
      file: path of a `.params` file.
      ctx: Context or list of them to place the parameters on; None keeps where they are, and
        places uninitialised ones on the CPU.
      ignore: patterns of structural names (`"fc.*"`) that are neither required nor loaded; these
        parameters keep their state.

    Raises:
      UserError: if the file is absent, damaged, not finite, or does not fit the net, or says that
        it is a detector's of other conventions than the net has.
    """
    targets = net._collect_params_with_prefix()
    arrays, declared = undeclared(read_params(file))
    _check_conventions(file, net, declared)
    arrays = _ours(_structural(arrays, net, targets), net)
    kept = _not_ignored(ignore, targets, arrays)
    _place(file, {name: param for name, param in targets.items() if name in kept},
           {name: array for name, array in arrays.items() if name in kept}, ctx)


def load_backbone(backbone, file, *, ctx=None):
    """Loads a classifier's parameter file into what has its stages: all of them or nothing.

    A plain classifier may start a deformable backbone: the offsets, of which its file has none,
    become zero, as in a fresh layer (`models.deform`).

    Args:
      backbone: Block with some of a classifier's children under their names, a `FeatureExtractor`.
      file: `.params` file of the classifier; its other children, such as `fc`, are left out.
      ctx: as in `load_parameters`.

    Raises:
      UserError: as `load_parameters`.
    """
    targets = backbone._collect_params_with_prefix()
    children = {name.partition(".")[0] for name in targets}
    arrays = {name[4:] if name.startswith(("arg:", "aux:")) else name: array
              for name, array in read_params(file).items()}
    arrays = {name: array for name, array in arrays.items() if name.partition(".")[0] in children}
    if not any(map(_OFFSET.search, arrays)):
        arrays.update((name, np.zeros(param.shape, np.float32))
                      for name, param in targets.items() if _OFFSET.search(name))
    _place(file, targets, arrays, ctx)


def declaration(conventions):
    """Returns the {name: array} by which a file says its detector's conventions, given by name."""
    return {_CONVENTIONS + conventions: np.zeros(1, np.float32)}


def undeclared(arrays):
    """Returns the {name: array} of a file without its declarations, and what those say, or None."""
    said = [name for name in arrays if name.startswith(_CONVENTIONS)]
    return ({name: array for name, array in arrays.items() if name not in said},
            said[0][len(_CONVENTIONS):] if said else None)


def _check_conventions(file, net, declared):
    own = getattr(net, "conventions", None)
    if declared and own and own.name != declared:
        raise UserError(f"{str(file)!r} holds a detector of the conventions {declared!r}, the net "
                        f"has {own.name!r}: the same numbers would detect other boxes; build it "
                        f"with conventions={declared!r}")


def _place(file, targets, arrays, ctx):
    """Sets parameters, {name: Parameter}, to arrays of the same names, or changes nothing."""
    _check_fit(file, targets, arrays)
    values = {name: _cast(file, name, array, targets[name].dtype) for name, array in arrays.items()}
    for name, value in values.items():
        param = targets[name]
        if ctx is not None and (param._data is not None or param._deferred_init):
            param.reset_ctx(ctx)
        param._load_init(mx.nd.array(value, dtype=value.dtype), ctx)


def save_parameters(net, file):
    """Writes a net's parameters under their structural names; the old file stays until it is done.

    Raises:
      UserError: if a parameter has no values yet, or the file cannot be written.
    """
    file = Path(file)
    blank = [name for name, param in net._collect_params_with_prefix().items()
             if param._data is None]
    if blank:
        raise UserError(f"cannot save {len(blank)} parameters that have no values yet "
                        f"({', '.join(blank[:_SHOWN])}); initialise the net and run one forward "
                        "pass first")
    mx.nd.waitall()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
            written = Path(folder) / file.name
            net.save_parameters(str(written))
            if getattr(net, "conventions", None):
                mx.nd.save(str(written), {**mx.nd.load(str(written)), **{
                    name: mx.nd.array(array)
                    for name, array in declaration(net.conventions.name).items()}})
            _parse(written.read_bytes())    # MXNet does not notice a disk that is full at the end
            with open(written, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(written, file)
    except (OSError, mx.MXNetError, struct.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it came out damaged ({error})"
        raise UserError(f"cannot write {file}: {reason}; choose a writable folder with space"
                        ) from error


def read_params(file):
    """Reads a `.params` file into `{name: numpy array}` without trusting any size in it.

    Raises:
      UserError: if the file is absent, truncated or not of this format.
    """
    file = Path(file)
    try:
        data = file.read_bytes()
    except OSError as error:
        near = nearest(file.name, os.listdir(file.parent)) if file.parent.is_dir() else ""
        raise UserError(f"cannot read parameter file {str(file)!r}: {error.strerror}{near}"
                        ) from error
    try:
        return _parse(data)
    except (struct.error, ValueError) as error:
        reason = "it ends early" if isinstance(error, struct.error) else error
        raise UserError(f"{str(file)!r} ({len(data)} bytes) is not an intact MXNet parameter file: "
                        f"{reason}; fetch it again, or {_CONVERT}") from error


def _parse(data):
    """Parses the bytes of a parameter file; raises struct.error or ValueError where they break."""
    at = 0

    def take(layout):
        nonlocal at
        values = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return values if len(values) > 1 else values[0]

    def take_array():
        nonlocal at
        magic, storage = take("Ii")
        if magic not in (ARRAY_V2, ARRAY_V3):
            raise ValueError(f"no array begins at byte {at - 8}")
        if storage != DENSE:
            raise ValueError("it holds a sparse array")
        rank = take("i")
        if not 0 < rank <= 32:
            raise ValueError(f"it holds an array of {rank} dimensions")
        shape = [take("q") for _ in range(rank)]
        _, _, code = take("iii")                    # device type and number do not matter here
        if code not in range(len(DTYPES)) or min(shape) < 0:
            raise ValueError(f"it holds an array of type {code} and shape {tuple(shape)}")
        dtype = np.dtype(DTYPES[code])
        count = math.prod(shape)
        if count * dtype.itemsize > len(data) - at:
            raise ValueError(f"an array of shape {tuple(shape)} does not fit in it")
        array = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += array.nbytes
        return array

    def take_name():
        nonlocal at
        length = take("Q")
        if length > len(data) - at:
            raise ValueError("it ends within a name")
        at += length
        return data[at - length:at].decode()

    magic, _, count = take("QQQ")
    if magic != LIST_MAGIC:
        raise ValueError("its first bytes are those of another format")
    arrays = [take_array() for _ in range(min(count, len(data)))]
    names = [take_name() for _ in range(take("Q"))]
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise ValueError(f"it holds {len(arrays)} arrays and {len(set(names))} distinct names")
    return dict(zip(names, arrays))


def _structural(arrays, net, targets):
    """Translates the names of an exported file; other files pass unchanged.

    Exported names differ between two processes in their common prefix alone (a counter), so they
    are compared without it.
    """
    if not arrays or not all(name.startswith(("arg:", "aux:")) for name in arrays):
        return arrays
    exported = {name[4:]: array for name, array in arrays.items()}
    if set(exported) <= set(targets):       # our own exports keep the structural names
        return exported
    flat = {param.name: name for name, param in targets.items()}
    ours, theirs = (os.path.commonprefix(list(names)) for names in (flat, exported))
    renamed = {name[len(theirs):]: array for name, array in exported.items()}
    names = {name[len(ours):]: structural for name, structural in flat.items()}
    if set(renamed) != set(names):
        raise UserError("the file holds the exported (`arg:`, `aux:`) names of another net than "
                        f"{type(net).__name__}; load it with SymbolBlock.imports, or {_CONVERT}")
    return {names[name]: array for name, array in renamed.items()}


def _ours(arrays, net):
    """Translates the beginnings of names that the net's `name_aliases` has, if it has any."""
    aliases = getattr(net, "name_aliases", {})

    def renamed(name):
        for theirs, ours in aliases.items():
            if name.startswith(theirs):
                return ours + name[len(theirs):]
        return name

    return {renamed(name): array for name, array in arrays.items()}


def _not_ignored(ignore, targets, arrays):
    """Returns the names that no pattern covers; a pattern that covers nothing is a mistake."""
    if isinstance(ignore, str):
        raise UserError(f"ignore takes a sequence of patterns, got the string {ignore!r}; "
                        f"write ({ignore!r},)")
    names = set(targets) | set(arrays)
    for pattern in ignore:
        covered = fnmatch.filter(names, pattern)
        if not covered:
            raise UserError(f"ignore={pattern!r} matches no parameter of the net or the file"
                            f"{nearest(pattern, names)}")
        names.difference_update(covered)
    return names


def _check_fit(file, targets, arrays):
    """Raises a UserError that lists both sides unless names and shapes agree."""
    aliases = {}
    for name, param in targets.items():
        aliases.setdefault(id(param), []).append(name)
    missing = [name for name, param in targets.items()
               if not any(alias in arrays for alias in aliases[id(param)])]
    unexpected = [name for name in arrays if name not in targets]
    misshaped = [name for name in arrays
                 if name in targets and not _fits(targets[name].shape, arrays[name].shape)]
    if not (missing or unexpected or misshaped):
        return
    shapes = [f"{name} (net {targets[name].shape}, file {arrays[name].shape})"
              for name in misshaped]
    lists = [f"{len(names)} {label}: {', '.join(names[:_SHOWN])}"
             + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
             for label, names in [("missing", missing), ("unexpected", unexpected),
                                  ("mis-shaped", shapes)] if names]
    raise UserError(f"{str(file)!r} does not fit the net; {'; '.join(lists)}; "
                    f"{_way_out(missing, unexpected, misshaped, arrays)}")


def _way_out(missing, unexpected, misshaped, arrays):
    blocks = {name.rpartition(".")[0] for name in missing + unexpected + misshaped}
    if blocks == {"fc"}:
        return ("only the classifier differs: build the net with the file's number of classes and "
                "call reset_classifier(classes), or pass ignore=(\"fc.*\",)")
    if len(unexpected) == len(arrays):
        return f"no name agrees, so it belongs to another architecture or layout: {_CONVERT}"
    if len(blocks) <= 3:
        patterns = ", ".join(f'"{block}.*"' if block else '"*"' for block in sorted(blocks))
        return f"build the net as it was when saved, or skip the part with ignore=({patterns},)"
    return "build the net with the name and options it was saved with, or name parts in ignore="


def _fits(expected, shape):
    """Says whether a shape agrees with an expected one, whose 0 or -1 stand for "not known yet"."""
    return expected is None or (len(expected) == len(shape) and all(
        want in (0, -1, have) for want, have in zip(expected, shape)))


def _cast(file, name, array, dtype):
    """Casts floating point to floating point; refuses other types and what is not finite."""
    dtype = np.dtype(dtype)
    if array.dtype != dtype and not (array.dtype.kind == dtype.kind == "f"):
        raise UserError(f"{name} in {str(file)!r} is {array.dtype}, the net wants {dtype}; "
                        "only floating point types are cast to each other")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{name} in {str(file)!r} holds NaN or infinity; "
                        "the file is damaged or the training that wrote it had diverged")
    with np.errstate(over="ignore"):
        value = array.astype(dtype, copy=False)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise UserError(f"{name} in {str(file)!r} holds values beyond the range of {dtype}; "
                        f"load it into a net of type {array.dtype}")
    return value

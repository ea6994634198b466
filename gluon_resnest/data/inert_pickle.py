"""A pickle reader that cannot execute anything: an interpreter of the data opcodes only.

Nothing is imported and no `__reduce__` callable of the file runs. A global named by the file is
looked up in a table of our own constructors; a name outside the table ends the reading. Opcodes
for text protocols, extension registries and out-of-band buffers are refused as well. What goes into
constructors, which may copy it, is bounded by a multiple of what was read: two bytes of a pickle
can name megabytes that it holds once.
"""
import pickletools
from typing import Any, Callable, Dict, NamedTuple

from gluon_resnest.errors import UserError

MAX_OPCODES = 20_000_000
MAX_GROWTH = 16                     # bytes given to constructors per byte of the pickle
_SMALL = 1 << 16                    # bytes that are always granted
_POINTER_BYTES = 8
_MAX_KEY = 1 << 64                  # hashes of larger whole numbers can be made to collide


class Global(NamedTuple):
    """What a global of the file stands for: `build(*args)` answers the file's REDUCE."""

    name: str
    build: Callable


class Shell:
    """Base of objects that accept a state after construction (pickle's BUILD)."""

    def build(self, state):
        """Takes the state; the default forgets it."""


class Inert(Shell):
    """Stands for an object that carries no weights, such as argparse.Namespace."""

    def __init__(self, *unused):
        pass


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_TUPLE": tuple}
_LITERALS = frozenset((
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING",
    "SHORT_BINSTRING"))
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ALLOWED = _LITERALS.union(_CONSTANTS, _EMPTY, _SHORT_TUPLES, (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET",
    "LONG_BINGET", "TUPLE", "APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "GLOBAL",
    "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"))


class _Machine:
    """The stack, the memo, and one method for every group of opcodes."""

    def __init__(self, stream, constructors: Dict[str, Callable], persistent: Callable):
        self.stack, self.memo = [], {}
        self.constructors, self.persistent = constructors, persistent
        self.stream, self.start, self.given = stream, stream.tell(), 0

    def pop(self, count=None):
        """Pops one value, or a list of `count` values in their order."""
        if count is None:
            value = self.stack.pop()
        else:
            if len(self.stack) < count:
                raise IndexError("stack underflow")
            value = self.stack[len(self.stack) - count:]
            del self.stack[len(self.stack) - count:]
        if value is _MARK or (count and any(item is _MARK for item in value)):
            raise IndexError("a mark where a value was expected")
        return value

    def pop_to_mark(self):
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                values = self.stack[position + 1:]
                del self.stack[position:]
                return values
        raise IndexError("no mark on the stack")

    def top(self, kind):
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {kind.__name__} was expected on the stack")
        return self.stack[-1]

    def find(self, name):
        if name not in self.constructors:
            raise UserError(f"the pickle wants the global {name[:200]!r}, which is not on the list "
                            "of harmless ones, so it was not read; save a plain state_dict")
        return Global(name, self.constructors[name])

    def spend(self, values):
        """Counts what a constructor gets and ends the reading if that is too much."""
        self.given += _POINTER_BYTES * len(values) + sum(map(_extent, values))
        if self.given > MAX_GROWTH * (self.stream.tell() - self.start) + _SMALL:
            raise UserError("the pickle unfolds to far more than it holds, as no weight file does, "
                            "so it was not read; save a plain state_dict")

    def call(self, function, args):
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise TypeError("a call of something that is no global")
        self.spend(args)
        return function.build(*args)

    def set_state(self, target, state):
        self.spend(state if isinstance(state, (tuple, list)) else (state,))
        target.build(state)

    def set_items(self, pairs):
        target = self.top(dict)
        if len(pairs) % 2:
            raise IndexError("an odd number of dictionary items")
        for key, value in zip(pairs[::2], pairs[1::2]):
            # A shared nested tuple takes exponential time to hash.
            if not isinstance(key, (str, int, float, type(None))):
                raise TypeError(f"a dictionary key of type {type(key).__name__}")
            if not isinstance(key, (str, type(None))) and not -_MAX_KEY < key < _MAX_KEY:
                raise TypeError("a dictionary key that is NaN or a huge number")
            target[key] = value

    def step(self, name, arg):
        """Executes one opcode."""
        push = self.stack.append
        if name in _LITERALS:
            push(arg)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name == "MARK":
            push(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = self.top(object)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top(object)
        elif name in ("BINGET", "LONG_BINGET"):
            push(self.memo[arg])
        elif name == "TUPLE":
            push(tuple(self.pop_to_mark()))
        elif name in _SHORT_TUPLES:
            push(tuple(self.pop(_SHORT_TUPLES[name])))
        elif name == "APPEND":
            value = self.pop()
            self.top(list).append(value)
        elif name in ("APPENDS", "ADDITEMS"):
            values = self.pop_to_mark()
            self.top(list).extend(values)
        elif name == "SETITEM":
            pair = self.pop(2)
            self.set_items(pair)
        elif name == "SETITEMS":
            pairs = self.pop_to_mark()
            self.set_items(pairs)
        elif name == "GLOBAL":
            push(self.find(arg.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            names = self.pop(2)
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a global whose name is no text")
            push(self.find(".".join(names)))
        elif name in ("REDUCE", "NEWOBJ"):
            function, args = self.pop(2)
            push(self.call(function, args))
        elif name == "BUILD":
            state = self.pop()
            if isinstance(self.top(object), Shell):
                self.set_state(self.stack[-1], state)
        elif name == "BINPERSID":
            push(self.persistent(self.pop()))
        elif name == "POP":
            self.stack.pop()


def _extent(value):
    """Returns how many bytes a copy of a value takes that shares what it holds."""
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    return _POINTER_BYTES * len(value) if isinstance(value, (tuple, list, dict)) else 0


def _opcodes(stream):
    """Yields (name, argument); looks at the name before it parses the argument, because parsing
    the text opcodes' numbers takes quadratic time."""
    for _ in range(MAX_OPCODES):
        code = stream.read(1)
        opcode = pickletools.code2op.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError(f"opcode {code!r}" if code else "it ends early")
        if opcode.name not in _ALLOWED:
            raise UserError(f"the pickle uses the opcode {opcode.name}, which weight files do not "
                            "need; save a plain state_dict of tensors")
        yield opcode.name, opcode.arg.reader(stream) if opcode.arg else None
        if opcode.name == "STOP":
            return
    raise UserError(f"the pickle has more than {MAX_OPCODES} opcodes; "
                    "no ResNeSt needs that many, so it was not read")


def _no_persistent(_identity):
    raise UserError("the pickle refers to data outside itself; save a plain dictionary of arrays")


def load(stream, constructors: Dict[str, Callable], persistent: Callable = _no_persistent) -> Any:
    """Reads one pickle from a binary stream that clips reads at its end (BytesIO).

    Args:
      stream: positioned at the pickle; afterwards positioned behind its STOP.
      constructors: "module.name" of every allowed global, and our callable that stands for it.
      persistent: callable that answers the file's persistent ids.

    Raises:
      UserError: a global or opcode outside the lists, a damaged pickle, or one that unfolds to
        far more than its bytes.
    """
    machine = _Machine(stream, constructors, persistent)
    try:
        for name, arg in _opcodes(stream):
            machine.step(name, arg)
        return machine.pop()
    except UserError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"the pickle is damaged ({error}); get the file again") from error

"""Reads and writes MXNet's .rec files with their .idx, which has a line "key, tab, byte offset".

MXNet's own readers abort the process or go on silently on most kinds of damage. Here each is one
sentence.
"""
import fcntl
import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from gluon_resnest.data.record_format import (
    Damaged, Record, frame, pack_record, record_end, unframe, unpack_record)
from gluon_resnest.errors import UserError

CLASS_NAMES = ".classes.txt"
_HEADERS_CHECKED = 65536                                      # at opening; all others at reading

_DO_WITHOUT = "delete the .idx to have the records found without it"
_log = logging.getLogger(__name__)


def sidecar(rec, suffix):
    """Returns the path of a file that belongs to a record file, e.g. train.idx to train.rec."""
    return Path(rec).with_suffix(suffix)


class RecordFile:
    """A checked, picklable reader of one .rec file.

    `len(records)`, `records[i] -> (label, bytes)`; records are numbered in the order of the .idx,
    as MXNet does, or of the file where there is no .idx. Opening checks that the .idx names every
    record once and fits the file; each record is checked again when it is read. The descriptor is
    opened by the process that first reads; reads are thread- and process-safe.

    Args:
      rec: path of the .rec file.
      idx: path of its .idx; by default the one beside it.

    Attributes:
      path: path of the .rec file.
      indexed: whether there is an .idx.
      keys: the .idx's key of each record, int64 (N,).

    Raises:
      UserError: if a file is missing, damaged, or does not fit the other.
    """

    def __init__(self, rec, idx=None):
        self.path = Path(rec)
        if not self.path.is_file():
            raise UserError(f"there is no record file {rec}; check the path, or make one with "
                            f"tools/pack_records.py")
        self._fd = None
        self._names = None
        self._bytes = self.path.stat().st_size
        if not self._bytes or self._bytes % 4:
            raise UserError(f"{rec} is {'truncated' if self._bytes else 'empty'} ({self._bytes} "
                            f"bytes, expected a multiple of 4); copy or pack it again")
        index = Path(idx) if idx else sidecar(rec, ".idx")
        self.indexed = index.is_file()
        if self.indexed:
            self.keys, self._starts = _read_index(index)
            self._ends = self._following(index)
            self._check_headers(index)
        elif idx:
            raise UserError(f"there is no index file {idx}; leave it out to do without")
        else:
            _log.info("%s has no .idx beside it: its %d bytes are walked", rec, self._bytes)
            self._scan()

    def __len__(self):
        return len(self._starts)

    def __getitem__(self, number):
        record = self.read(number)
        return record.label, record.data

    def __getstate__(self):
        return dict(self.__dict__, _fd=None, _names=None)

    def __del__(self):
        if getattr(self, "_fd", None) is not None:
            os.close(self._fd)

    def read(self, number):
        """Returns the Record of that number.

        Raises:
          UserError: if it is damaged; names it.
        """
        start, end = int(self._starts[number]), int(self._ends[number])
        try:
            block = os.pread(self._descriptor(), end - start, start)
            return unpack_record(unframe(block))
        except (Damaged, OSError) as error:
            raise UserError(f"{self.name(number)} is damaged at byte {start}: {error}; copy or "
                            f"pack the file again") from error

    def name(self, number):
        """Returns what an error message calls a record, with its image's file name if known."""
        if self._names is None:
            names = sidecar(self.path, ".names.txt")
            # Names may hold other ends of lines than that, and mean nothing but a message.
            self._names = names.read_text("utf-8", "replace").rstrip("\n").split("\n") \
                if names.is_file() else []
        known = f" ({self._names[number]})" if len(self._names) == len(self) else ""
        return f"record {number}{known} of {self.path}"

    def _descriptor(self):
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY)
        return self._fd

    def _following(self, index):
        """Returns where each record ends: where the next begins."""
        order = np.argsort(self._starts, kind="stable")
        starts = self._starts[order]
        fault = ""
        if starts[0] != 0:
            fault = f"the first record it names is at byte {starts[0]}, not 0"
        elif starts[-1] > self._bytes - 8:
            fault = f"it names byte {starts[-1]} of a file of {self._bytes} bytes"
        elif (starts % 4).any():
            fault = f"byte {starts[(starts % 4).argmax()]} is no multiple of 4"
        elif (np.diff(starts) == 0).any():
            fault = f"it names byte {starts[(np.diff(starts) == 0).argmax()]} twice"
        if fault:
            raise _mismatch(index, self.path, fault)
        ends = np.empty_like(starts)
        ends[order] = np.append(starts[1:], self._bytes)
        return ends

    def _check_headers(self, index):
        """Checks where records end: of all of them, or of some where they are very many."""
        numbers = np.unique(np.append(
            np.linspace(0, len(self) - 1, min(len(self), _HEADERS_CHECKED)).astype(np.int64),
            self._starts.argmax()))
        for number in numbers.tolist():
            start, end = int(self._starts[number]), int(self._ends[number])
            try:
                stop = record_end(self._descriptor(), start, self._bytes)
            except Damaged as error:
                raise _mismatch(index, self.path, error) from error
            if stop != end:
                next_one = "the next one begins" if end < self._bytes else "the file ends"
                raise _mismatch(index, self.path, f"the record at byte {start} ends at {stop}, and "
                                                  f"{next_one} at {end}")

    def _scan(self):
        starts, position = [], 0
        while position < self._bytes:
            starts.append(position)
            try:
                position = record_end(self._descriptor(), position, self._bytes)
            except Damaged as error:
                raise UserError(f"{self.path} is damaged: {error} ({len(starts) - 1} whole records "
                                f"precede it); copy or pack it again") from error
        self._starts = np.array(starts, dtype=np.int64)
        self._ends = np.append(self._starts[1:], self._bytes)
        self.keys = np.arange(len(starts))


class RecordWriter:
    """Writes a .rec file that appears, with its .idx and .sha256, when it is complete.

    Until then everything is in FILE.rec.partial. With `resume`, the whole records of an interrupted
    attempt are kept and writing continues behind them. Use as a context manager: leaving it
    normally completes the file, leaving it by an exception keeps the partial one.

    Args:
      rec: path of the .rec file to be.
      resume: whether to continue a partial file; otherwise it is begun afresh.

    Attributes:
      keys: ids of the records written so far, in order.
    """

    def __init__(self, rec, resume=False):
        self.path = Path(rec)
        self.partial = Path(f"{rec}.partial")
        self.keys, self._starts = [], []
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._file = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"another process is writing {rec} right now; wait for it") from None
        if resume:
            self._recover()
        self._file.truncate(self._bytes)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.complete()
        self._file.close()

    def write(self, label, data, key=None):
        """Appends an image record; its key is the number of records before it unless given."""
        key = len(self.keys) if key is None else key
        block = frame(pack_record(Record(label, key, data)))
        self._file.write(block)
        self._note(key, block)

    def complete(self):
        """Writes .idx and .sha256 and gives the record file its name, last of all."""
        lines = "".join(f"{key}\t{start}\n" for key, start in zip(self.keys, self._starts))
        write_whole(sidecar(self.path, ".idx"), lines)
        index_hash = hashlib.sha256(lines.encode()).hexdigest()
        write_whole(sidecar(self.path, ".sha256"),
                    f"{self._hash.hexdigest()}  {self.path.name}\n"
                    f"{index_hash}  {sidecar(self.path, '.idx').name}\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.partial, self.path)

    def _recover(self):
        """Takes stock of the whole records in the partial file; leaves its position behind them."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            while self._bytes < size:
                end = record_end(self._file.fileno(), self._bytes, size)
                block = self._file.read(end - self._bytes)
                self._note(unpack_record(unframe(block)).id, block)
        except Damaged:                                       # written half when it was interrupted
            self._file.seek(self._bytes)

    def _note(self, key, block):
        self.keys.append(key)
        self._starts.append(self._bytes)
        self._bytes += len(block)
        self._hash.update(block)


def write_whole(path, text):
    """Writes a text file in such a way that it is there completely or not at all."""
    temporary = Path(f"{path}.partial")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_class_names(rec, names):
    """Writes the CLASS_NAMES of a record file; without names a former file's is removed."""
    path = sidecar(rec, CLASS_NAMES)
    if names:
        write_whole(path, "\n".join(names) + "\n")
    elif path.exists():
        path.unlink()


def _read_index(path):
    """Returns keys and offsets of an .idx file, both int64 (N,)."""
    rows = path.read_bytes().splitlines()
    if not rows:
        raise UserError(f"{path} is empty; {_DO_WITHOUT}")
    table = np.empty((len(rows), 2), dtype=np.int64)
    for number, row in enumerate(rows):
        try:
            key, offset = row.split(b"\t")
            table[number] = int(key), int(offset)
        except (ValueError, OverflowError):
            raise UserError(f"line {number + 1} of {path} should be a key, a tab and a byte "
                            f"offset, got {row[:40]!r}; {_DO_WITHOUT}") from None
    keys, counts = np.unique(table[:, 0], return_counts=True)
    if len(keys) < len(rows):
        raise UserError(f"{path} has the key {keys[counts.argmax()]} {counts.max()} times, "
                        f"expected unique ones; {_DO_WITHOUT}")
    return table[:, 0], table[:, 1]


def _mismatch(index, rec, fault):
    return UserError(f"{index} does not fit {rec}: {fault}; copy both again, or {_DO_WITHOUT}")

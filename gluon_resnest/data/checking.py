"""Checks a record file from end to end: every byte against the checksum, every image decoded."""
import functools
from typing import NamedTuple

import numpy as np

from gluon_resnest.data import images
from gluon_resnest.data.classification import class_number, read_class_names
from gluon_resnest.data.processes import in_order
from gluon_resnest.data.recordio import RecordFile, sidecar
from gluon_resnest.errors import UserError
from gluon_resnest.provenance import sha256

_CHUNK = 16                                                   # records a process gets at a time


class Report(NamedTuple):
    """What a record file holds.

    count: number of records.
    labels: (smallest, largest) label, None if there is none to be read.
    multiple: records with several labels, as in detection files.
    formats: {(format, mode): number of images}, e.g. {("JPEG", "RGB"): 1281143}.
    greyscale, cmyk: names of the records with such images; both are readable.
    problems: sentences, each naming a record or a file; empty if all is well.
    notes: sentences on what is lacking but not needed.
    """
    count: int
    labels: tuple
    multiple: int
    formats: dict
    greyscale: list
    cmyk: list
    problems: list
    notes: list


class _Finding(NamedTuple):
    label: object
    key: int
    kind: tuple
    problem: str


def check(rec, classes=None, *, processes=1, progress=None):
    """Reads and decodes every record of a file.

    Args:
      rec: path of the .rec file.
      classes: labels outside 0..classes-1 are problems; by default as many as .classes.txt names.
      processes: how many decode.
      progress: None, or a callable (done, total), called after each record.

    Returns:
      Report.

    Raises:
      UserError: if the file cannot be opened, or its .idx does not fit.
    """
    records = RecordFile(rec)
    names = sidecar(rec, ".classes.txt")
    if classes is None and names.is_file():
        classes = len(read_class_names(names))
    problems, notes = _checksum(rec)
    if not records.indexed:
        notes.append(f"{sidecar(rec, '.idx')} is missing; MXNet's own datasets need it")
    grey, cmyk, formats, labels, multiple, keys = [], [], {}, [], 0, set()
    chunks = [range(start, min(start + _CHUNK, len(records)))
              for start in range(0, len(records), _CHUNK)]
    findings = in_order(functools.partial(_examine, records), chunks, processes)
    for number, finding in enumerate(finding for chunk in findings for finding in chunk):
        if progress:
            progress(number + 1, len(records))
        if finding.problem:
            problems.append(finding.problem)
            continue
        formats[finding.kind] = formats.get(finding.kind, 0) + 1
        if finding.kind[1] in ("L", "LA", "1") or finding.kind[1].startswith("I"):
            grey.append(records.name(number))
        elif finding.kind[1] == "CMYK":
            cmyk.append(records.name(number))
        if records.indexed and finding.key in keys:
            problems.append(f"{records.name(number)} has the id {finding.key} of another record")
        keys.add(finding.key)
        if np.size(finding.label) != 1:
            multiple += 1
            continue
        labels.append(float(np.reshape(finding.label, ())))
        try:
            class_number(finding.label, lambda: records.name(number), classes)
        except UserError as error:
            problems.append(str(error))
    span = (min(labels), max(labels)) if labels else None
    return Report(len(records), span, multiple, formats, grey, cmyk, problems, notes)


def _examine(records, numbers):
    """Returns a _Finding for each of the records."""
    findings = []
    for number in numbers:
        try:
            record = records.read(number)
            kind = images.kind(record.data)
            images.decode(record.data)
            findings.append(_Finding(record.label, record.id, tuple(kind), None))
        except images.BadImage as error:
            findings.append(_Finding(None, None, None, f"{records.name(number)}: {error}"))
        except UserError as error:
            findings.append(_Finding(None, None, None, str(error)))
    return findings


def _checksum(rec):
    """Returns (problems, notes) of the files that .sha256 names."""
    sums = sidecar(rec, ".sha256")
    if not sums.is_file():
        return [], [f"{sums} is missing, so that damage inside an image may go unnoticed"]
    problems = []
    for line in sums.read_text().splitlines():
        expected, _, name = line.partition("  ")
        file = sums.parent / name
        if not file.is_file():
            problems.append(f"{file}, which {sums} names, is missing")
        elif sha256(file) != expected:
            problems.append(f"{file} has been changed since it was packed: its SHA-256 is not the "
                            f"one in {sums}")
    return problems, []

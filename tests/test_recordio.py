import os
import pickle
import shutil
import struct
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from mxnet import recordio

from gluon_resnest.data.record_format import (
    MAGIC, Damaged, Record, frame, pack_record, unframe, unpack_record)
from gluon_resnest.data.recordio import RecordFile, RecordWriter
from gluon_resnest.errors import UserError

PAYLOADS = st.lists(st.sampled_from([MAGIC, b"a", b"bc", b"defg", b"\x00" * 5]), max_size=9).map(
    b"".join)
CONTENT = [(0, b"jpeg"), (3, b""), (7, b"12345" * 9),
           (2, MAGIC + b"wxyz" + MAGIC + b"v"), (1, b"tail")]


def write(rec, content=CONTENT):
    with RecordWriter(rec) as writer:
        for label, data in content:
            writer.write(label, data)
    return rec


def by_mxnet(rec, content=CONTENT, keys=None):
    writer = recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "w")
    for number, (label, data) in enumerate(content):
        key = number if keys is None else keys[number]
        writer.write_idx(key, recordio.pack(recordio.IRHeader(0, label, key, 0), data))
    writer.close()
    return rec


def content_of(records):
    return [(np.asarray(label).tolist(), data)
            for label, data in (records[number] for number in range(len(records)))]


@pytest.fixture
def rec(tmp_path):
    return write(tmp_path / "a.rec")


@hypothesis.given(PAYLOADS)
def test_unframe_inverts_frame(payload):
    block = frame(payload)
    assert len(block) % 4 == 0
    assert unframe(block) == payload


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(PAYLOADS, min_size=1, max_size=5))
def test_frame_is_bit_for_bit_mxnets(tmp_path_factory, payloads):
    file = tmp_path_factory.mktemp("rec") / "a.rec"
    writer = recordio.MXRecordIO(str(file), "w")
    for payload in payloads:
        writer.write(payload)
    writer.close()
    assert file.read_bytes() == b"".join(map(frame, payloads))


@pytest.mark.parametrize("label", [0, 3.5, [1.0, 2.0, 4.5], [7.0]])
def test_record_payload_is_mxnets(label):
    record = Record(label, 5, b"image")
    payload = pack_record(record)
    assert payload == recordio.pack(recordio.IRHeader(0, label, 5, 0), b"image")
    again = unpack_record(payload)
    np.testing.assert_array_equal(again.label, label)
    assert again[1:] == record[1:]


@pytest.mark.parametrize("payload", [b"", b"\x00" * 23, struct.pack("<IfQQ", 2, 0, 0, 0) + b"1234"])
def test_short_payloads_are_damaged(payload):
    with pytest.raises(Damaged, match=f"{len(payload)} bytes cannot hold"):
        unpack_record(payload)


def test_reader_inverts_writer(rec):
    assert content_of(RecordFile(rec)) == CONTENT


def test_files_are_bit_for_bit_mxnets(rec, tmp_path):
    theirs = by_mxnet(tmp_path / "b.rec")
    assert theirs.read_bytes() == rec.read_bytes()
    assert (tmp_path / "b.idx").read_bytes() == (tmp_path / "a.idx").read_bytes()


def test_mxnet_reads_what_we_wrote(rec):
    reader = recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    found = [recordio.unpack(reader.read_idx(key)) for key in reader.keys]
    assert [(header.label, data) for header, data in found] == CONTENT


def test_images_packed_by_mxnet_are_read(tmp_path):
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    payload = recordio.pack_img(recordio.IRHeader(0, [1, 2], 9, 0), image, img_fmt=".png")
    writer = recordio.MXIndexedRecordIO(str(tmp_path / "c.idx"), str(tmp_path / "c.rec"), "w")
    writer.write_idx(9, payload)
    writer.close()
    record = RecordFile(tmp_path / "c.rec").read(0)
    assert record.label.tolist() == [1, 2] and record.id == 9 and record.data[1:4] == b"PNG"


def test_records_are_numbered_as_the_index_lists_them(tmp_path):
    rec = by_mxnet(tmp_path / "a.rec", keys=[30, 10, 20, 50, 40])
    index = rec.with_suffix(".idx")
    lines = index.read_text().splitlines()
    index.write_text("\n".join(reversed(lines)) + "\n")
    records = RecordFile(rec)
    assert records.keys.tolist() == [40, 50, 20, 10, 30]
    assert content_of(records) == CONTENT[::-1]


def test_without_an_index_the_records_are_found(rec):
    with_index = RecordFile(rec)
    rec.with_suffix(".idx").unlink()
    without = RecordFile(rec)
    assert with_index.indexed and not without.indexed
    assert content_of(without) == content_of(with_index)


def test_an_index_elsewhere_is_used(rec, tmp_path):
    shutil.move(str(rec.with_suffix(".idx")), str(tmp_path / "other.idx"))
    assert RecordFile(rec, tmp_path / "other.idx").indexed


def test_a_pickled_reader_reads_in_its_new_home(rec):
    records = RecordFile(rec)
    records.read(0)
    assert content_of(pickle.loads(pickle.dumps(records))) == CONTENT


def test_a_reader_closes_its_file(rec):
    before = len(os.listdir("/proc/self/fd"))
    records = RecordFile(rec)
    records.read(1)
    del records
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_of_files_are_told_where_known(rec):
    assert RecordFile(rec).name(1) == f"record 1 of {rec}"
    rec.with_suffix(".names.txt").write_text("".join(f"cat/{n}.jpg\n" for n in range(5)))
    assert RecordFile(rec).name(1) == f"record 1 (cat/1.jpg) of {rec}"


def test_names_may_be_of_any_letters_in_any_locale(rec):
    rec.with_suffix(".names.txt").write_bytes("caf\u00e9\u2028\x85.jpg\n".encode() * 4 + b"\xff\n")
    code = "import sys; from gluon_resnest.data.recordio import RecordFile as R; " \
           "print(ascii(R(sys.argv[1]).name(1)), ascii(R(sys.argv[1]).name(4)))"
    told = subprocess.run([sys.executable, "-X", "utf8=0", "-c", code, str(rec)], check=True,
                          stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}).stdout
    assert r"record 1 (caf\xe9\u2028\x85.jpg) of" in told and r"record 4 (\ufffd) of" in told


def corrupt(file, position, data):
    with open(file, "r+b") as stream:
        stream.seek(position)
        stream.write(data)


def starts(rec):
    return [int(line.split("\t")[1]) for line in rec.with_suffix(".idx").read_text().splitlines()]


def lines(rec, change):
    index = rec.with_suffix(".idx")
    index.write_text("\n".join(change(index.read_text().splitlines())) + "\n")


FAULTS = {
    "missing file": (lambda rec: rec.unlink(), "there is no record file .*a.rec"),
    "empty file": (lambda rec: os.truncate(rec, 0), "is empty"),
    "six bytes": (lambda rec: os.truncate(rec, 6), r"is truncated \(6 bytes"),
    "tail cut by 3": (lambda rec: os.truncate(rec, rec.stat().st_size - 3), "is truncated"),
    "cut in a record": (lambda rec: os.truncate(rec, starts(rec)[-1] + 16),
                        "reaches to"),
    "cut between records": (lambda rec: os.truncate(rec, starts(rec)[-1]),
                            "names byte|0 whole"),
    "bad magic": (lambda rec: corrupt(rec, starts(rec)[2], b"????"), "no record begins at byte"),
    "bad length": (lambda rec: corrupt(rec, starts(rec)[2] + 4, struct.pack("<I", 40)),
                   "ends at|no record begins"),
    "huge length": (lambda rec: corrupt(rec, starts(rec)[2] + 4, b"\xff\xff\xff\x1f"),
                    "reaches to"),
    "bad flag": (lambda rec: corrupt(rec, starts(rec)[2] + 7, b"\x60"), "a part of kind 3"),
    "undefined flag": (lambda rec: corrupt(rec, starts(rec)[2] + 7, b"\xe0"), "a part of kind 7"),
}
INDEX_FAULTS = {
    "empty": (lambda rows: [], "is empty|line 1 of"),
    "text": (lambda rows: ["hello"] + rows[1:], "line 1 of .* should be a key"),
    "one column": (lambda rows: rows[:2] + ["2"] + rows[3:], "line 3 of"),
    "three columns": (lambda rows: rows[:2] + ["2\t3\t4"] + rows[3:], "line 3 of"),
    "number too large": (lambda rows: rows[:2] + ["2\t" + "9" * 30] + rows[3:], "line 3 of"),
    "beyond the end": (lambda rows: rows[:-1] + ["4\t4000"], "does not fit .* byte 4000"),
    "negative": (lambda rows: rows[:-1] + ["4\t-4"], "does not fit .* byte -4"),
    "in a record": (lambda rows: rows[:-1] + ["4\t{}".format(int(rows[-1].split()[1]) + 8)],
                    "does not fit .*(no record begins|ends at)"),
    "unaligned": (lambda rows: rows[:1] + ["1\t37"] + rows[2:], "byte 37 is no multiple of 4"),
    "one fewer at the end": (lambda rows: rows[:-1], "does not fit .* ends at"),
    "one fewer at the start": (lambda rows: rows[1:], "the first record it names is at byte"),
    "one fewer inside": (lambda rows: rows[:1] + rows[2:], "does not fit .* ends at"),
    "double key": (lambda rows: rows[:1] + ["0\t" + rows[1].split()[1]] + rows[2:],
                   "the key 0 2 times"),
    "double offset": (lambda rows: rows[:1] + ["1\t0"] + rows[2:], "names byte 0 twice"),
}


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_every_fault_of_the_records_is_a_sentence(rec, fault, indexed):
    damage, message = FAULTS[fault]
    damage(rec)
    if not indexed:
        rec.with_suffix(".idx").unlink()
        if fault == "cut between records":
            assert content_of(RecordFile(rec)) == CONTENT[:-1]
            return
    with pytest.raises(UserError, match=message) as caught:
        RecordFile(rec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", sorted(INDEX_FAULTS))
def test_every_fault_of_the_index_is_a_sentence(rec, fault):
    change, message = INDEX_FAULTS[fault]
    lines(rec, change)
    with pytest.raises(UserError, match=message) as caught:
        RecordFile(rec)
    assert "\n" not in str(caught.value) and "delete" in str(caught.value)


def test_an_index_that_is_asked_for_must_exist(rec):
    with pytest.raises(UserError, match="no index file"):
        RecordFile(rec, "nowhere.idx")


@pytest.mark.parametrize("part", [1, 2])
def test_damage_behind_a_record_head_is_found_at_reading(rec, part):
    """A split record, one of whose later parts is damaged while the file is open."""
    records = RecordFile(rec)
    position = starts(rec)[3]
    for _ in range(part):
        word = struct.unpack("<I", rec.read_bytes()[position + 4:position + 8])[0]
        length = word & (1 << 29) - 1
        position += 8 + length + -length % 4
    corrupt(rec, position, b"\x00")
    with pytest.raises(UserError, match="record 3 of .*a.rec is damaged at byte"):
        records.read(3)


def test_a_record_too_short_for_its_header_is_found_at_reading(tmp_path):
    writer = recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    writer.write_idx(0, b"12345678")
    writer.close()
    with pytest.raises(UserError, match="8 bytes cannot hold the header of 24"):
        RecordFile(tmp_path / "a.rec").read(0)


def test_a_file_cut_after_opening_is_found_at_reading(rec):
    records = RecordFile(rec)
    os.truncate(rec, starts(rec)[2] + 12)
    assert records[1][0] == CONTENT[1][0]
    for number in (2, 4):
        with pytest.raises(UserError, match=f"record {number} of .* is damaged"):
            records.read(number)


@hypothesis.settings(max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.data())
def test_any_flipped_bit_is_a_sentence_or_changes_one_record_only(tmp_path, data):
    rec = write(tmp_path / "a.rec")
    size = rec.stat().st_size
    position = data.draw(st.integers(0, size - 1))
    bit = data.draw(st.integers(0, 7))
    corrupt(rec, position, bytes([rec.read_bytes()[position] ^ 1 << bit]))
    try:
        found = content_of(RecordFile(rec))
    except UserError:
        return
    assert sum(ours != theirs for ours, theirs in zip(found, CONTENT)) <= 1


def test_a_writer_that_fails_leaves_only_a_partial_file(tmp_path):
    with pytest.raises(KeyError):
        with RecordWriter(tmp_path / "a.rec") as writer:
            writer.write(0, b"first")
            raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["a.rec.partial"]


def test_a_resumed_writer_keeps_the_whole_records(rec, tmp_path):
    whole = rec.read_bytes()
    for size in range(0, len(whole) + 1, 3):
        again = tmp_path / "b.rec"
        (tmp_path / "b.rec.partial").write_bytes(whole[:size])
        with RecordWriter(again, resume=True) as writer:
            kept = len(writer.keys)
            for label, data in CONTENT[kept:]:
                writer.write(label, data)
        assert kept == sum(end <= size for end in starts(rec)[1:] + [len(whole)])
        assert again.read_bytes() == whole
        assert (tmp_path / "b.idx").read_bytes() == (tmp_path / "a.idx").read_bytes()
        sums = [(tmp_path / name).read_text() for name in ("a.sha256", "b.sha256")]
        assert sums[0] == sums[1].replace("b.", "a.")


def test_two_writers_of_one_file_are_refused(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, b"")
        with pytest.raises(UserError, match="another process is writing"):
            RecordWriter(tmp_path / "a.rec")


def test_a_record_must_fit_its_length_field():
    class Huge(bytes):
        def __len__(self):
            return 1 << 29
    with pytest.raises(UserError, match="less than 536870912 bytes"):
        frame(Huge())

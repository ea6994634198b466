"""What is found wrong in record files, whoever packed them."""
import pytest
from mxnet import recordio
from test_pack_records import pack_folder, photo, write_tree

from gluon_resnest.data.checking import check
from gluon_resnest.data.packing import Item, folder_items, pack


@pytest.mark.parametrize("classes, expected", [(None, "a whole number from 0 on"), (3, "0 to 2")])
def test_check_wants_whole_numbers(tmp_path, classes, expected):
    (tmp_path / "a.jpg").write_bytes(photo(0))
    items = [Item(label, key, "a.jpg") for key, label in enumerate((0.5, -3, 2))]
    pack(items, tmp_path, tmp_path / "a.rec")
    problems = check(tmp_path / "a.rec", classes).problems
    assert len(problems) == 2 and all(expected in each for each in problems)
    assert "record 0 (a.jpg)" in problems[0] and "record 1 (a.jpg)" in problems[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_check_reports_every_kind(tmp_path, processes):
    root = tmp_path / "pictures"
    write_tree(root, each=2)
    (root / "ant/grey.jpg").write_bytes(photo(5, mode="L"))
    items = folder_items(root)[0] + [Item([1, 2], 50, "ant/0.jpg"), Item(9, 51, "ant/0.jpg")]
    pack(items, root, tmp_path / "a.rec", class_names=["ant", "bee", "cat"])
    report = check(tmp_path / "a.rec", processes=processes)
    assert report.count == 9 and report.labels == (0, 9) and report.multiple == 1
    assert report.formats == {("JPEG", "RGB"): 8, ("JPEG", "L"): 1}
    assert len(report.greyscale) == 1 and "ant/grey.jpg" in report.greyscale[0]
    assert not report.cmyk and not report.notes
    assert len(report.problems) == 1
    assert "record 8 (ant/0.jpg)" in report.problems[0] and "expected 0 to 2" in report.problems[0]


def test_check_names_broken_and_cmyk_images_that_others_packed(tmp_path):
    writer = recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    for key, data in enumerate([photo(0, mode="CMYK"), photo(1)[:-9], b"junk", photo(2)]):
        writer.write_idx(key, recordio.pack(recordio.IRHeader(0, 0, min(key, 2), 0), data))
    writer.close()
    report = check(tmp_path / "a.rec")
    assert len(report.cmyk) == 1 and report.cmyk[0].startswith("record 0 of")
    assert [problem.split(" of ")[0] for problem in report.problems] == ["record 1", "record 2"]
    assert ".sha256 is missing" in report.notes[0]


def test_check_finds_a_changed_bit_and_a_repeated_id(tmp_path):
    rec = tmp_path / "a.rec"
    pack_folder(write_tree(tmp_path / "pictures"), rec)
    assert check(rec).problems == []
    data = bytearray(rec.read_bytes())
    data[16] ^= 1                                             # id of record 0: 0 becomes 1
    rec.write_bytes(data)
    problems = check(rec).problems
    assert len(problems) == 2
    assert "has been changed since it was packed" in problems[0]
    assert "has the id 1 of another record" in problems[1]

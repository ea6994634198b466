import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from mxnet import recordio
from PIL import Image

from gluon_resnest.data import images, packing
from gluon_resnest.data.checking import check
from gluon_resnest.data.packing import Item, PackOptions, encode, folder_items, list_items, pack
from gluon_resnest.data.processes import in_order
from gluon_resnest.data.recordio import RecordFile
from gluon_resnest.errors import UserError

TOOL = [sys.executable, str(Path(__file__).resolve().parents[1] / "tools/pack_records.py")]
SIDECARS = (".idx", ".names.txt", ".classes.txt", ".pack.json", ".sha256")


def photo(number, height=12, width=18, kind="JPEG", mode="RGB"):
    image = np.random.RandomState(number).randint(0, 256, (height, width, 3)).astype(np.uint8)
    stored = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stored, kind)
    return stored.getvalue()


def write_tree(root, classes=("ant", "bee", "cat"), each=7):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for item in range(each):
            (root / name / f"{item}.jpg").write_bytes(photo(100 * number + item))
    return root


def run(*arguments, **options):
    return subprocess.run([*TOOL, *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=60, **options)


def files_of(rec):
    """The bytes of a record file and of everything beside it."""
    rec = Path(rec)
    return {suffix: rec.with_suffix(suffix).read_bytes() for suffix in (".rec",) + SIDECARS}


def pack_folder(root, rec, *arguments, **options):
    items, names = folder_items(root)
    return pack(items, root, rec, *arguments, class_names=names, **options)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def packed(tree, tmp_path_factory):
    """The files of an undisturbed run in one process."""
    rec = tmp_path_factory.mktemp("packed") / "a.rec"
    assert pack_folder(tree, rec) == (21, 0, ())
    return files_of(rec)


def test_records_hold_the_files_bytes_and_labels(tree, packed, tmp_path):
    (tmp_path / "a.rec").write_bytes(packed[".rec"])
    records = RecordFile(tmp_path / "a.rec")
    files = sorted(tree.rglob("*.jpg"))
    assert [records[number] for number in range(21)] == [
        (number // 7, file.read_bytes()) for number, file in enumerate(files)]
    assert packed[".names.txt"].decode().split() == [
        file.relative_to(tree).as_posix() for file in files]
    assert packed[".classes.txt"] == b"ant\nbee\ncat\n"


def test_checksums_are_sha256sums(packed):
    sums = dict(reversed(line.split()) for line in packed[".sha256"].decode().splitlines())
    assert sums == {name: hashlib.sha256(packed[Path(name).suffix]).hexdigest()
                    for name in ("a.rec", "a.idx")}


def test_class_names_of_former_records_do_not_stay(tree, tmp_path):
    rec = tmp_path / "a.rec"
    pack_folder(tree, rec)
    rec.unlink()
    pack([Item(0, 0, "bee/1.jpg")], tree, rec)
    assert not rec.with_suffix(".classes.txt").exists()


def test_mxnet_reads_the_result(tree, tmp_path):
    pack_folder(tree, tmp_path / "a.rec")
    reader = recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "r")
    for number, file in enumerate(sorted(tree.rglob("*.jpg"))):
        header, data = recordio.unpack(reader.read_idx(number))
        assert (header.label, header.id, data) == (number // 7, number, file.read_bytes())


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_number_of_processes_makes_no_difference(tree, packed, tmp_path, processes, monkeypatch):
    monkeypatch.setattr(packing, "_CHUNK", 2)
    pack_folder(tree, tmp_path / "a.rec", processes=processes)
    assert files_of(tmp_path / "a.rec") == packed


def test_a_run_cut_anywhere_continues_to_the_same_file(tree, packed, tmp_path):
    """The partial file of an interrupted run may end at any byte."""
    rec = tmp_path / "a.rec"
    whole = packed[".rec"]
    for size in random.Random(0).sample(range(len(whole) + 1), 25) + [0, len(whole)]:
        for file in tmp_path.iterdir():
            file.unlink()
        rec.with_suffix(".pack.json").write_bytes(packed[".pack.json"])
        Path(f"{rec}.partial").write_bytes(whole[:size])
        pack_folder(tree, rec)
        assert files_of(rec) == packed
        assert not list(tmp_path.glob("*.partial"))


def test_a_killed_run_continues_to_the_same_file(tmp_path):
    root = write_tree(tmp_path / "pictures", each=120)
    assert run(root, tmp_path / "whole.rec", "--processes", 1, "--resize-short", 9).returncode == 0
    rec, moments = tmp_path / "a.rec", random.Random(1)
    command = [*TOOL, str(root), str(rec), "--processes", "2", "--resize-short", "9"]
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        partial = Path(f"{rec}.partial")
        start = partial.stat().st_size if partial.exists() else 0
        more = moments.randrange(20000)
        while process.poll() is None and not (
                partial.exists() and partial.stat().st_size > start + more):
            time.sleep(0.005)
        kills += process.poll() is None
        process.kill()
        process.wait()
    done = run(root, rec, "--processes", 2, "--resize-short", 9)
    assert done.returncode == 0 and kills
    for suffix in (".rec", ".idx", ".names.txt", ".classes.txt", ".pack.json"):
        assert rec.with_suffix(suffix).read_bytes() == (
            tmp_path / "whole.rec").with_suffix(suffix).read_bytes()


def test_ctrl_c_is_a_sentence_and_the_run_can_continue(tmp_path):
    root = write_tree(tmp_path / "pictures", each=1000)
    command = [*TOOL, str(root), str(tmp_path / "a.rec"), "--processes", "2", "--reencode"]
    # What a shell starts in the background ignores SIGINT, and so would this.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               universal_newlines=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    partial = tmp_path / "a.rec.partial"
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.endswith("stopped; the same command continues where this one ended\n")
    assert "Traceback" not in errors
    assert run(*command[2:]).returncode == 0


def test_packing_again_does_nothing(tree, tmp_path):
    rec = tmp_path / "a.rec"
    pack_folder(tree, rec)
    before = rec.stat()
    assert pack_folder(tree, rec) == (21, 21, ())
    assert (rec.stat().st_mtime_ns, rec.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("finished", [True, False])
def test_other_options_do_not_touch_what_is_there(tree, packed, tmp_path, finished):
    rec = tmp_path / "a.rec"
    pack_folder(tree, rec)
    if not finished:
        rec.rename(f"{rec}.partial")
    with pytest.raises(UserError, match="is there already, made from other images or options"):
        pack_folder(tree, rec, PackOptions(quality=50))
    if not finished:
        Path(f"{rec}.partial").rename(rec)
    assert files_of(rec) == packed


def test_shuffling_is_a_permutation_that_the_seed_chooses(tree, packed, tmp_path):
    names = []
    for number, seed in enumerate((0, 0, 1)):
        rec = tmp_path / f"{number}.rec"
        pack_folder(tree, rec, PackOptions(shuffle=True, seed=seed))
        names.append(rec.with_suffix(".names.txt").read_text().split())
        records = RecordFile(rec)
        for position, name in enumerate(names[-1]):
            assert records[position][1] == (tree / name).read_bytes()
    assert names[0] == names[1] != names[2]
    assert sorted(names[0]) == sorted(names[2]) == packed[".names.txt"].decode().split()


@pytest.mark.parametrize("kind, mode, kept", [("JPEG", "RGB", True), ("JPEG", "L", True),
                                              ("JPEG", "CMYK", False), ("PNG", "RGB", False)])
def test_jpegs_pass_and_others_become_jpegs(tmp_path, kind, mode, kept):
    data = photo(0, kind=kind, mode=mode)
    (tmp_path / "a.jpg").write_bytes(data)
    stored = encode(tmp_path / "a.jpg", PackOptions())
    assert (stored == data) == kept
    with Image.open(io.BytesIO(stored)) as image:
        assert image.format == "JPEG" and image.size == (18, 12)
        assert image.mode == (mode if kept else "RGB")


def test_quality_decides_the_size_of_what_is_encoded(tmp_path):
    (tmp_path / "a.jpg").write_bytes(photo(0, 64, 64))
    sizes = [len(encode(tmp_path / "a.jpg", PackOptions(quality=quality, reencode=True)))
             for quality in (30, 60, 90)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("height, width, short, expected", [
    (40, 60, 20, (20, 30)), (60, 40, 20, (30, 20)), (20, 60, 20, (20, 60)), (10, 60, 20, (10, 60))])
def test_the_shorter_side_shrinks_and_never_grows(tmp_path, height, width, short, expected):
    (tmp_path / "a.jpg").write_bytes(photo(0, height, width))
    with Image.open(io.BytesIO(encode(tmp_path / "a.jpg", PackOptions(short)))) as image:
        assert (image.height, image.width) == expected


def test_an_im2rec_list_is_packed_with_its_own_indices(tree, tmp_path):
    listing = tmp_path / "some.lst"
    listing.write_text("12\t2.000000\tcat/0.jpg\n4\t0\tant/3.jpg\n7\t1\t5.5\t2\tbee/1.jpg\n")
    items = list_items(listing)
    assert items == [Item(2, 12, "cat/0.jpg"), Item(0, 4, "ant/3.jpg"),
                     Item([1, 5.5, 2], 7, "bee/1.jpg")]
    pack(items, tree, tmp_path / "a.rec")
    reader = recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "r")
    assert reader.keys == [12, 4, 7]
    for item in items:
        header, data = recordio.unpack(reader.read_idx(item.key))
        np.testing.assert_array_equal(header.label, item.label)
        assert data == (tree / item.file).read_bytes()


def test_a_list_may_have_a_byte_order_mark_and_other_ends_of_lines(tmp_path):
    (tmp_path / "some.lst").write_bytes("\ufeff4\t0\tant/a\u2028.jpg\r\n".encode())
    assert list_items(tmp_path / "some.lst") == [Item(0, 4, "ant/a\u2028.jpg")]


@pytest.mark.parametrize("text, message", [
    ("", "is empty"),
    ("0\t1\ta.jpg\n1 1 b.jpg\n", "line 2 of .* should be an index, a tab"),
    ("0\ta.jpg\n", "line 1 of"),
    ("x\t1\ta.jpg\n", "line 1 of"),
    ("0\tcat\ta.jpg\n", "line 1 of"),
    ("0\tnan\ta.jpg\n", "line 1 of"),
    ("0\t16777216\ta.jpg\n1\t16777217\tb.jpg\n", "line 2 of .* has a label beyond 16777216"),
    ("0\t1e39\ta.jpg\n", "line 1 of .* has a label beyond"),
    ("-1\t0\ta.jpg\n", "line 1 of"),
    ("0\t1\t\n", "line 1 of"),
    ("0\t1\ta.jpg\n1\t1\tb.jpg\n0\t1\tc.jpg\n", "lines 1 and 3 of .* the same index 0"),
])
def test_bad_lists_are_refused(tmp_path, text, message):
    (tmp_path / "bad.lst").write_text(text)
    with pytest.raises(UserError, match=message):
        list_items(tmp_path / "bad.lst")


def broken_tree(root):
    write_tree(root, each=3)
    whole = (root / "bee/1.jpg").read_bytes()
    (root / "bee/1.jpg").write_bytes(whole[:-30])
    (root / "cat/0.jpg").write_bytes(b"")
    return root


@pytest.mark.parametrize("processes", [1, 2])
def test_a_broken_image_stops_packing_with_its_name(tmp_path, processes):
    root = broken_tree(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"bee/1.jpg: damaged image: .*--skip-broken"):
        pack_folder(root, tmp_path / "a.rec", processes=processes)
    assert not (tmp_path / "a.rec").exists()
    (root / "bee/1.jpg").write_bytes(photo(1))
    (root / "cat/0.jpg").write_bytes(photo(2))
    assert pack_folder(root, tmp_path / "a.rec") == (9, 4, ())


@pytest.mark.parametrize("processes", [1, 2])
def test_broken_images_are_left_out_on_demand(tmp_path, processes):
    root = broken_tree(tmp_path / "pictures")
    summary = pack_folder(root, tmp_path / "a.rec", skip_broken=True, processes=processes)
    assert summary == (7, 0, ("bee/1.jpg", "cat/0.jpg"))
    names = (tmp_path / "a.names.txt").read_text().split()
    assert names == ["ant/0.jpg", "ant/1.jpg", "ant/2.jpg", "bee/0.jpg", "bee/2.jpg", "cat/1.jpg",
                     "cat/2.jpg"]
    assert [RecordFile(tmp_path / "a.rec")[number][0] for number in range(7)] == [0] * 3 + [
        1] * 2 + [2] * 2


@pytest.mark.parametrize("make, message", [
    (lambda: PackOptions(resize_short=0), "at least 1 px, got 0"),
    (lambda: PackOptions(quality=101), "from 1 to 100, got 101"),
    (lambda: pack([Item(0, 0, "a")], ".", "a.record"), "ends in .rec, got a.record"),
    (lambda: pack([Item(0, 0, "a")], ".", "/nowhere/a.rec"), "cannot be written .No such file"),
    (lambda: pack([Item(0, 0, "a")], ".", "a.rec", processes=0), "at least 1 process, got 0"),
])
def test_arguments_that_do_not_serve_are_refused(make, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("file, before", [("0.jpg", 0), ("1.jpg", 1)])
def test_what_stopped_at_a_broken_image_continues_without_it(tmp_path, file, before):
    tree = write_tree(tmp_path / "pictures", classes=("ant",), each=3)
    (tree / "ant" / file).write_bytes(b"no image")
    with pytest.raises(UserError, match="leave such images out with --skip-broken"):
        pack_folder(tree, tmp_path / "a.rec")
    assert pack_folder(tree, tmp_path / "a.rec", skip_broken=True) == (2, before, (f"ant/{file}",))


def test_a_file_with_images_left_out_is_not_one_of_all_images(tmp_path):
    tree = write_tree(tmp_path / "pictures", classes=("ant",), each=2)
    (tree / "ant/0.jpg").write_bytes(b"no image")
    pack_folder(tree, tmp_path / "a.rec", skip_broken=True)
    with pytest.raises(UserError, match="made from other images or options"):
        pack_folder(tree, tmp_path / "a.rec")


@pytest.mark.parametrize("size", [(66000, 2), (2, 66000)])
def test_a_picture_that_no_jpeg_holds_is_named_and_can_be_left_out(tmp_path, size):
    tree = write_tree(tmp_path / "pictures", classes=("ant",), each=1)
    Image.new("L", size).save(tree / "ant/long.png")
    with pytest.raises(UserError, match=f"ant/long.png of {size[0]} x {size[1]} pixels cannot be "
                                        "stored as a JPEG.*--skip-broken"):
        pack_folder(tree, tmp_path / "a.rec")
    assert pack_folder(tree, tmp_path / "a.rec", skip_broken=True).skipped == ("ant/long.png",)


def test_a_camera_s_jpeg_with_a_second_picture_keeps_its_bytes(tmp_path):
    first, second = (Image.open(io.BytesIO(photo(number))) for number in (0, 1))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    data = (tmp_path / "a.jpg").read_bytes()
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    assert encode(tmp_path / "a.jpg", PackOptions()) == data
    assert images.kind(data) == ("JPEG", "RGB")
    np.testing.assert_array_equal(images.Picture(data), images.decode(data))
    read_by_mxnet = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(read_by_mxnet, images.decode(data))


def test_names_that_are_no_utf8_are_refused(tmp_path):
    file = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / file).write_bytes(photo(0))
    with pytest.raises(UserError, match=r"the name of 'caf\\udce9.jpg' is no UTF-8"):
        pack([Item(0, 0, file)], tmp_path, tmp_path / "a.rec")
    assert not list(tmp_path.glob("a.*"))


def test_nothing_readable_packs_nothing(tmp_path):
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        pack([Item(0, 0, "missing.jpg")], tmp_path, tmp_path / "a.rec", skip_broken=True)
    assert not (tmp_path / "a.rec").exists()


def kill_self(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_in_order_is_map():
    assert list(in_order(abs, range(-50, 50), 2)) == list(map(abs, range(-50, 50)))


def test_a_killed_process_is_a_sentence():
    with pytest.raises(UserError, match="one of the processes was killed"):
        list(in_order(kill_self, range(4), 2))


def test_the_command_packs_checks_and_explains_itself(tree, tmp_path):
    rec = tmp_path / "a.rec"
    done = run(tree, rec, "--processes", 1)
    assert done.returncode == 0 and "21 images" in done.stdout
    done = run("--check", rec, "--processes", 1)
    assert done.returncode == 0 and done.stdout.endswith("all is well\n")
    assert "labels 0 to 2" in done.stdout and "21 images are JPEG RGB" in done.stdout
    assert json.loads((tmp_path / "a.pack.json").read_text())["images"] == 21
    done = run("--help")
    assert done.returncode == 0 and "im2rec" in done.stdout


@pytest.mark.parametrize("damage, message", [
    (lambda rec: os.truncate(rec, rec.stat().st_size - 4), "does not fit"),
    (lambda rec: rec.with_suffix(".idx").write_text("0\t0\n"), "does not fit"),
    (lambda rec: rec.unlink(), "there is no record file"),
    (lambda rec: rec.with_suffix(".sha256").write_text("0" * 64 + "  a.rec\n"), "has 1 problems"),
])
def test_the_command_refuses_damaged_files(tree, tmp_path, damage, message):
    rec = tmp_path / "a.rec"
    pack_folder(tree, rec)
    damage(rec)
    done = run("--check", rec, "--processes", 1)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments, message", [
    ([], "give what to pack and the file to be"),
    (["nowhere", "a.rec"], "the list nowhere cannot be read"),
    ([".", "a.rec"], "contains no folders"),
    ([".", "a.rec", "--root", "nowhere"], "--root belongs to a list, but . is a folder; leave it"),
])
def test_the_command_refuses_what_it_cannot_pack(tmp_path, arguments, message):
    done = run(*arguments, cwd=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr


def test_real_photographs_are_packed_and_checked(data_root, tmp_path):
    rec = tmp_path / "a.rec"
    assert pack_folder(data_root / "imagenet_sample", rec).count == 250
    report = check(rec)
    assert report.labels == (0, 249) and not report.problems and len(report.greyscale) == 4

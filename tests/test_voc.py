from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gluon_resnest.config import DetectionRecipe
from gluon_resnest.data.detection import DetectionDataset
from gluon_resnest.data.detection_transforms import EvalTransform
from gluon_resnest.data.instances import ground_truth
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.voc import CLASSES, read_voc
from gluon_resnest.errors import UserError
from gluon_resnest.tasks.detection_data import DetectionData

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin>
<ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def entry(*corners, name="dog", difficult=0):
    return OBJECT.format(*corners, name=name, difficult=difficult)


@pytest.fixture
def write(tmp_path):
    """Writes a folder in VOC's layout with {picture name: XML of its objects}; returns it."""
    def write(pictures, listed=None):
        for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, objects in pictures.items():
            Image.new("RGB", (30, 20)).save(tmp_path / f"JPEGImages/{name}.jpg")
            (tmp_path / f"Annotations/{name}.xml").write_text(
                "<annotation><size><width>30</width><height>20</height></size>"
                f"{objects}</annotation>")
        (tmp_path / "ImageSets/Main/train.txt").write_text(
            listed if listed is not None else "\n".join(pictures) + "\n")
        return tmp_path
    return write


def test_boxes_count_from_one_and_include_their_last_pixel(write):
    source = read_voc(write({"a": entry(1, 1, 30, 20) + entry(3, 4, 8, 9, name="cat"), "b": ""}),
                      "train")
    assert source.class_names == CLASSES and len(CLASSES) == 20 == source.category_ids[-1]
    assert len(source) == 2 and source.size(0) == (20, 30)
    objects = source.objects(0)
    assert objects.boxes.tolist() == [[0, 0, 30, 20], [2, 3, 8, 9]]
    assert objects.areas.tolist() == [600, 36] and objects.ids.tolist() == [1, 2]
    assert [CLASSES[kind] for kind in objects.classes] == ["dog", "cat"]
    assert source.read(0).shape == (20, 30, 3) and source.objects(1).boxes.shape == (0, 4)


def test_difficult_objects_are_neither_learnt_nor_counted(write):
    source = read_voc(write({"a": entry(1, 1, 9, 9, difficult=1), "b": entry(2, 2, 8, 8)}),
                      "train")
    assert source.objects(0).crowd.tolist() == [True]
    dataset = DetectionDataset(source, EvalTransform(20, 30), masks=False)
    assert len(dataset) == 1 and dataset.image_id(0) == 2
    assert [row["iscrowd"] for row in ground_truth(source)["annotations"]] == [1, 0]


def test_a_file_is_read_in_the_encoding_that_it_declares(write):
    root = write({"a": ""})
    (root / "Annotations/a.xml").write_bytes((
        '<?xml version="1.0" encoding="ISO-8859-1"?><annotation><filename>K\u00e4fer</filename>'
        "<size><width>30</width><height>20</height></size>" +
        entry(1, 1, 9, 9, name="K\u00e4fer", difficult="") + "</annotation>").encode("latin-1"))
    (root / "ImageSets/Main/train.txt").write_bytes("\ufeffa 1\r\n".encode())
    objects = read_voc(root, "train", ("K\u00e4fer",)).objects(0)
    assert objects.classes.tolist() == [0] and objects.crowd.tolist() == [False]


@pytest.mark.parametrize("encoding", ["UTF-8", "shift_jis", "none-such"])
def test_what_is_not_of_the_encoding_it_declares_is_refused(write, encoding):
    root = write({"a": ""})
    (root / "Annotations/a.xml").write_bytes(
        f'<?xml version="1.0" encoding="{encoding}"?><annotation>\xe4'.encode("latin-1"))
    with pytest.raises(UserError, match="a.xml is not an annotation of VOC"):
        read_voc(root, "train")


def test_one_s_own_classes(write):
    source = read_voc(write({"a": entry(1, 1, 9, 9, name="bolt")}), "train", ("nut", "bolt"))
    assert source.class_names == ("nut", "bolt") and source.objects(0).classes.tolist() == [1]


@pytest.mark.parametrize("content, message", [
    ("caf\u00e9\n".encode("latin-1"), "cannot read class names .*expected UTF-8"),
    (b"nut\nbolt\nnut\n", "'nut' names 2 classes"), (b"nut\n\nbolt\n", "line 2 of .* is empty")])
def test_names_of_classes_that_do_not_serve_are_refused(write, content, message):
    root = write({"a": entry(1, 1, 9, 9, name="nut")})
    (root / "classes.txt").write_bytes(content)
    data = DetectionData(DetectionRecipe(network="any", source="a test", classes=2),
                         SimpleNamespace(data=None, root=root), comm=None, masks=False)
    with pytest.raises(UserError, match=message):
        data.train()


def test_masks_cannot_be_learnt(write):
    source = read_voc(write({"a": entry(1, 1, 9, 9)}), "train")
    with pytest.raises(UserError, match="none of the 1 objects has a segmentation"):
        DetectionDataset(source, EvalTransform(20, 30))
    dataset = DetectionDataset(source, EvalTransform(20, 30), masks=False)
    assert dataset[0, random_for(0, 0, 0)].objects.boxes.tolist() == [[0, 0, 9, 9]]


@pytest.mark.parametrize("pictures, listed, message", [
    ({"a": entry(1, 1, 9, 9, name="dgo")}, None,
     "a.xml has an object of class 'dgo', which is not among the classes; did you mean 'dog'"),
    ({"a": entry(1, 1, 9, "x")}, None, "a.xml is not an annotation of VOC .*could not convert"),
    ({"a": "<object><name>dog</name></object>"}, None, "a.xml is not an annotation of VOC"),
    ({"a": entry("nan", 1, 9, 9)}, None, r"a.xml has a bndbox from \(nan, 1\) to \(9, 9\)"),
    ({"a": entry(1, 1, "1e300", 9)}, None, r"a.xml has a bndbox from \(1, 1\) to \(inf, 9\)"),
    ({"a": entry(1, 1, 9, 9) + entry(9, 4, 8, 5)}, None,
     r"a.xml has a bndbox from \(9, 4\) to \(8, 5\), expected .* xmin up to xmax"),
    ({"a": entry(9, 4, 10, 3)}, None, r"a.xml has a bndbox from \(9, 4\) to \(10, 3\)"),
    ({"a": "<object>"}, None, "a.xml is not an annotation of VOC .*mismatched tag"),
    ({"a": ""}, "a\na\n", "train.txt lists a more than once"),
    ({"a": ""}, "\n", "train.txt lists nothing"),
    ({"a": ""}, "a\nb\n", "b.xml cannot be read"),
])
def test_broken_folders_are_refused(write, pictures, listed, message):
    with pytest.raises(UserError, match=message):
        read_voc(write(pictures, listed), "train")


def test_a_picture_of_no_size_is_refused(write):
    root = write({"a": ""})
    file = root / "Annotations/a.xml"
    file.write_text(file.read_text().replace("<height>20<", "<height>0<"))
    with pytest.raises(UserError, match="a.xml is not an annotation of VOC .a size of 0 x 30"):
        read_voc(root, "train")


def test_a_box_of_one_pixel_is_a_box(write):
    source = read_voc(write({"a": entry(4, 5, 4, 5)}), "train")
    assert source.objects(0).boxes.tolist() == [[3, 4, 4, 5]]


def test_missing_splits_and_pictures_are_named(write):
    root = write({"a": entry(1, 1, 9, 9)})
    with pytest.raises(UserError, match="val.txt cannot be read"):
        read_voc(root, "val")
    source = read_voc(root, "train")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / "JPEGImages/a.jpg")
    with pytest.raises(UserError, match="a.jpg is 9 x 9 pixels .* annotations are for 20 x 30"):
        source.read(0)
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(UserError, match="a.jpg cannot be read"):
        source.read(0)
    with pytest.raises(UserError, match="train.txt lists 1 image that is not in .*JPEGImages, f"):
        read_voc(root, "train")

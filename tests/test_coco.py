import json

import numpy as np
import pytest
from PIL import Image

from gluon_resnest.data.coco import read_instances
from gluon_resnest.data.detection import DetectionDataset
from gluon_resnest.data.detection_transforms import EvalTransform
from gluon_resnest.data.instances import ground_truth
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.shapes import ShapeInstances
from gluon_resnest.errors import UserError

TRIANGLE = [[2, 2, 12, 2, 2, 12]]


def content(**changes):
    """Two images, the first with a cat and a crowd of dogs; category numbers have a gap."""
    runs = {"size": [20, 30], "counts": [0, 10, 590]}
    return {**{
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30},
                   {"id": 3, "file_name": "b.png", "height": 30, "width": 20}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 4, "bbox": [2, 2, 10, 10], "area": 50.5,
             "iscrowd": 0, "segmentation": TRIANGLE},
            {"id": 5, "image_id": 3, "category_id": 9, "bbox": [1, 1, 5, 6]},
            {"id": 2, "image_id": 7, "category_id": 9, "bbox": [0, 0, 1, 10], "area": 10,
             "iscrowd": 1, "segmentation": runs}]}, **changes}


def annotation(**changes):
    return {**content()["annotations"][0], **changes}


@pytest.fixture
def write(tmp_path):
    """Writes a json file with its two images; returns its path."""
    def write(value, name="own.json"):
        Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
        Image.new("RGB", (20, 30)).save(tmp_path / "b.png")
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
        return tmp_path / name
    return write


def read(file):
    return read_instances(file, file.parent)


def first(source, masks=True):
    dataset = DetectionDataset(source, EvalTransform(20, 30), masks, skip_empty=False)
    return dataset[0, random_for(0, 0, 0)]


def test_annotations_are_those_of_the_file(write):
    source = read(write(content()))
    assert source.class_names == ("cat", "dog") and source.category_ids.tolist() == [4, 9]
    assert len(source) == 2 and (source.image_id(0), source.size(0)) == (7, (20, 30))
    objects = source.objects(0)
    assert objects.ids.tolist() == [1, 2] and objects.classes.tolist() == [0, 1]
    assert objects.boxes.tolist() == [[2, 2, 12, 12], [0, 0, 1, 10]]
    assert objects.crowd.tolist() == [False, True] and objects.areas.tolist() == [50.5, 10]
    assert [polygon.tolist() for polygon in objects.segmentations[0]] == TRIANGLE
    other = source.objects(1)
    assert other.areas.tolist() == [30] and other.segmentations == [None]
    assert "b.png" in source.name(1) and "image 3" in source.name(1)


def test_an_image_info_file_has_images_without_objects(write):
    info = content()
    del info["annotations"]
    source = read(write(info))
    assert [len(source.objects(index).ids) for index in range(2)] == [0, 0]
    assert source.objects(0).boxes.shape == (0, 4)
    assert len(DetectionDataset(source, EvalTransform(), skip_empty=False)) == 2
    with pytest.raises(UserError, match="none of the 2 images has an object that can be learnt"):
        DetectionDataset(source, EvalTransform())


def test_images_without_objects_or_with_crowds_only_are_skipped(write):
    crowd = [annotation(iscrowd=1)]
    assert len(DetectionDataset(read(write(content())), EvalTransform())) == 2
    assert len(DetectionDataset(read(write(content(annotations=[annotation()]))),
                                EvalTransform())) == 1
    source = read(write(content(annotations=crowd)))
    with pytest.raises(UserError, match="none of the 2 images"):
        DetectionDataset(source, EvalTransform())
    kept = first(source)
    assert kept.objects.crowd.tolist() == [True]


def test_boxes_are_cut_off_and_those_of_no_area_dropped(write):
    rows = [annotation(id=1, bbox=[-5, -5, 10, 10]), annotation(id=2, bbox=[20, 10, 50, 50]),
            annotation(id=3, bbox=[5, 5, 0, 3]), annotation(id=4, bbox=[40, 3, 5, 5])]
    sample = first(read(write(content(annotations=rows))), masks=False)
    assert sample.objects.boxes.tolist() == [[0, 0, 5, 5], [20, 10, 30, 20]]
    assert sample.objects.masks is None


def test_polygons_of_fewer_than_three_points_are_no_mask(write):
    rows = [annotation(id=1, segmentation=[[1, 1, 5, 5]]),
            annotation(id=2, segmentation=[[1, 1, 5, 5, 2]] + TRIANGLE)]
    source = read(write(content(annotations=rows)))
    assert source.objects(0).segmentations[0] is None
    assert len(first(source).objects.boxes) == 1
    assert len(first(source, masks=False).objects.boxes) == 2


@pytest.mark.parametrize("changes, message", [
    ({"images": content()["images"] * 2}, r"own.json: image 3 is listed more than once"),
    ({"annotations": [annotation(), annotation()]}, "annotation 1 is listed more than once"),
    ({"annotations": [annotation(category_id=5)]},
     "own.json: annotation 1 belongs to category 5, which the file does not list"),
    ({"annotations": [annotation(image_id=8)]},
     "annotation 1 belongs to image 8, which the file does not list"),
    ({"annotations": [annotation(bbox=[1, 2, 3])]},
     r"annotation 1 has \[1, 2, 3\] where 4 finite numbers"),
    ({"annotations": [annotation(bbox=[1, 2, 3, float("nan")])]}, "where 4 finite numbers"),
    ({"annotations": [annotation(bbox=[1, 2, 3, "x"])]}, "where 4 finite numbers"),
    ({"annotations": [annotation(bbox=["2", "2", "10", "10"])]}, "where 4 finite numbers"),
    ({"annotations": [annotation(area="50")]}, "annotation 1 has '50' where 1 finite number"),
    ({"annotations": [annotation(iscrowd="0")]}, "annotation 1 has '0' as iscrowd, expected 0 or"),
    ({"images": [{"id": 1, "file_name": "a.png", "height": "20", "width": "30"}]},
     "image 1 has .'20', '30'. where 2 finite numbers"),
    ({"annotations": [annotation(area="big")]}, "annotation 1 has 'big' where 1 finite number"),
    ({"annotations": [annotation(segmentation=3)]}, "neither polygons nor run lengths"),
    ({"annotations": [annotation(segmentation=[[1, 2, 3, 4, 5, "x"]])]},
     "annotation 1 has a polygon with something that is no finite number"),
    ({"annotations": [annotation(segmentation=[[1, 2, 3, 4, 5, float("inf")]])]},
     "annotation 1 has a polygon with something that is no finite number"),
    ({"annotations": [annotation(segmentation=[[1, 2, 3, 4, 5, 10 ** 400]])]},
     "annotation 1 has a polygon with something that is no finite number"),
    ({"annotations": [annotation(segmentation=TRIANGLE + [[1, 2, 3, 4, 301, 6]])]},
     "annotation 1 has a polygon with a point more than 10 times as far away as its image is"),
    ({"annotations": [annotation(segmentation=[[1, 2, -1e300, 4, 5, 6]])]},
     "annotation 1 has a polygon with a point more than 10 times as far away as its image is"),
    ({"annotations": [annotation(id=2 ** 63)]}, "annotation 9223372036854775808 has an id that"),
    ({"annotations": [annotation(bbox=[1, 2, 3, 10 ** 400])]}, "where 4 finite numbers"),
    ({"annotations": [{"id": 1}]}, "an entry of annotations that lacks some of id, image_id"),
    ({"images": [{"id": 4, "file_name": 5, "height": 2, "width": 3}]},
     "image 4 has 5 where a name is expected"),
    ({"categories": [{"id": 4, "name": None}]}, "category 4 has None where a name is expected"),
    ({"categories": [{"id": 4, "name": " "}]}, "category 4 has the name ' ', which is empty"),
    ({"categories": [{"id": 4, "name": "a\nb"}]}, "category 4 has the name .*has a line break"),
    ({"annotations": [3]}, "an entry of annotations that lacks some of"),
    ({"annotations": [annotation(image_id=[7])]}, r"belongs to image \[7\], which"),
    ({"annotations": [annotation(bbox="1234")]}, "annotation 1 has '1234' where 4 finite"),
    ({"annotations": {}}, "no list of annotations"),
    ({"categories": None}, "no list of categories"),
    ({"images": [{"id": "x", "file_name": "a.png", "height": 2, "width": 3}]},
     "image 'x' has an id that is no whole number"),
    ({"images": [{"id": 1, "file_name": "a.png", "height": 0, "width": 3}]},
     "image 1 is of 0 x 3 pixels; give its height and width"),
    ({"images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 1e9}]},
     "image 1 is of 9 x 1000000000.0 pixels"),
    ({"images": [{"id": 4, "file_name": "gone.png", "height": 2, "width": 3}]},
     r"own.json lists 1 image that is not in .*, first gone.png \(image 4\)"),
])
def test_entries_that_make_no_sense_are_refused(write, changes, message):
    with pytest.raises(UserError, match=message):
        read(write(content(**changes)))


def test_a_truncated_file_is_refused(write):
    with pytest.raises(UserError, match="own.json is not a json file"):
        read(write(json.dumps(content())[:-20]))
    with pytest.raises(UserError, match="no list of categories"):
        read(write("[1]"))


def test_a_folder_or_file_that_is_missing_is_named(write, tmp_path):
    file = write(content())
    with pytest.raises(UserError, match="nowhere cannot be read as the folder of the images"):
        read_instances(file, tmp_path / "nowhere")
    source = read(file)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="a.png cannot be read"):
        source.read(0)


def test_images_of_another_size_than_annotated_are_refused(write, tmp_path):
    source = read(write(content()))
    Image.new("RGB", (30, 21)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png \(image 7 of .*own.json\) is 21 x 30 pixels"):
        source.read(0)


@pytest.mark.parametrize("runs, message", [
    ({"size": [20, 30], "counts": [0, 10, 5]}, "run lengths of 15 pixels"),
    ({"size": [30, 20], "counts": [0, 600]}, "run lengths of 600 pixels and size 30 x 20 for"),
    ({"size": [20, 30], "counts": [700, -100]}, "run lengths of 600 pixels"),
    ({"size": [20, 30], "counts": [2 ** 62] * 3 + [2 ** 62 + 600]}, "run lengths of 18446744073"),
    ({"size": [20, 30], "counts": [2 ** 70]}, "no run lengths of COCO .OverflowError"),
    ({"size": [20, 30], "counts": [[300, 300]]}, "no run lengths of COCO .*lists among"),
    ({"size": [20, float("inf")], "counts": [600]}, "no run lengths of COCO .OverflowError"),
    ({"size": [20, 30], "counts": "o" * 40 + "0"}, "no run lengths of COCO .*of 41 letters"),
    ({"size": [20, 30], "counts": "0" * 4300}, "no run lengths of COCO .*more than a run for"),
    ({"size": [20, 30], "counts": "what?~"}, "no run lengths of COCO"),
    ({"size": [20, 30], "counts": "PPP"}, "no run lengths of COCO"),
    ({"size": [20, 30]}, "no run lengths of COCO"),
    ({"size": 20, "counts": [600]}, "no run lengths of COCO"),
])
def test_broken_run_lengths_are_refused_where_they_are_used(write, runs, message):
    source = read(write(content(annotations=[annotation(segmentation=runs)])))
    with pytest.raises(UserError, match=f"a.png .image 7 .*: annotation 1 has .*: {message}"):
        first(source)
    assert len(first(source, masks=False).objects.boxes) == 1


def test_points_somewhat_outside_an_image_are_cut_off_with_their_polygon(write):
    outside = annotation(segmentation=[[-30, -20, 60, -20, 60, 6, -30, 6]], bbox=[0, 0, 30, 6])
    masks = first(read(write(content(annotations=[outside])))).objects.masks.dense()
    assert masks[0, :6].all() and not masks[0, 6:].any()


def test_an_outline_that_would_fill_the_memory_is_refused(write):
    there_and_back = [0, 0, 300, 0] * 20000
    source = read(write(content(annotations=[annotation(segmentation=[there_and_back])])))
    with pytest.raises(UserError, match="annotation 1 has .*: a polygon of more than"):
        first(source)


def test_ground_truth_of_a_source_reads_back_as_the_source(write, tmp_path):
    from pycocotools import mask
    drawn = ShapeInstances(4, (20, 30), 3, seed=1)
    truth = ground_truth(drawn)
    for picture in truth["images"]:
        Image.new("RGB", (picture["width"], picture["height"])).save(
            tmp_path / picture["file_name"], format="png")
    source = read(write(json.loads(json.dumps(truth))))
    assert source.class_names == drawn.class_names
    for index in range(len(drawn)):
        mine, theirs = drawn.objects(index), source.objects(index)
        for field in ("ids", "boxes", "classes", "crowd", "areas"):
            assert getattr(mine, field).tolist() == getattr(theirs, field).tolist()
        for pixels, runs in zip(mine.segmentations, theirs.segmentations):
            np.testing.assert_array_equal(mask.decode(runs), pixels)


@pytest.mark.realdata
def test_all_annotations_of_real_files_are_read_as_pycocotools_reads_them(data_root):
    from pycocotools.coco import COCO
    for split in ("train2017", "val2017"):
        file = data_root / f"tiny_coco/annotations/instances_{split}.json"
        source = read_instances(file, data_root / "tiny_coco" / split)
        theirs = COCO(str(file))
        assert len(source) == 50 and len(source.class_names) == 80
        assert source.category_ids.tolist() == sorted(theirs.cats)
        for index in range(len(source)):
            mine = source.objects(index)
            rows = theirs.imgToAnns[source.image_id(index)]
            assert mine.ids.tolist() == [row["id"] for row in rows]
            assert mine.crowd.tolist() == [bool(row["iscrowd"]) for row in rows]
            assert [source.category_ids[kind] for kind in mine.classes] == [
                row["category_id"] for row in rows]
            np.testing.assert_allclose(
                mine.boxes, [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
                if rows else np.zeros((0, 4)), atol=1e-4)

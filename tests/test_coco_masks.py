"""Label maps drawn from COCO's instance annotations."""
import json

import numpy as np
import pytest
from test_segmentation_data import photo, save

from gluon_resnest.data.label_maps import IGNORED
from gluon_resnest.data.segmentation_layouts import open_segmentation
from gluon_resnest.errors import UserError


@pytest.fixture
def coco_things(tmp_path):
    """Writes a picture of three things in COCO's layout; yields the content of its json."""
    save(tmp_path / "val2017/7.jpg", photo(0, 20, 30))

    def thing(number, kind, box, crowd=0):
        left, top, width, height = box
        corners = [left, top, left + width, top, left + width, top + height, left, top + height]
        counts = {"counts": [0, 20, 580], "size": [20, 30]}
        return {"id": number, "image_id": 7, "category_id": kind, "iscrowd": crowd,
                "segmentation": counts if crowd else [corners], "area": width * height,
                "bbox": list(box)}

    annotations = {"images": [{"id": 7, "file_name": "7.jpg", "height": 20, "width": 30}],
                   "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
                   "annotations": [thing(1, 9, (10, 5, 4, 4)), thing(2, 4, (8, 3, 10, 10)),
                                   thing(3, 4, (0, 0, 1, 20), crowd=1)]}
    return annotations


def open_coco(folder, annotations):
    pytest.importorskip("pycocotools")
    (folder / "annotations").mkdir(parents=True)
    if not (folder / "val2017").exists():
        (folder / "val2017").symlink_to(folder.parent / "val2017")
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(annotations))
    return open_segmentation("coco", folder, "val", classes=3)


def test_coco_things_lie_on_the_ground_smaller_ones_on_top(tmp_path, coco_things):
    dataset = open_coco(tmp_path, coco_things)
    _, labels = dataset.read(0)
    assert dataset.class_names == ["background", "dog", "cat"]
    assert labels[0, 29] == 0 and labels[7, 12] == 2 and labels[4, 16] == 1
    assert (labels[:, 0] == IGNORED).all()


@pytest.mark.parametrize("segmentation", [
    [[0, 0, 5, 5]], [], None,
    {"size": [20, 30], "counts": [0, 20]}, {"size": [10 ** 6, 10 ** 6], "counts": [10 ** 12]},
    {"size": [20, 30], "counts": "oooo"}])
def test_broken_masks_of_coco_things_are_refused(tmp_path, coco_things, segmentation):
    coco_things["annotations"][1]["segmentation"] = segmentation
    with pytest.raises(UserError, match="7.jpg: annotation 2 has a broken mask: .*; mend or rem"):
        open_coco(tmp_path, coco_things).read(0)


def test_coco_things_may_lack_their_area_and_have_lines(tmp_path, coco_things):
    expected = open_coco(tmp_path / "whole", coco_things).read(0)[1]
    for thing in coco_things["annotations"]:
        del thing["area"]
    coco_things["annotations"][0]["segmentation"].insert(0, [1, 1, 25, 1])
    np.testing.assert_array_equal(open_coco(tmp_path / "odd", coco_things).read(0)[1], expected)


@pytest.mark.parametrize("change, message", [
    ({"category_id": 5}, "annotation 2 belongs to category 5, which the file does not list"),
    ({"id": 1}, "annotation 1 is listed more than once"),
    ({"segmentation": [[0, 0, 1e9, 0, 5, 5]]}, "annotation 2 has a polygon with a point more than"),
])
def test_coco_things_that_make_no_sense_are_refused(tmp_path, coco_things, change, message):
    coco_things["annotations"][1].update(change)
    with pytest.raises(UserError, match=message):
        open_coco(tmp_path, coco_things)


def test_opening_coco_things_prints_nothing_and_images_are_in_the_order_of_their_ids(
        tmp_path, coco_things, capsys):
    coco_things["images"].append({"id": 2, "file_name": "2.jpg", "height": 9, "width": 8})
    save(tmp_path / "val2017/2.jpg", photo(1, 9, 8))
    dataset = open_coco(tmp_path, coco_things)
    assert [dataset.name(index)[-5:] for index in range(2)] == ["2.jpg", "7.jpg"]
    assert not dataset.read(0)[1].any() and dataset.read(1)[1].any()
    assert capsys.readouterr() == ("", "")


def test_images_that_are_missing_are_told_at_the_opening(tmp_path, coco_things):
    (tmp_path / "val2017/7.jpg").unlink()
    with pytest.raises(UserError, match="lists 1 image that is not in .*val2017, first 7.jpg"):
        open_coco(tmp_path, coco_things)


def test_things_of_an_image_of_another_size_are_refused(tmp_path, coco_things):
    coco_things["images"][0]["height"] = 40
    dataset = open_coco(tmp_path / "larger", coco_things)
    with pytest.raises(UserError, match="7.jpg is 20 x 30 pixels .* are for 40 x 30"):
        dataset.read(0)
    coco_things["images"][0]["height"] = 10 ** 9
    with pytest.raises(UserError, match="image 7 is of 1000000000 x 30 pixels; give its height"):
        open_coco(tmp_path / "huge", coco_things)

"""COCO's panoptic files bit for bit, contradictions in one sentence; labels of pixels; drawings."""
import json
import pickle
import shutil

import cv2
import numpy as np
import pytest

from gluon_resnest.data.coco_panoptic import THING, labels_of, read_coco_panoptic
from gluon_resnest.data.detection import IGNORED, DetectionDataset, DetectionLoader, pack, unpack
from gluon_resnest.data.detection_transforms import TrainTransform
from gluon_resnest.data.landscapes import STUFF, ShapeLandscapes, draw_ground
from gluon_resnest.data.panoptic import (
    VOID, PanopticFiles, colors_of, described, ids_of, png, read_panoptic, write_panoptic)
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.shapes import SLIVER
from gluon_resnest.errors import UserError

IDS = np.array([[0, 7, 7], [300, 7, 70000]])
CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 4, "name": "sky", "isthing": 0}]


# ---- the format ---------------------------------------------------------------------------------

@pytest.mark.parametrize("number, color", [
    (0, (0, 0, 0)), (255, (255, 0, 0)), (256, (0, 1, 0)), (65536, (0, 0, 1)),
    (256 ** 3 - 1, (255, 255, 255)), (3937500, (220, 20, 60))])
def test_an_id_is_a_color(number, color):
    assert tuple(colors_of(np.array([[number]]))[0, 0]) == color
    assert ids_of(np.array([[color]], np.uint8))[0, 0] == number


def test_decoding_inverts_encoding():
    ids = np.random.randint(0, 256 ** 3, (5, 7))
    np.testing.assert_array_equal(ids_of(colors_of(ids)), ids)
    pixels = cv2.imdecode(np.frombuffer(png(ids), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(ids_of(pixels), ids)


def test_segments_are_described_as_in_coco():
    assert described(IDS, {7: 1, 300: 4, 70000: 4, 5: 4}, crowd={300}).segments == [
        {"id": 7, "category_id": 1, "iscrowd": 0, "bbox": [1, 0, 2, 2], "area": 3},
        {"id": 300, "category_id": 4, "iscrowd": 1, "bbox": [0, 1, 1, 1], "area": 1},
        {"id": 70000, "category_id": 4, "iscrowd": 0, "bbox": [2, 1, 1, 1], "area": 1}]


def test_the_official_sample_goes_through_reader_and_writer_bit_for_bit(data_root, tmp_path):
    sample = data_root / "coco_panoptic_sample/sample_data/panoptic_examples.json"
    files = read_panoptic(sample)
    known, content = files.categories(), json.loads(sample.read_text())
    names = {row["image_id"]: row["file_name"] for row in content["annotations"]}
    found = {image_id: files.read(image_id, known) for image_id in files.image_ids}
    write_panoptic(tmp_path / "copy.json", content,
                   [(names[image_id], png(each.ids)) for image_id, each in found.items()])
    copied = read_panoptic(tmp_path / "copy.json")
    assert len(copied) == 2 and json.loads((tmp_path / "copy.json").read_text()) == content
    for image_id, name in names.items():
        pixels = [cv2.imread(str(folder / name)) for folder in
                  (sample.with_suffix(""), tmp_path / "copy")]
        np.testing.assert_array_equal(*pixels)
        again = copied.read(image_id, known)
        np.testing.assert_array_equal(again.ids, found[image_id].ids)
        assert again.segments == found[image_id].segments


def test_what_is_described_of_the_official_sample_is_what_its_json_says(data_root):
    files = read_panoptic(data_root / "coco_panoptic_sample/sample_data/panoptic_examples.json")
    for image_id in files.image_ids:
        found = files.read(image_id, files.categories())
        again = described(found.ids, {row["id"]: row["category_id"] for row in found.segments},
                          {row["id"] for row in found.segments if row["iscrowd"]})
        assert again.segments == found.segments


# ---- contradictions -----------------------------------------------------------------------------

def content():
    return {"categories": CATEGORIES, "images": [{"id": 3, "height": 2, "width": 3}],
            "annotations": [{"image_id": 3, "file_name": "3.png", "segments_info": described(
                IDS, {7: 1, 300: 4, 70000: 4}).segments}]}


def written(folder, change=lambda rows: None, ids=IDS):
    """Writes one image whose json `change` has changed; returns the files."""
    values = content()
    change(values)
    write_panoptic(folder / "a.json", values, [("3.png", png(ids))])
    return read_panoptic(folder / "a.json")


def segments(change):
    return lambda values: change(values["annotations"][0]["segments_info"])


def test_files_that_agree_are_read(tmp_path):
    files = written(tmp_path)
    found = files.read(3, files.categories())
    np.testing.assert_array_equal(found.ids, IDS)
    assert found.segments == content()["annotations"][0]["segments_info"] and 3 in files


def test_loader_processes_get_less_than_the_json_says():
    json_of_many = {"annotations": [
        {"image_id": image, "file_name": f"{image}.png", "segments_info": [
            {"id": 37 * image * number, "category_id": number, "area": 777 * number + image,
             "bbox": [number, image, 30 + number, 40 + image], "iscrowd": 0}
            for number in range(1, 12)]} for image in range(1, 101)]}
    files = PanopticFiles(json_of_many, "folder", "a.json")
    assert len(pickle.dumps(files)) < 0.7 * len(pickle.dumps(json_of_many))


@pytest.mark.parametrize("change, sentence", [
    (segments(lambda rows: rows.pop(0)), "3.png .image 3. has pixels of segment 7, which .*a.json "
     "does not list"),
    (segments(lambda rows: rows.append({"id": 9, "category_id": 1})),
     "a.json lists segment 9, of which .*3.png .image 3. has no pixel"),
    (segments(lambda rows: rows[0].update(category_id=5)),
     "segment 7 of .*3.png .* has category 5, which is not among the 2 known"),
    (segments(lambda rows: rows[0].update(area=4)),
     "gives segment 7 an area of 4 pixels, but .*3.png .image 3. has 3"),
    (segments(lambda rows: rows.append(dict(rows[0]))), "lists segment 7 of .* more than once"),
    (segments(lambda rows: rows[0].pop("id")), "lacks its id or category_id"),
    (segments(lambda rows: rows[0].update(category_id=[1])), "lacks its id or category_id"),
    (lambda values: values["images"][0].update(height=9),
     "3.png .image 3. is 2 x 3 pixels .height x width., but .*a.json says 9 x 3"),
    (lambda values: values["annotations"][0].update(file_name="4.png"), "4.png cannot be read")],
    ids=["not listed", "no pixel", "category", "area", "twice", "no id", "list",
         "size", "missing"])
def test_a_contradiction_is_one_sentence(tmp_path, change, sentence):
    files = written(tmp_path, change)
    with pytest.raises(UserError, match=sentence) as caught:
        files.read(3, files.categories())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change, sentence", [
    (lambda values: values.pop("annotations"), "needs a list of annotations"),
    (lambda values: values["annotations"][0].pop("file_name"),
     "each with image_id .a whole number., file_name .a text., segments_info .a list."),
    (lambda values: values["annotations"][0].update(segments_info=5), "segments_info .a list."),
    (lambda values: values["annotations"][0].update(image_id=[3]), "image_id .a whole number."),
    (lambda values: values.update(images=5), "needs a list of images"),
    (lambda values: values.update(images=[{"id": {}}]), "needs a list of images"),
    (lambda values: values["annotations"].append(values["annotations"][0]), "more than once")])
def test_a_json_of_something_else_is_one_sentence(tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        written(tmp_path, change)


def test_a_json_without_its_folder_or_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    written(tmp_path)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UserError, match="needs the folder .*a of its PNGs"):
        read_panoptic(tmp_path / "a.json")
    (tmp_path / "b").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        write_panoptic(tmp_path / "b.json", content(), [])


# ---- labels of pixels ---------------------------------------------------------------------------

def test_things_are_zero_and_void_and_crowds_are_ignored():
    found = described(np.array([[0, 7, 8], [300, 9, 8]]), {7: 1, 8: 2, 300: 4, 9: 4}, crowd={8, 9})
    np.testing.assert_array_equal(labels_of(found, {4: 1}), [
        [IGNORED, THING, IGNORED], [1, IGNORED, IGNORED]])


def coco(data_root, folder, change=lambda instances: None):
    """Returns the official sample as a source: its segments of things are the instances."""
    sample = data_root / "coco_panoptic_sample/sample_data"
    content = json.loads((sample / "panoptic_examples.json").read_text())
    things = {row["id"]: row for row in content["categories"] if row["isthing"]}
    rows = [{**segment, "image_id": each["image_id"]} for each in content["annotations"]
            for segment in each["segments_info"] if segment["category_id"] in things]
    rows = [{**row, "id": number} for number, row in enumerate(rows)]   # unique in an image only
    instances = {"images": content["images"], "annotations": rows,
                 "categories": list(things.values())}
    change(instances)
    (folder / "instances.json").write_text(json.dumps(instances))
    return read_coco_panoptic(folder / "instances.json", sample / "input_images",
                              sample / "panoptic_examples.json")


def test_coco_has_80_things_and_53_kinds_of_stuff(data_root, tmp_path):
    from gluon_resnest.models.detection.build import COCO_CLASSES
    from gluon_resnest.models.detection.panoptic import COCO_STUFF
    source = coco(data_root, tmp_path)
    assert source.class_names == COCO_CLASSES and source.stuff_names == COCO_STUFF
    for index in range(2):
        labels, truth = source.labels(index), source.panoptic(index)
        assert labels.shape == source.size(index) and labels.dtype == np.uint8
        crowd = [row["id"] for row in truth.segments if row["iscrowd"]]
        np.testing.assert_array_equal(labels == IGNORED, np.isin(truth.ids, [VOID, *crowd]))
        for row in truth.segments:
            if row["iscrowd"]:
                continue
            place = np.flatnonzero(source.stuff_ids == row["category_id"])
            assert (labels[truth.ids == row["id"]] == (place[0] + 1 if len(place) else THING)).all()


def test_other_things_or_images_are_one_sentence(data_root, tmp_path):
    with pytest.raises(UserError, match="80 things with these or other numbers"):
        coco(data_root, tmp_path, lambda content: content["categories"].append(
            {"id": 500, "name": "unicorn"}))

    def add(content):
        image = dict(content["images"][0], id=5)
        content["images"].append(image)
    with pytest.raises(UserError, match="image 5 of .* has no panoptic annotation"):
        coco(data_root, tmp_path, add)


def test_labels_are_of_the_size_of_their_image(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "pan").mkdir()
    (tmp_path / "pan/a.png").write_bytes(png(np.full((2, 3), 1, np.int32)))
    cat = {"id": 1, "name": "cat", "isthing": 1}
    row = {"image_id": 5, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 1}]}
    for name, rows in (("instances", []), ("pan", [row])):
        (tmp_path / f"{name}.json").write_text(json.dumps({
            "categories": [cat], "annotations": rows, **({} if rows else {"images": [
                {"id": 5, "file_name": "a.png", "height": 4, "width": 6}]})}))
    source = read_coco_panoptic(tmp_path / "instances.json", tmp_path, tmp_path / "pan.json")
    with pytest.raises(UserError, match="is 2 x 3 pixels .* but .*a.png .image 5 .* 4 x 6"):
        source.labels(0)


# ---- drawings, and what training gets -----------------------------------------------------------

def test_every_pixel_of_a_landscape_belongs_to_one_segment():
    source, kinds = ShapeLandscapes(6, (48, 60)), set()
    for index in range(len(source)):
        truth, labels, objects = (source.panoptic(index), source.labels(index),
                                  source.objects(index))
        assert truth.ids.shape == source.size(index) == source.read(index).shape[:2]
        assert (truth.ids != VOID).all()
        assert sum(row["area"] for row in truth.segments) == truth.ids.size
        things = [row for row in truth.segments
                  if row["category_id"] in source.category_ids]
        assert [row["area"] for row in things] == objects.areas.tolist()
        assert [row["iscrowd"] for row in things] == (
            source.scene(index).shares < SLIVER).tolist()
        inside = np.any(np.stack(objects.segmentations), axis=0)
        np.testing.assert_array_equal((labels == THING) | (labels == IGNORED), inside)
        kinds |= set(np.unique(labels)) - {THING, IGNORED}
    assert kinds == {1, 2, 3} and source.stuff_names == STUFF


def test_splits_and_seeds_share_no_landscape_and_each_is_drawn_again():
    first = ShapeLandscapes(2, 40).read(0)
    np.testing.assert_array_equal(ShapeLandscapes(9, 40).read(0), first)
    for other in (ShapeLandscapes(2, 40, seed=1), ShapeLandscapes(2, 40, split="held-out")):
        assert (other.read(0) != first).any()


def test_sky_is_above_what_is_below_it():
    stuff, picture = draw_ground(random_for(0, 0, 0), 50, 70)
    assert picture.shape == (50, 70, 3) and (stuff[0] == 0).all() and (stuff[-1] > 0).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_move_with_their_image(workers):
    """Objects' masks and the labels THING or IGNORED stay the same pixels."""
    dataset = DetectionDataset(ShapeLandscapes(4, (48, 60)), TrainTransform((32, 40), max_px=64),
                               labels=True)
    with DetectionLoader(dataset, batch=2, rank=0, size=1, seed=3, workers=workers) as loader:
        for batch in [batch for batch, _ in zip(loader.batches(), range(3))]:
            assert batch.labels.shape == (2, *batch.images.shape[2:])
            for labels, (height, width), objects in zip(batch.labels, batch.sizes, batch.objects):
                assert (labels[height:] == IGNORED).all() and (labels[:, width:] == IGNORED).all()
                inside = objects.masks.dense().any(axis=0)
                own = labels[:height, :width]
                assert ((own == THING) | (own == IGNORED))[inside].all()
                assert ((own > 0) & (own < IGNORED))[~inside].all()


def test_samples_with_labels_survive_the_way_between_processes():
    dataset = DetectionDataset(ShapeLandscapes(1, (48, 60)), TrainTransform((32,), max_px=64),
                               labels=True)
    sample = dataset[0, random_for(0, 0, 0)]
    again = unpack(pack(sample, 1 << 16))
    np.testing.assert_array_equal(again.labels, sample.labels)
    np.testing.assert_array_equal(again.image, sample.image)
    assert unpack(pack(sample._replace(labels=None), 1 << 16)).labels is None

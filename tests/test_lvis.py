"""LVIS: its json as a source, its evaluation by the official package, a run through a recipe."""
import argparse
import copy
import json

import cv2
import numpy as np
import pytest

from gluon_resnest import cli
from gluon_resnest.config import DetectionRecipe
from gluon_resnest.data.instances import ground_truth
from gluon_resnest.data.lvis import exhaustive, read_lvis
from gluon_resnest.data.shapes import ShapeInstances
from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import MissingExtra, UserError
from gluon_resnest.recipes import mask_rcnn
from gluon_resnest.tasks import lvis_evaluation
from gluon_resnest.tasks.detection import Detection
from gluon_resnest.tasks.detection_data import DetectionData
from gluon_resnest.tasks.lvis_evaluation import lvis_ap

SIZE = (40, 60)
ANT, BEE, CAT, DOG = 3, 7, 8, 20        # dog is on no image


def square(left, top, side):
    return {"bbox": [left, top, side, side], "area": side * side, "segmentation": [
        [left, top, left + side, top, left + side, top + side, left, top + side]]}


def annotated():
    """Two images; ants are marked on both, bees and cats on one, some bees only."""
    objects = [(1, ANT, square(2, 2, 10)), (1, BEE, square(20, 5, 20)),
               (2, ANT, square(30, 10, 12)), (2, CAT, square(5, 5, 8))]
    return {
        "images": [{"id": number, "height": SIZE[0], "width": SIZE[1],
                    "coco_url": f"http://images.cocodataset.org/{split}2017/{number:012d}.jpg",
                    "neg_category_ids": negative, "not_exhaustive_category_ids": partly}
                   for number, split, negative, partly in (
                       (1, "train", [CAT], [BEE]), (2, "val", [], []))],
        "categories": [{"id": number, "name": name, "synset": f"{name}.n.01", "image_count": count,
                        "instance_count": 2 * count, "frequency": frequency}
                       for number, name, frequency, count in (
                           (BEE, "bee", "c", 50), (ANT, "ant", "f", 500), (CAT, "cat", "r", 5),
                           (DOG, "dog", "r", 2))],
        "annotations": [{"id": row + 1, "image_id": image, "category_id": kind, **shape}
                        for row, (image, kind, shape) in enumerate(objects)]}


def detection(image, kind, left, top, side, score, mask=False):
    shape = square(left, top, side)
    if not mask:
        return {"image_id": image, "category_id": kind, "bbox": shape["bbox"], "score": score}
    from pycocotools import mask as tools
    pixels = np.zeros(SIZE, np.uint8, order="F")
    pixels[top:top + side, left:left + side] = 1
    code = tools.encode(pixels)
    return {"image_id": image, "category_id": kind, "score": score,
            "segmentation": {"size": list(SIZE), "counts": code["counts"].decode()}}


PERFECT = [(1, ANT, 2, 2, 10, 0.9), (1, BEE, 20, 5, 20, 0.9), (2, ANT, 30, 10, 12, 0.8),
           (2, CAT, 5, 5, 8, 0.9)]
WRONG = (45, 25, 10, 0.95)              # a place where nothing is, better than all others


def results(rows, mask=False):
    return [detection(*row, mask) for row in rows]


# ---- evaluation ---------------------------------------------------------------------------------

def ap(rows, truth=None):
    return lvis_ap(truth or annotated(), results(rows), "bbox")[0]


def test_the_special_cases_by_hand():
    """One better detection that is wrong: precision 1/2 with one object, 2/3 with two."""
    assert ap(PERFECT) == pytest.approx({
        "ap": 100, "ap50": 100, "ap75": 100, "ap_small": 100, "ap_rare": 100, "ap_common": 100,
        "ap_frequent": 100, "ar300": 100, "ar_small": 100})
    negative = ap([*PERFECT, (1, CAT, *WRONG)])         # no cat is there: it is wrong
    assert negative["ap_rare"] == pytest.approx(50) and negative["ap_frequent"] == 100
    assert negative["ap"] == pytest.approx((50 + 100 + 100) / 3)
    assert ap([*PERFECT, (1, BEE, *WRONG)]) == ap(PERFECT)      # perhaps a bee nobody marked
    assert ap([*PERFECT, (2, BEE, *WRONG)]) == ap(PERFECT)      # nobody looked for bees there
    assert ap([*PERFECT, (1, DOG, *WRONG)]) == ap(PERFECT)      # nor for dogs anywhere
    positive = ap([*PERFECT, (1, ANT, *WRONG)])         # all ants are marked: it is wrong
    assert positive["ap_frequent"] == pytest.approx(200 / 3)


def test_numbers_of_annotations_and_the_area_of_boxes_do_not_matter():
    """The package takes the number 0 for no annotation."""
    truth = annotated()
    for number, row in enumerate(truth["annotations"]):
        row["id"] = number
        del row["area"]
    assert ap(PERFECT, truth) == ap(PERFECT)


def test_no_detection_is_an_ap_of_zero():
    assert set(ap([]).values()) == {0}
    assert set(lvis_ap(annotated(), [], "segm")[0].values()) == {0}


def test_300_detections_of_an_image_count():
    """300 wrong ones of image 2 are better than its right ones, the 301st and 302nd."""
    better = [(2, DOG, 45, 25, 10, 0.95)] * 300
    assert ap([*PERFECT, *better])["ap_rare"] == 0 and ap([*PERFECT, *better[2:]]) == ap(PERFECT)


def test_ap_by_class_leaves_out_classes_without_objects():
    _, per_class = lvis_ap(annotated(), results(PERFECT[:2]), "bbox")
    assert per_class == pytest.approx({"ant": 51 / 101 * 100, "bee": 100, "cat": 0})


def official(tmp_path, truth, found, kind):
    """The package alone, on files."""
    from lvis import LVIS, LVISEval
    for name, content in (("truth", truth), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    judge = LVISEval(LVIS(str(tmp_path / "truth.json")), str(tmp_path / "found.json"), kind)
    with pytest.warns(DeprecationWarning, match="np.float"):
        judge.run()
    return judge.get_results()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_metrics_are_those_of_the_official_package_on_files(tmp_path, kind):
    draw = np.random.RandomState(0)
    rows = [*PERFECT, (1, CAT, *WRONG), (1, BEE, *WRONG), (2, BEE, *WRONG), (1, DOG, *WRONG)]
    rows += [(draw.randint(1, 3), (ANT, BEE, CAT)[draw.randint(3)], draw.randint(30),
              draw.randint(20), draw.randint(5, 18), draw.rand()) for _ in range(60)]
    rows += [(image, kind_, left + 1, top, side, score + 0.05)
             for image, kind_, left, top, side, score in PERFECT]
    truth, found = annotated(), results(rows, kind == "segm")
    before = copy.deepcopy((truth, found))
    ours = lvis_ap(truth, found, kind)[0]
    assert (truth, found) == before
    prefix = "mask_" if kind == "segm" else ""
    theirs = official(tmp_path, truth, found, kind)
    expected = {prefix + ours_: 100 * theirs[name]
                for name, ours_ in lvis_evaluation._NAMES.items() if theirs[name] >= 0}
    assert ours == pytest.approx(expected, abs=1e-9) and len(ours) == 9
    assert 0 < ours[prefix + "ap_rare"] < 100 and 0 < ours[prefix + "ap"] < 100


def test_results_of_strangers_and_truth_without_objects_are_refused(monkeypatch):
    with pytest.raises(UserError, match="speak of image 9, which the annotations do not list"):
        ap([(9, ANT, *WRONG)])
    with pytest.raises(UserError, match="the annotations have no object"):
        ap(PERFECT, {**annotated(), "annotations": []})
    monkeypatch.setitem(__import__("sys").modules, "lvis", None)
    with pytest.raises(MissingExtra, match=r"gluon-resnest\[lvis\]"):
        ap(PERFECT)


def test_drawn_pictures_are_annotated_exhaustively():
    truth = exhaustive(ground_truth(ShapeInstances(30, (64, 80), 3)))
    for picture in truth["images"]:
        shown = {each["category_id"] for each in truth["annotations"]
                 if each["image_id"] == picture["id"]}
        assert sorted(shown | set(picture["neg_category_ids"])) == [1, 2, 3]
        assert not shown & set(picture["neg_category_ids"])
    assert [each["frequency"] for each in truth["categories"]] == [
        "r" if each["image_count"] <= 10 else "c" for each in truth["categories"]]


@pytest.mark.parametrize("images, frequency", [(10, "r"), (11, "c"), (100, "c"), (101, "f")])
def test_frequencies_are_those_of_the_paper(images, frequency):
    truth = exhaustive({"images": [{"id": number} for number in range(images)],
                        "annotations": [{"image_id": number, "category_id": 1}
                                        for number in range(images)],
                        "categories": [{"id": 1, "name": "cat"}]})
    assert truth["categories"][0]["frequency"] == frequency


# ---- the json -----------------------------------------------------------------------------------

def write(folder, content):
    """Writes the json and the images that its URLs name; returns the json's path."""
    for split in ("train2017", "val2017"):
        (folder / split).mkdir(exist_ok=True)
    for number, split in ((1, "train"), (2, "val")):
        image = np.full((*SIZE, 3), 40 * number, np.uint8)
        cv2.imwrite(str(folder / f"{split}2017/{number:012d}.jpg"), image)
    file = folder / "lvis.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_the_json_is_read_as_a_source(tmp_path):
    source = read_lvis(write(tmp_path, annotated()), tmp_path)
    assert source.class_names == ("ant", "bee", "cat", "dog") and len(source) == 2
    assert source.frequencies == ("f", "c", "r", "r")
    np.testing.assert_array_equal(source.category_ids, [ANT, BEE, CAT, DOG])
    assert source.read(1).mean() == pytest.approx(80, abs=1)
    assert source.file(0) == tmp_path / "train2017/000000000001.jpg"
    objects = source.objects(1)
    np.testing.assert_array_equal(objects.classes, [0, 2])
    np.testing.assert_array_equal(objects.boxes, [[30, 10, 42, 22], [5, 5, 13, 13]])
    assert not objects.crowd.any() and objects.areas.tolist() == [144, 64]


def test_files_of_one_s_own_and_images_without_annotations_are_read(tmp_path):
    content = annotated()
    del content["annotations"]
    for image in content["images"]:
        image["file_name"] = "/".join(image.pop("coco_url").split("/")[-2:])
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    source = read_lvis(write(tmp_path, content), tmp_path)
    assert source.file(1) == tmp_path / "val2017/000000000002.jpg"
    assert not len(source.objects(1).ids)


def test_picked_images_are_judged_by_the_file_s_own_annotations(tmp_path):
    content = annotated()
    file = write(tmp_path, content)
    recipe = DetectionRecipe(network="faster_rcnn_fpn_resnest_tiny_lvis", source="a test",
                             dataset="lvis", classes=4, pick=1, short_px="80", eval_px=80,
                             max_px=120)
    run = argparse.Namespace(data="real", root=None, train_annotations=str(file),
                             train_images=str(tmp_path), val_annotations=None, val_images=None)
    truth = DetectionData(recipe, run, Comm(), masks=False).truth()
    assert truth == {"images": content["images"][:1], "categories": content["categories"],
                     "annotations": content["annotations"][:2]}


def without(table, field):
    return lambda content: content[table][0].pop(field)


def wrong(table, field, value):
    return lambda content: content[table][0].update({field: value})


@pytest.mark.parametrize("damage, message", [
    (lambda content: content.pop("categories"), "no list of categories"),
    (lambda content: content.pop("images"), "LVIS's: lvis_v1_.*no list of images"),
    (without("categories", "frequency"), "categories that lacks some of id, frequency"),
    (without("images", "neg_category_ids"), "images that lacks some of id, neg_category_ids"),
    (without("images", "height"), "images that lacks some of id, file_name, height"),
    (without("annotations", "area"), "annotations that lacks some of area, segmentation"),
    (without("images", "coco_url"), "image 1 has neither a coco_url.*add one of them"),
    (wrong("categories", "frequency", "x"), "category 7 has the frequency 'x'; expected one of r"),
    (wrong("images", "neg_category_ids", [99]), "image 1 names category 99 in neg_category_ids"),
    (wrong("images", "not_exhaustive_category_ids", 3), "image 1 has not_exhaustive_category_ids "
     "that are no list"),
    (wrong("annotations", "category_id", 99), "annotation 1 belongs to category 99"),
    (wrong("images", "coco_url", "http://host/train2017/x.jpg"), "1 image that is not in"),
])
def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path, damage, message):
    content = annotated()
    damage(content)
    with pytest.raises(UserError, match=message) as caught:
        read_lvis(write(tmp_path, content), tmp_path)
    assert "lvis.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{\"images\": [", "[]"])
def test_a_damaged_json_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="lvis.json is no"):
        read_lvis(write(tmp_path, text), tmp_path)


# ---- a run --------------------------------------------------------------------------------------

def test_two_steps_and_their_evaluation_through_the_recipe(tmp_path):
    """Six drawn pictures; what is written is judged once more, by the package alone."""
    source = ShapeInstances(6, (64, 80), 3)
    truth = exhaustive(ground_truth(source))
    for index, image in enumerate(truth["images"]):
        image["file_name"] = f"{index}.png"
        cv2.imwrite(str(tmp_path / image["file_name"]), source.read(index)[..., ::-1])
    truth["images"][0]["not_exhaustive_category_ids"] = [1]
    truth["categories"][0]["frequency"] = "f"
    (tmp_path / "lvis.json").write_text(json.dumps(truth))
    workdir = tmp_path / "run"
    places = [word for split in ("train", "val") for word in (
        f"--{split}-annotations", str(tmp_path / "lvis.json"), f"--{split}-images", str(tmp_path))]
    small = """--network mask_rcnn_fpn_resnest_tiny_lvis --classes 3 --norm batch --frozen-stages 0
        --box-head 2fc --mask-convs 1 --channels 16 --fc-channels 16 --roi-samples 8 --proposals 16
        --short-px 64 --max-px 96 --eval-px 64 --unit iterations --length 2 --milestones= --batch 4
        --precise-bn-batches 0 --warmup-iterations 0 --repeat-threshold 0.9 --data-workers 0
        --eval-every 1""".split()
    chosen = ["--model", "resnest50@lvis_federated", *small, *places, "--workdir", str(workdir)]
    cli.main(mask_rcnn.RECIPES, Detection, chosen)
    result = json.loads((workdir / "result.json").read_text())["measured"]
    assert result["images"] == 6 and {"ap_frequent", "mask_ap_rare"} <= set(result)
    assert (workdir / "classes.txt").read_text().split() == list(source.class_names)
    for kind, name, prefix in (("bbox", "boxes", ""), ("segm", "masks", "mask_")):
        found = json.loads((workdir / f"{name}.json").read_text())
        assert len(found) > 6
        theirs = official(tmp_path, truth, found, kind)
        assert result[prefix + "ap"] == pytest.approx(100 * theirs["AP"], abs=1e-9)
        assert result[prefix + "ar300"] == pytest.approx(100 * theirs["AR@300"], abs=1e-9)
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in log if "step" in line) == 2

"""The detection task: training, exact evaluation and resume, starting backbones, its mistakes.

Started by horovodrun, this file is the worker: it evaluates, computes losses, writes both down.
"""
import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from horovod_job import launch
from mxnet import autograd, nd

from gluon_resnest import cli, execution, zoo
from gluon_resnest.config import ClassificationRecipe, DetectionRecipe
from gluon_resnest.data.instances import ground_truth
from gluon_resnest.data.shapes import ShapeInstances
from gluon_resnest.engine.checkpoint import State
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError
from gluon_resnest.interop.weights import save_parameters
from gluon_resnest.models.deform import DeformableConv2D
from gluon_resnest.models.resnest import initialize
from gluon_resnest.tasks import detection_data
from gluon_resnest.tasks.detection import Detection

RECIPE = DetectionRecipe(
    network="mask_rcnn_fpn_resnest_tiny_coco", source="a test", classes=2, norm="batch",
    frozen_stages=0, box_head="2fc", mask_convs=1, roi_samples=8, proposals=16, detections=6,
    unit="epochs", length=2, milestones="1", warmup_iterations=0, batch=2, lr=1e-3,
    short_px="64", max_px=96, eval_px=64, eval_every=1)
RUN = argparse.Namespace(
    data="synthetic", synthetic_steps=4, data_workers=0, device="cpu", weights=None, root=None,
    eval_only=False, eval_batch=1, train_annotations=None, train_images=None, val_annotations=None,
    val_images=None, backbone_weights=None, results=None, rpn_recall=False, workdir=None)


def make_task(recipe=RECIPE, comm=None, **run):
    return Detection(recipe, argparse.Namespace(**{**vars(RUN), **run}), comm or Comm())


def values(net):
    """Returns the parameters of a network by structural name."""
    return {name: parameter.data().asnumpy()
            for name, parameter in net._collect_params_with_prefix().items()}


# Standard deviations, times the root of the fan-in: scores near each other, boxes near anchors.
SPREADS = {"predictor.logits.weight": 0.3, "predictor.deltas.weight": 0.05,
           "rpn.logits.weight": 0.3, "rpn.deltas.weight": 0.1}


def set_parameters(net):
    """Gives a network parameters that are the same anywhere, with which it finds some objects."""
    for number, (name, parameter) in enumerate(sorted(net._collect_params_with_prefix().items())):
        spread = next((each for end, each in SPREADS.items() if name.endswith(end)), 1.2)
        value = np.zeros(parameter.shape)
        if name.endswith("weight"):
            fan_in = np.prod(parameter.shape[1:])
            value = np.random.RandomState(number).normal(0, spread * fan_in ** -0.5, value.shape)
        elif name.endswith(("gamma", "running_var")):
            value += 1
        parameter.set_data(nd.array(value))


# ---- evaluation ---------------------------------------------------------------------------------

def outcome(folder, comm):
    """Evaluates, and computes the losses of a first step: what a worker finds."""
    detection_data.HELD_OUT = 4
    task = make_task(dataclasses.replace(RECIPE, norm="sync", batch=6), comm=comm,
                     rpn_recall=True, workdir=str(folder / f"of{comm.size}"))
    set_parameters(task.net)
    metrics = task.evaluate()
    with autograd.record():
        losses = task.losses(next(task.batches(0)))
    means = comm.total({name: loss.astype("float64").asnumpy() for name, loss in losses.items()})
    return {"metrics": metrics,
            "losses": {name: float(value[0]) / comm.size for name, value in means.items()}}


@pytest.mark.horovod
@pytest.mark.parametrize("size", [2, 3])
def test_many_workers_are_one_and_their_ap_is_pycocotools_of_the_merged_file(tmp_path, size):
    """4 pictures: the shares of 3 workers differ. Losses have common denominators and norms."""
    alone = outcome(tmp_path, Comm())
    code, text, outcomes = launch(size, __file__, tmp_path, timeout=600)
    assert code == 0, text
    for each in outcomes:
        assert each["metrics"] == alone["metrics"]
        assert each["losses"] == pytest.approx(alone["losses"], rel=2e-3)
    assert set(alone["losses"]) == {"rpn_class", "rpn_box", "class", "box", "mask"}
    truth = ground_truth(ShapeInstances(4, (64, 80), 2, split="held-out"))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for kind, file, prefix in (("bbox", "boxes.json", ""), ("segm", "masks.json", "mask_")):
        merged = tmp_path / f"of{size}" / file
        ours, theirs = (json.loads((tmp_path / name / file).read_text())
                        for name in (f"of{size}", "of1"))
        assert len(ours) == len(theirs) > 4
        for found, expected in zip(ours, theirs):   # a network may round otherwise elsewhere
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert found[key] == (value if isinstance(value, dict) else
                                      pytest.approx(value, rel=1e-5)), key
        stats = pycocotools_stats(tmp_path / "truth.json", merged, kind)
        assert alone["metrics"][prefix + "ap"] == pytest.approx(100 * stats[0], abs=1e-9)
        assert alone["metrics"][prefix + "ar100"] == pytest.approx(100 * stats[8], abs=1e-9)
    assert 0 <= alone["metrics"]["proposals_ar100"] <= alone["metrics"]["proposals_ar1000"] <= 100


def pycocotools_stats(truth, results, kind):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    truth = COCO(str(truth))
    judge = COCOeval(truth, truth.loadRes(str(results)), kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats


def test_an_image_seen_twice_is_an_error():
    class Twice(Comm):
        def gather(self, value):
            return [value, value]

    with pytest.raises(RuntimeError, match="looked at 8 images of 4"):
        make_task(comm=Twice()).evaluate()


# ---- training -----------------------------------------------------------------------------------

def test_local_normalisers_are_each_workers_own():
    task = make_task(dataclasses.replace(RECIPE, normalize="local"))
    set_parameters(task.net)
    batch, again = next(task.batches(0)), next(task.batches(0))
    with autograd.record():
        losses = task.losses(batch)
        direct = task.net.losses(*again)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss.asnumpy(), direct[name].mean().asnumpy(), rtol=1e-5)


def test_norms_without_decay_and_everything_decaying():
    for decay, gamma, bias in (("all", 1, 1), ("no_norms", 0, 1), ("weights", 0, 0)):
        task = make_task(dataclasses.replace(RECIPE, decay=decay))
        named = task.net._collect_params_with_prefix()
        assert named["features.fpn.laterals.0.norm.gamma"].wd_mult == gamma
        assert named["stages.0.predictor.logits.bias"].wd_mult == bias
        assert named["features.fpn.laterals.0.conv.weight"].wd_mult == 1


def run(capsys, *words):
    """Runs the command line in this process; returns (exit code, stdout, stderr)."""
    code = 0
    try:
        cli.main({"a": RECIPE}, Detection, [str(word) for word in words])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def coco(tmp_path):
    """Four drawn pictures in COCO's layout, one without objects, one with a crowd alone."""
    source = ShapeInstances(4, (64, 80), 2)
    truth = ground_truth(source)
    for index, image in enumerate(truth["images"]):
        image["file_name"] = f"{image['id']}.png"
        for split in ("train2017", "val2017"):
            (tmp_path / split).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / split / image["file_name"]), source.read(index))
    empty, crowded = truth["images"][0]["id"], truth["images"][1]["id"]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] != empty]
    for row in truth["annotations"]:
        row["iscrowd"] = int(row["image_id"] == crowded)
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(truth))
    return tmp_path


def words(root, workdir, *more):
    return ["--root", root, "--workdir", workdir, "--data-workers", "0", "--log-every", "1", *more]


def test_a_resumed_run_equals_an_uninterrupted_one(capsys, tmp_path, coco):
    more = ["--precise-bn-batches", "1"]
    code, out, err = run(capsys, *words(coco, tmp_path / "whole", *more))
    assert code == 0 and "box AP" in out and "mask AP" in out and "4 images" in out, err
    recipe, flags = cli.parse({"a": RECIPE}, Detection, [
        str(word) for word in words(coco, tmp_path / "parts", *more)])
    execution.train(recipe, flags, Detection, Comm(), stop_epoch=1)
    assert run(capsys, *words(coco, tmp_path / "parts", *more))[0] == 0
    step = max((tmp_path / "whole/checkpoints").iterdir()).name     # 2 images with objects, twice
    assert step == "step-00000002"
    for name in ("model.params",):
        assert (tmp_path / f"whole/checkpoints/{step}/{name}").read_bytes() == (
            tmp_path / f"parts/checkpoints/{step}/{name}").read_bytes()
    # A saved file of results alone.
    (tmp_path / "right.json").write_text(json.dumps([
        {**{key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")},
         "score": 1.0} for row in json.loads(
             (coco / "annotations/instances_val2017.json").read_text())["annotations"]
        if not row["iscrowd"]]))
    code, out, err = run(capsys, "--root", coco, "--eval-only", "--results",
                         tmp_path / "right.json", "--workdir", tmp_path / "judged")
    assert code == 0 and "box AP 100.00" in out and "mask AP 100.00" in out, err
    classes = json.loads((tmp_path / "judged/classes.json").read_text())
    assert all(each == {"ap": pytest.approx(100), "mask_ap": pytest.approx(100)}
               for each in classes.values())


def test_images_without_annotations_get_a_file_of_results(capsys, tmp_path, coco):
    file = coco / "annotations/instances_val2017.json"
    info = json.loads(file.read_text())
    del info["annotations"]
    file.write_text(json.dumps(info))
    task = make_task(data="real", root=str(coco), eval_only=True)
    set_parameters(task.net)
    save_parameters(task.net, tmp_path / "net.params")
    code, out, err = run(capsys, *words(coco, tmp_path / "run", "--eval-only", "--weights",
                                        tmp_path / "net.params", "--eval-scales", "48,64",
                                        "--eval-flip", "true"))
    assert code == 0 and "detections in 4 images, not judged" in out, err
    masks = json.loads((tmp_path / "run/masks.json").read_text())
    boxes = json.loads((tmp_path / "run/boxes.json").read_text())
    assert len(masks) == len(boxes) > 0 and "bbox" not in masks[0] and "segmentation" in masks[0]
    code, _, err = run(capsys, *words(coco, tmp_path / "other"))
    assert code == 2 and "the evaluation images have no annotations" in err


def test_mistakes_with_data_are_sentences(capsys, tmp_path, coco):
    for more, sentence in (
            ([], "--root DIR is missing"),
            (["--root", coco, "--classes", "3"], "have 2 categories, the recipe 3"),
            (["--root", coco, "--results", "x.json"], "give --eval-only too"),
            (["--root", coco, "--network", "resnest50"], "is no detector"),
            (["--root", coco, "--pick", "9"], "only 2 of 4 images have objects")):
        code, _, err = run(capsys, "--workdir", tmp_path / "run", *more)
        assert code == 2 and sentence in err, err
    box, mask = (dict(image_id=1, category_id=1, score=1, **more) for more in (
        {"bbox": [0, 0, 9, 9]}, {"segmentation": {"size": [64, 80], "counts": "PPP1"}}))
    for content, sentence in (
            ({}, "no list of results"), ([{"image_id": 1}], "no list of results"),
            ([{**box, "image_id": 99}], "speak of image 99"),
            ([{**mask, "image_id": 99}], "speak of image 99"),
            ([{**box, "image_id": [1]}], "result 0 has [1] as image_id where a number"),
            ([box, {**box, "score": "1"}], "result 1 has '1' as score where a number"),
            ([{**box, "bbox": [0, 0, float("nan"), 9]}], "where four finite numbers"),
            ([mask], "has a broken mask: run lengths of"),
            ([{**mask, "segmentation": {"size": [64, 80], "counts": "o"}}], "has a broken mask"),
            ([{**mask, "segmentation": {"size": [64, 80], "counts": [5120]}}],
             "has a segmentation that is no compressed run lengths"),
            ([{**mask, "segmentation": [[0, 0, 9, 0, 9, 9]]}], "no compressed run lengths")):
        (tmp_path / "wrong.json").write_text(json.dumps(content))
        code, _, err = run(capsys, "--root", coco, "--eval-only", "--results",
                           tmp_path / "wrong.json")
        assert code == 2 and sentence in err, err


@pytest.mark.parametrize("change, sentence", [
    ({"id": 3}, "category 2 ('square') of train is category 3 ('square') in val"),
    ({"name": "cube"}, "category 2 ('square') of train is category 2 ('cube') in val")])
def test_train_and_val_have_the_same_categories(capsys, tmp_path, coco, change, sentence):
    file = coco / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        if row["category_id"] == 2 and "id" in change:
            row["category_id"] = change["id"]
    content["categories"][1].update(change)
    file.write_text(json.dumps(content))
    code, _, err = run(capsys, *words(coco, tmp_path / "run"))
    assert code == 2 and sentence in err, err


@pytest.mark.parametrize("more", [[], ["--eval-only"]])
def test_a_run_goes_on_and_is_judged_with_its_own_classes(capsys, tmp_path, coco, more):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/classes.txt").write_text("disc\ncube\n")
    (tmp_path / "run/config.json").write_text(json.dumps(
        {"model": "a", "kind": "DetectionRecipe", "recipe": RECIPE.to_json()}))
    code, _, err = run(capsys, *words(coco, tmp_path / "run", *more))
    assert code == 2 and "other classes (class 1: 'cube' there, 'square' now)" in err, err


def test_masks_that_evaluations_lack_are_missed_before_training(capsys, tmp_path, coco):
    file = coco / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]["segmentation"]
    file.write_text(json.dumps(content))
    code, _, err = run(capsys, *words(coco, tmp_path / "run"))
    assert code == 2 and "has no mask" in err and not (tmp_path / "run/log.jsonl").exists(), err
    code, _, err = run(capsys, *words(coco, tmp_path / "boxes", "--network",
                                      "faster_rcnn_fpn_resnest_tiny_coco", "--length", "1",
                                      "--milestones", ""))
    assert code == 0, err


def test_training_starts_from_exactly_the_tensors_of_a_classification_run(tmp_path):
    recipe = ClassificationRecipe(network="resnest_tiny", source="a test", classes=3, crop_px=32)
    net = zoo.get_model("resnest_tiny", classes=3)
    initialize(net)
    for number, parameter in enumerate(net.collect_params().values()):
        parameter.set_data(nd.random.uniform(0.1, 1, parameter.shape) + number)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({"recipe": recipe.to_json()}))
    trainer = Comm().trainer(net.collect_params(), optimizer("sgd", wd=0))
    Checkpoints(tmp_path / "run/checkpoints").save(net, Update(trainer, net), State(step=1))
    save_parameters(net, tmp_path / "file.params")
    expected = {name: value for name, value in values(net).items() if not name.startswith("fc.")}
    for source in ("run", "file.params"):
        task = make_task(backbone_weights=str(tmp_path / source))
        got = values(task.net.features.backbone)
        assert set(got) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value)


def test_deformable_networks_learn_on_a_cpu():
    recipe = dataclasses.replace(RECIPE, network="faster_rcnn_fpn_resnest_tiny_dcn_coco")
    task = make_task(recipe)
    layers = []
    task.net.apply(lambda block: layers.append(block) if isinstance(block, DeformableConv2D)
                   else None)
    assert len(layers) == 3 and {layer._form for layer in layers} == {"composed"}
    task.update.step(task.losses, next(task.batches(0)), 1e-4)
    gradients = [layer.offset.weight.grad().asnumpy() for layer in layers]
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_norms_of_backbone_pyramid_and_heads():
    task = make_task(dataclasses.replace(RECIPE, norm="frozen,sync,none"))
    net = task.net
    assert net.features.backbone.bn1._kwargs["use_global_stats"]
    assert type(net.features.fpn.laterals[0].norm).__name__ == "SyncBatchNorm"
    assert net.mask_heads[0].convs[0].norm is None


def test_mask_heads_may_have_another_norm():
    net = make_task(dataclasses.replace(RECIPE, norm="sync,sync,sync,none",
                                        box_head="4conv1fc")).net
    assert type(net.stages[0].head.convs[0].norm).__name__ == "SyncBatchNorm"
    conv = net.mask_heads[0].convs[0]
    assert conv.norm is None and conv.conv.bias is not None


def test_evaluation_images_have_a_limit_of_their_own():
    recipe = dataclasses.replace(RECIPE, max_px=96, eval_max_px=70)
    task = make_task(recipe)
    assert task._val.dataset.transform.max_px == 70
    assert max(max(batch.images.shape[2:]) for batch in task._val.epoch(0)) <= 96
    assert task._train.dataset.transform.max_px == 96


def test_widths_are_those_of_the_recipe():
    net = make_task(dataclasses.replace(RECIPE, channels=12, fc_channels=20)).net
    assert net.rpn.conv.weight.shape[0] == net.mask_heads[0].convs[0].conv.weight.shape[0] == 12
    assert net.stages[0].head.fcs[0].weight.shape[0] == 20


def test_a_few_clear_images_are_picked_and_evaluated(data_root):
    recipe = dataclasses.replace(RECIPE, classes=80, pick=8, short_px="256", max_px=320,
                                 eval_px=256)
    task = make_task(recipe, data="real", root=str(data_root / "tiny_coco"))
    source = task._val.dataset.source
    assert len(source) == task.steps_per_epoch * recipe.batch == 8
    for index in range(8):
        objects, (height, width) = source.objects(index), source.size(index)
        scale = min(256 / min(height, width), 320 / max(height, width))
        sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]) * scale
        assert sides.min() >= 15.9 and not objects.crowd.any()
    batch = next(itertools.islice(task.batches(0), 1))
    assert max(batch[0].shape[2:]) <= 320


# ---- recipes ------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, message", [
    ({"short_px": "640;800"}, "short_px must be whole numbers with commas"),
    ({"short_px": "\u00b2"}, "short_px must be whole numbers with commas"),
    ({"short_px": "640"}, "short_px must lie between 1 and max_px"),
    ({"eval_scales": "400,5000"}, "eval_scales must lie between"),
    ({"eval_flip": True}, "eval_flip belongs to test-time augmentation"),
    ({"milestones": "1,1"}, "milestones must ascend"),
    ({"milestones": "2"}, "milestones must ascend and lie within length"),
    ({"eval_px": 97}, r"eval_px must not exceed eval_max_px, or max_px without one \(=96\)"),
    ({"eval_max_px": 63}, "eval_px must not exceed eval_max_px"),
    ({"norm": "sync,none"}, "norm must be sync, batch or frozen, or three"),
    ({"norm": "none,sync,sync"}, "norm must be sync")])
def test_recipe_mistakes_are_sentences(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(RECIPE, **change)


def test_durations_are_iterations_or_epochs():
    recipe = DetectionRecipe(network="faster_rcnn_fpn_resnest50_coco", source="a test")
    assert recipe.steps(7330) == 90000 and recipe.decay_steps(7330) == (60000, 80000)
    epochs = dataclasses.replace(recipe, unit="epochs", length=12, milestones="8,11")
    assert epochs.steps(7330) == 87960 and epochs.decay_steps(7330) == (58640, 80630)


def test_the_expected_value_is_that_of_the_evaluation():
    recipe = dataclasses.replace(RECIPE, expect_ap=42.0)
    assert recipe.expected == 42
    assert dataclasses.replace(recipe, eval_scales="64").expected is None
    assert dataclasses.replace(recipe, expect_on="test-dev").expected is None


if __name__ == "__main__":
    worker = connect()
    folder = Path(sys.argv[1])
    found = outcome(folder, worker)
    (folder / f"{worker.rank}.json").write_text(json.dumps(found))
    worker.shutdown()

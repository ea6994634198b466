"""Laws of the plan: hand numbers, limits, and what the command prints."""
import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gluon_resnest import cli
from gluon_resnest.config import (
    ClassificationRecipe, DetectionRecipe, PoseRecipe, SegmentationRecipe)
from gluon_resnest.engine.plan import Cluster, Workload, cluster_of, describe, estimate
from gluon_resnest.errors import UserError
from gluon_resnest.tasks.classification import Classification
from gluon_resnest.tasks.workload import (
    classification_workload, detection_workload, pose_workload, segmentation_workload)
from gluon_resnest.zoo import get_model

WORK = Workload(batch=640, steps_per_epoch=100, epochs=9, parameters=25_000_000,
                values=25_100_000, activation_bytes=200_000_000)
RECIPE = ClassificationRecipe(network="resnest50", source="a test")


def plan(work=WORK, **cluster):
    return estimate(work, Cluster(**{"images_per_second": 100.0, **cluster}))


def test_one_worker_by_hand():
    alone = plan()
    assert (alone.sent, alone.reduce, alone.exposed, alone.waiting) == (0, 0, 0, 0)
    assert alone.step == 6.4 and alone.images_per_second == 100 and alone.efficiency == 1
    assert alone.hours == 900 * 6.4 / 3600
    assert alone.memory == 4 * 25_100_000 + 8 * 25_000_000 + 640 * 200_000_000
    assert alone.disk == 5 * 4 * 50_100_000


def test_ten_workers_by_hand():
    """100 MB of gradients in two buffers; 64 images each take 0.64 s."""
    ten = plan(workers=10, bandwidth=1.0, latency=1e3)
    assert ten.sent == pytest.approx(1.8 * 100e6)
    assert ten.reduce == pytest.approx(0.18 + 2 * 18 * 1e-3)
    assert ten.exposed == pytest.approx(0.108)                      # the last of two buffers
    assert plan(workers=10, bandwidth=0.1, latency=1e3).exposed == \
        pytest.approx(1.8 + 0.036 - 0.64 * 2 / 3)                   # more than the backward pass
    slow = plan(workers=10, bandwidth=1.0, latency=1e3, input=50)
    assert slow.step == pytest.approx(64 / 50)
    assert slow.waiting == pytest.approx(1.28 - 0.64 - 0.108)


def test_what_is_kept_costs_memory_and_disk():
    for change, slots in (({"optimizer": "adam"}, 2), ({"average": True}, 2), ({}, 1)):
        changed = plan(dataclasses.replace(WORK, **change))
        assert changed.memory - plan().memory == 4 * 25_000_000 * (slots - 1)
        assert changed.disk - plan().disk == 5 * 4 * 25_000_000 * (slots - 1)
    half = plan(dataclasses.replace(WORK, gradient_bytes=2), workers=4)
    assert half.sent == plan(workers=4).sent / 2


@given(st.integers(1, 512), st.floats(0.1, 100), st.floats(1, 1000), st.floats(1, 1e4))
def test_the_plan_keeps_its_limits(workers, bandwidth, latency, speed):
    work = dataclasses.replace(WORK, batch=64 * workers)
    made = estimate(work, Cluster(workers=workers, bandwidth=bandwidth, latency=latency,
                                  images_per_second=speed, input=2 * speed))
    assert made.efficiency <= 1 + 1e-12
    assert made.exposed <= made.reduce + 1e-12
    assert made.sent < 2 * work.parameters * 4
    assert made.images_per_second <= workers * speed * (1 + 1e-9)
    assert plan(work, workers=workers, bandwidth=2 * bandwidth, latency=latency).step <= \
        plan(work, workers=workers, bandwidth=bandwidth, latency=latency).step


def test_a_detector_is_planned_in_iterations():
    recipe = DetectionRecipe(network="mask_rcnn_fpn_resnest14_coco", source="a test")
    made = detection_workload(recipe, Cluster(images=117266, workers=8, images_per_second=1))
    assert made.steps_per_epoch == 7330 and estimate(
        made, Cluster(workers=8, images_per_second=1)).steps == 90000
    assert made.parameters < made.values                # frozen stages and statistics
    twice = dataclasses.replace(recipe, roi_samples=1024)
    more = detection_workload(twice, Cluster(images=117266, workers=8, images_per_second=1))
    # 512 RoIs more: in 5 layers of 49 values for each of 256 channels alone
    assert more.activation_bytes - made.activation_bytes > 4 * 512 * 256 * 49 * 5


def test_a_detector_is_planned_with_images_of_its_max_pixels():
    recipe = DetectionRecipe(network="faster_rcnn_fpn_resnest14_coco", source="a test",
                             short_px="64", max_px=224, eval_px=64)
    cluster = Cluster(images=160, workers=2, images_per_second=1)
    bounded = dataclasses.replace(recipe, max_pixels=64 * 100)
    assert detection_workload(bounded, cluster) == detection_workload(
        dataclasses.replace(recipe, max_px=96), cluster)
    assert detection_workload(bounded, cluster) != detection_workload(recipe, cluster)


def test_a_pose_network_is_planned():
    recipe = PoseRecipe(network="resnest14", source="a test", batch=256)
    made = pose_workload(recipe, Cluster(images=2560, workers=2, images_per_second=1))
    assert made.steps_per_epoch == 10 and made.epochs == 140 and made.optimizer == "adam"


def test_a_segmentation_network_is_planned():
    recipe = SegmentationRecipe(network="deeplab_resnest_tiny", source="a test", classes=5,
                                dataset="folder", crop_px=64, base_px=64)
    made = segmentation_workload(recipe, Cluster(images=160, workers=2, images_per_second=1))
    assert made.steps_per_epoch == 10 and made.epochs == 120
    assert made.parameters < made.values and made.activation_bytes > 64 ** 2 * 3 * 4


def test_a_workload_counts_what_the_network_has():
    made = classification_workload(RECIPE, Cluster(workers=64, images_per_second=1))
    params = get_model("resnest50").collect_params().values()
    assert made.parameters == 27_483_240                            # published
    assert made.values == sum(math.prod(parameter.shape) for parameter in params)
    assert made.steps_per_epoch == 157 and made.batch == 8192
    assert made.activation_bytes > 100e6
    parts = dataclasses.replace(RECIPE, accumulate=4, ema_decay=0.9, compression="fp16")
    cut = classification_workload(parts, Cluster(workers=64, images_per_second=1))
    assert cut.activation_bytes == made.activation_bytes // 4
    assert cut.average and cut.gradient_bytes == 2


@pytest.mark.parametrize("text, message", [
    ("worker=3", "--plan knows no 'worker'; did you mean 'workers'"),
    ("workers=x", "--plan needs a number for workers, got 'x'"),
    ("workers=64", "needs images_per_second above 0, got 0; give the speed of one device"),
    ("images_per_second=9,workers=0", "needs workers above 0, got 0"),
    ("images_per_second=9,workers=0.5", "needs a whole number for workers, got 0.5"),
    ("images_per_second=9,images=inf", "needs a whole number for images, got inf"),
    ("images_per_second=9,bandwidth=nan", "needs bandwidth above 0, got nan")])
def test_wrong_words_are_a_sentence(text, message):
    with pytest.raises(UserError, match=message):
        cluster_of(text)


def test_the_command_prints_the_plan_and_trains_nothing(capsys, tmp_path):
    cli.main({"x": RECIPE}, Classification, [
        "--plan", "workers=64,images_per_second=250", "--workdir", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    cluster = Cluster(workers=64, images_per_second=250)
    assert printed.strip() == describe(estimate(classification_workload(RECIPE, cluster), cluster))
    for part in ("270 epochs x 157 steps x 8192 images = 42390 steps", "MB per step",
                 "wall time", "memory of a device", "disk"):
        assert part in printed
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_divided_is_a_sentence():
    with pytest.raises(ValueError, match="8192"):
        classification_workload(RECIPE, Cluster(workers=3, images_per_second=1))

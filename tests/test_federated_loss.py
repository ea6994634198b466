"""Sigmoid and federated classification of RoIs: which classes count, and what they cost."""
import argparse
import dataclasses
import itertools
import math

import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest.config import DetectionRecipe, PanopticRecipe
from gluon_resnest.data.sampling import random_for
from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import UserError
from gluon_resnest.interop.weights import load_parameters, save_parameters
from gluon_resnest.models.detection.build import rcnn
from gluon_resnest.models.detection.conventions import conventions
from gluon_resnest.models.detection.losses import box_losses, class_entropy
from gluon_resnest.models.detection.sampling import draw_classes
from gluon_resnest.models.resnest import initialize
from gluon_resnest.tasks import detector
from gluon_resnest.tasks.detection import Detection
from gluon_resnest.zoo import get_model

RECIPE = DetectionRecipe(
    network="mask_rcnn_fpn_resnest_tiny_lvis", source="a test", dataset="lvis", classes=12,
    norm="batch", frozen_stages=0, box_head="2fc", mask_convs=1, roi_samples=8, proposals=16,
    detections=6, class_loss="federated", federated_classes=7, unit="epochs", length=2,
    milestones="", warmup_iterations=0, batch=4, lr=1e-3, short_px="64", max_px=96, eval_px=64)
RUN = argparse.Namespace(
    data="synthetic", synthetic_steps=3, data_workers=0, device="cpu", weights=None, root=None,
    eval_only=False, eval_batch=1, backbone_weights=None, results=None, rpn_recall=False,
    workdir=None)
COUNTS = np.array([1, 4, 9, 16, 0, 25])


class Worker(Comm):
    """One of two workers, without the other."""

    def __init__(self, rank):
        super().__init__()
        self.rank, self.size = rank, 2


# ---- which classes count ------------------------------------------------------------------------

def test_those_present_are_always_in_and_those_never_seen_are_not():
    for step in range(50):
        chosen = draw_classes(np.array([0, 3]), COUNTS, 4, random_for(0, 0, step, "classes"))
        assert chosen[[0, 3]].all() and not chosen[4] and chosen.sum() == 4
        assert set(chosen.tolist()) <= {0, 1} and chosen.dtype == np.float32


def test_more_present_than_asked_for_all_count_and_too_few_others_are_enough():
    present = np.array([0, 1, 2, 3])
    np.testing.assert_array_equal(
        draw_classes(present, COUNTS, 2, random_for(0, 0, 0)), [1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(
        draw_classes(np.array([4]), COUNTS, 50, random_for(0, 0, 0)), np.ones(6))


def test_others_are_drawn_in_proportion_to_the_root_of_their_images():
    """One of classes 1, 2, 3 and 5 beside 0: roots 2, 3, 4 and 5 of 14."""
    drawn = np.sum([draw_classes(np.array([0]), COUNTS, 2, random_for(1, 0, step))
                    for step in range(3000)], axis=0)
    np.testing.assert_allclose(drawn[[1, 2, 3, 5]] / 3000, np.array([2, 3, 4, 5]) / 14, atol=0.035)


def test_classes_of_a_step_depend_on_seed_and_step_and_are_the_same_on_all_workers(monkeypatch):
    """Also those that only the other worker's images show."""
    monkeypatch.setattr(Detection, "build", staticmethod(network))
    tasks = [Detection(RECIPE, RUN, comm) for comm in (Comm(), Worker(0), Worker(1))]
    steps = [list(itertools.islice(task.batches(0), 3)) for task in tasks]
    for alone, first, second in zip(*steps):
        counted = alone[4][0]
        assert counted.shape == (12,) and [len(each[4]) for each in (alone, first)] == [4, 2]
        for each in (*alone[4], *first[4], *second[4]):
            np.testing.assert_array_equal(counted, each)
        shown = np.concatenate([each.classes for each in alone[2]])
        assert counted[shown].all() and counted.sum() == max(7, len(np.unique(shown)))
    assert len({tuple(each[4][0]) for each in steps[0]}) > 1
    np.testing.assert_array_equal(next(tasks[0].batches(2))[4][0], steps[0][2][4][0])
    for task in tasks:
        task.close()


@pytest.mark.parametrize("parts", [2, 4])
def test_each_part_of_a_batch_counts_the_classes_of_the_whole(parts, monkeypatch):
    monkeypatch.setattr(Detection, "build", staticmethod(network))
    task = Detection(dataclasses.replace(RECIPE, accumulate=parts), RUN, Comm())
    batch = next(task.batches(0))
    whole, seen = task.net.losses, []

    def losses(images, sizes, objects, rngs, counted):
        seen.append((len(images), counted))
        return whole(images, sizes, objects, rngs, counted)

    monkeypatch.setattr(type(task.net), "losses", staticmethod(losses))
    task.update.step(task.losses, batch, 1e-3)
    assert [size for size, _ in seen] == [4 // parts] * parts
    for _, counted in seen:
        np.testing.assert_array_equal(counted, batch[4][0])
    task.close()


# ---- what they cost -----------------------------------------------------------------------------

class Entropy(nn.HybridBlock):
    def hybrid_forward(self, F, logits, classes, counted):
        return class_entropy(F, logits, classes, counted)


def slow_entropy(logits, classes, counted):
    rows = []
    for row, kind in zip(logits, classes):
        total = 0.0
        for number, counts in enumerate(counted):
            chance = 1 / (1 + math.exp(-row[number]))
            total -= counts * math.log(chance if number == kind else 1 - chance)
        rows.append(total)
    return rows


@pytest.mark.parametrize("hybrid", [False, True])
def test_entropy_equals_the_slow_twin(hybrid):
    logits = np.random.normal(0, 2, (5, 4)).astype(np.float32)
    classes, counted = np.array([0, 2, 3, -1, 1]), np.array([1.0, 0, 1])
    block = Entropy()
    if hybrid:
        block.hybridize()
    found = block(nd.array(logits), nd.array(classes), nd.array(counted))
    np.testing.assert_allclose(found.asnumpy(), slow_entropy(logits, classes, counted), rtol=1e-4)


def test_entropy_hand_numbers():
    """Logits of zero cost log 2 for each class that counts; log 3 is a chance of 3/4."""
    zeros, classes = nd.zeros((2, 4)), nd.array([1, 3])
    np.testing.assert_allclose(
        class_entropy(nd, zeros, classes, nd.array([1, 1, 0])).asnumpy(), [math.log(4)] * 2,
        rtol=1e-6)
    logits = nd.array([[math.log(3), 0, 0, 9]])
    for kind, chance in ((0, 3 / 4), (1, 1 / 4), (3, 1 / 4)):
        found = class_entropy(nd, logits, nd.array([kind]), nd.array([1, 0, 0]))
        assert found.asscalar() == pytest.approx(-math.log(chance), rel=1e-5)


def test_only_classes_that_count_learn_and_the_background_logit_never():
    logits, deltas = nd.random.normal(shape=(3, 4)), nd.zeros((3, 1, 4))
    classes = np.array([0, 3, -1])          # an object, background, ignored
    logits.attach_grad()
    with autograd.record():
        entropy, _ = box_losses(logits, deltas, nd.array(classes), nd.zeros((3, 4)), beta=0,
                                counted=nd.array([1, 0, 1]))
        entropy.backward()
    gradient, chance = logits.grad.asnumpy(), 1 / (1 + np.exp(-logits.asnumpy()))
    wanted = np.array([[1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(gradient[:2, [0, 2]], (chance[:2, :3] - wanted)[:, [0, 2]],
                               atol=1e-5)
    assert not gradient[:, [1, 3]].any() and not gradient[2].any()
    assert entropy.asscalar() == pytest.approx(
        sum(slow_entropy(logits.asnumpy()[:2], classes[:2], [1, 0, 1])), rel=1e-4)


# ---- networks -----------------------------------------------------------------------------------

def network(recipe=RECIPE, comm=None):
    """Returns a tiny network of the recipe's conventions."""
    name = "detectron2" if recipe.class_loss == "softmax" else "detectron2+sigmoid"
    return rcnn("mask_rcnn", get_model("resnest_tiny", features_only=True), channels=8,
                classes=recipe.classes, fc_channels=8, conventions=name, box_head="2fc")


def fresh(**changes):
    net = network(dataclasses.replace(RECIPE, **changes))
    initialize(net)
    return net


def test_a_recipe_says_how_classes_are_scored(monkeypatch):
    asked = []
    monkeypatch.setattr(detector, "detector", lambda name, get_model, **options:
                        asked.append((options["conventions"], options["classes"])))
    for loss in ("softmax", "sigmoid", "federated"):
        detector.build_detector(dataclasses.replace(RECIPE, class_loss=loss, score_threshold=1e-4))
    assert [(each.name, each.class_scores) for each, _ in asked] == [
        ("detectron2", "softmax"), *2 * [("detectron2+sigmoid", "sigmoid")]]
    assert all(each.score_threshold == 1e-4 and count == 12 for each, count in asked)
    with pytest.raises(UserError, match="federated is not offered for panoptic"):
        PanopticRecipe(network="panoptic_fpn_resnest50_coco", source="", class_loss="federated")


def test_scores_are_sigmoids_and_fresh_ones_a_hundredth():
    net = fresh()
    logits = nd.array([[0.0, math.log(3), -9, 0]])
    np.testing.assert_allclose(net._probabilities(nd, logits).asnumpy()[0, :2], [0.5, 0.75],
                               rtol=1e-6)
    bias = net.stages[0].predictor.logits.bias.data()
    np.testing.assert_allclose(nd.sigmoid(bias).asnumpy(), np.full(13, 0.01), rtol=1e-5)
    net.reset_class(["ant", "bee"])
    assert nd.sigmoid(net.stages[0].predictor.logits.bias.data())[0].asscalar() == \
        pytest.approx(0.01)
    assert not fresh(class_loss="softmax").stages[0].predictor.logits.bias.data().asnumpy().any()


def test_a_file_scored_by_sigmoid_is_refused_by_a_softmax_network(tmp_path):
    save_parameters(fresh(), tmp_path / "net.params")
    load_parameters(fresh(class_loss="sigmoid"), tmp_path / "net.params")
    with pytest.raises(UserError, match=r"conventions 'detectron2\+sigmoid', the net has"):
        load_parameters(fresh(class_loss="softmax"), tmp_path / "net.params")
    assert conventions("mmdetection+sigmoid").class_scores == "sigmoid"
    with pytest.raises(UserError, match="conventions must be one of detectron2"):
        conventions("nobody+sigmoid")

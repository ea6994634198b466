"""Conversion of GluonCV's published detectors, which compute the same here."""
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from detector_checkpoints import equal

from gluon_resnest.errors import UserError
from gluon_resnest.interop import checkpoints, convert
from gluon_resnest.interop.weights import load_parameters
from gluon_resnest.models.detection.build import detector
from gluon_resnest.zoo import get_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import convert_weights  # noqa: E402


@pytest.fixture(scope="module")
def theirs():
    """Returns GluonCV's detector on ResNeSt-50 with random parameters and statistics."""
    model_zoo = pytest.importorskip("gluoncv.model_zoo", reason="needs gluoncv")
    net = model_zoo.get_model("faster_rcnn_fpn_syncbn_resnest50_coco", pretrained_base=False,
                              num_devices=1)
    net.initialize()
    # Two passes fix the deferred shapes; the whole network would take long.
    maps = net.features(mx.nd.zeros((1, 3, 64, 64)))
    net.rpn.rpn_head(maps[0])
    features = net.box_features(mx.nd.zeros((1, 256, 7, 7)))
    net.class_predictor(features)
    net.box_predictor(features)
    random = np.random.RandomState(0)
    for name, param in net.collect_params().items():
        if name.endswith(("gamma", "var")):
            param.set_data(mx.nd.array(random.uniform(0.5, 1.5, param.shape)))
        elif "anchor" not in name:
            deviation = 0.1 if len(param.shape) == 1 else (2 / np.prod(param.shape[1:])) ** 0.5
            param.set_data(mx.nd.array(random.normal(0, deviation, param.shape)))
    return net


def close(found, expected):
    """Agreement within 3e-4 of the largest: an epsilon of 1e-5 in the pyramid makes 1.3e-3."""
    return (found - expected).abs().max() <= 3e-4 * expected.abs().max()


def test_gluoncvs_detector_computes_the_same_after_conversion(theirs, tmp_path):
    source, target = str(tmp_path / "theirs.params"), str(tmp_path / "ours.params")
    theirs.save_parameters(source)
    convert_weights.main([source, target])
    file = checkpoints.read_weights(source)
    done = convert.to_gluon(file.tensors)
    assert done.call == ("detector('faster_rcnn_fpn_resnest50_coco', get_model, classes=80, "
                         "conventions='gluoncv', norms='batch', box_head='4conv1fc')")
    assert set(done.dropped) == {f"rpn.anchor_generator.{level}.anchors" for level in range(5)}
    net = eval(done.call, {"detector": detector, "get_model": get_model})
    load_parameters(net, target)
    image = mx.nd.array(np.random.RandomState(1).rand(1, 3, 64, 96))
    maps, found = theirs.features(image), net.features(image)
    for ours, other in zip(found, maps):
        assert close(ours, other)
    pooled = mx.nd.array(np.random.RandomState(2).rand(2, 256, 7, 7))
    features = theirs.box_features(pooled)
    logits, deltas = net.stages[0](pooled)
    expected = theirs.class_predictor(features)
    assert close(logits[:, :80], expected[:, 1:]) and close(logits[:, 80], expected[:, 0])
    assert close(deltas.reshape((2, -1)), theirs.box_predictor(features))
    scores, moves, anchors = net.rpn(*maps)
    for level, feature_map in enumerate(maps):
        hidden = theirs.rpn.rpn_head.conv1(feature_map)
        for ours, layer in ((scores, theirs.rpn.rpn_head.score), (moves, theirs.rpn.rpn_head.loc)):
            assert close(ours[level].reshape((-1,)),
                         layer(hidden).transpose((0, 2, 3, 1)).reshape((-1,)))
        assert close(anchors[level], theirs.rpn.anchor_generator[level](feature_map))
    small = [each / each.abs().max() for each in maps]      # or boxes leave the image
    _, proposed = theirs.rpn(image, *small)
    corners = proposed[0].asnumpy()
    corners = corners[(corners[:, 2:] > corners[:, :2]).all(axis=1)]       # ours have an area
    boxes, _ = net.test_proposals(mx.nd.array([[64, 96]]), *net.rpn(*small))
    assert len(corners) > 100 and boxes.shape[1] == 1000
    np.testing.assert_allclose(boxes[0, :len(corners)].asnumpy(), corners, atol=1e-2)
    back = convert.from_gluon(done.tensors, "gluoncv", "gluoncv")
    # The pyramid's norms have scales that its network ignores (fix_gamma): they come back as 1.
    assert equal(back, {
        name: np.ones_like(value) if name.startswith("features.P") and name.endswith("gamma")
        else value for name, value in file.tensors.items() if name not in done.dropped})


def test_gluoncvs_detector_with_other_anchors_is_refused(theirs, tmp_path):
    source = str(tmp_path / "theirs.params")
    theirs.save_parameters(source)
    tensors = checkpoints.read_weights(source).tensors
    tensors["rpn.anchor_generator.2.anchors"] = tensors["rpn.anchor_generator.2.anchors"] * 2
    with pytest.raises(UserError, match="anchors of level p4 differ from those of the conventions"):
        convert.to_gluon(tensors)

import math

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.anchors import base_anchors, grid_anchors
from gluon_resnest.models.detection.conventions import DETECTRON2, GLUONCV, MMDETECTION, conventions


def slow_anchors(height, width, stride, size, convention):
    """Each framework's definition, one anchor at a time."""
    found = []
    for row in range(height):
        for column in range(width):
            for ratio in (0.5, 1.0, 2.0):
                if convention is GLUONCV:
                    w = round(math.sqrt(stride * stride / ratio))
                    h = round(w * ratio)
                    w, h = w * size / stride - 1, h * size / stride - 1
                    x, y = (stride - 1) / 2, (stride - 1) / 2
                else:
                    h = size * math.sqrt(ratio)
                    w = size * math.sqrt(1 / ratio)
                    x = y = 0
                x, y = x + column * stride, y + row * stride
                found.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return found


@pytest.mark.parametrize("convention", [DETECTRON2, MMDETECTION, GLUONCV], ids=lambda c: c.name)
@pytest.mark.parametrize("stride, size", [(4, 32), (64, 512)])
def test_anchors_equal_the_slow_twin(convention, stride, size):
    base = base_anchors(stride, size, convention)
    found = grid_anchors(nd, nd.zeros((2, 1, 3, 5)), stride, base).asnumpy()
    np.testing.assert_allclose(found[0], slow_anchors(3, 5, stride, size, convention), rtol=1e-5,
                               atol=1e-4)


def test_hand_numbers():
    half = [11.3137, 22.6274]
    np.testing.assert_allclose(base_anchors(4, 32, DETECTRON2), [
        [-half[1], -half[0], half[1], half[0]], [-16, -16, 16, 16],
        [-half[0], -half[1], half[0], half[1]]], atol=1e-4)
    np.testing.assert_allclose(base_anchors(16, 32, GLUONCV)[1], [-8, -8, 23, 23])


def test_legacy_anchors_are_those_of_gluoncv():
    anchor = pytest.importorskip("gluoncv.model_zoo.rcnn.rpn.anchor")
    generator = anchor.RPNAnchorGenerator(8, 16, (0.5, 1, 2), (4,), (6, 7))
    generator.initialize()
    theirs = generator(nd.zeros((1, 1, 4, 5))).asnumpy()
    base = base_anchors(8, 64, GLUONCV)
    np.testing.assert_allclose(grid_anchors(nd, nd.zeros((1, 1, 4, 5)), 8, base).asnumpy(), theirs)


def test_one_graph_serves_maps_of_all_sizes():
    class Grid(nn.HybridBlock):
        def hybrid_forward(self, F, x):
            return grid_anchors(F, x, 8, base_anchors(8, 64, DETECTRON2))

    grid = Grid()
    grid.hybridize()
    for shape in ((1, 2, 3, 4), (2, 2, 6, 1)):
        x = mx.nd.zeros(shape)
        np.testing.assert_array_equal(
            grid(x).asnumpy(),
            grid_anchors(nd, x, 8, base_anchors(8, 64, DETECTRON2)).asnumpy())


def test_unknown_conventions_are_refused():
    with pytest.raises(UserError, match="must be one of detectron2, mmdetection, gluoncv.*did you"):
        conventions("detectron")
    assert conventions(GLUONCV) is GLUONCV

"""Bilinear resizing."""
import pytest
from mxnet import nd

from gluon_resnest.errors import UserError
from gluon_resnest.models.detection.panoptic_inference import enlarged
from gluon_resnest.models.resizing import MAX_SIDE
from gluon_resnest.models.whole_image import WholeImage


def test_the_longest_side_is_possible():
    assert enlarged(nd.ones((1, 1, 2)), (1, 2), (1, MAX_SIDE)).shape == (1, 1, MAX_SIDE)


def test_a_longer_side_is_a_sentence():
    message = rf"an image of 1 x {MAX_SIDE + 1} px is too long, expected at most {MAX_SIDE} px"
    with pytest.raises(UserError, match=message):
        enlarged(nd.ones((1, 1, 2)), (1, 2), (1, MAX_SIDE + 1))
    whole = WholeImage(lambda images: images, window_px=1, scales=(0.001,))
    with pytest.raises(UserError, match=message):
        whole.labels(nd.ones((3, 1, MAX_SIDE + 1)).asnumpy())

"""Run by tests/test_rcnn_workers.py in one and two workers: `detection_trials.py FOLDER`."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, nd

from gluon_resnest import get_model
from gluon_resnest.engine.comm import connect
from gluon_resnest.models.detection.build import rcnn
from gluon_resnest.models.detection.conventions import DETECTRON2
from gluon_resnest.models.detection.targets import Objects

SMALL = replace(DETECTRON2, pre_nms_train=30, post_nms_train=40, pre_nms_test=20,
                post_nms_test=20, roi_samples=8, rpn_samples=16)
OBJECTS = [Objects(np.array([[8, 8, 40, 40]], np.float32), np.array([1]),
                   np.ones((1, 64, 96), np.uint8)),
           Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64),
                   np.zeros((0, 64, 96), np.uint8))]


def main(folder):
    comm = connect()
    workers = {"workers": comm}
    backbone = get_model("resnest_tiny", features_only=True, dropblock=0.0, norm_layer="sync",
                         norm_kwargs=workers)
    net = rcnn("cascade_mask_rcnn", backbone, classes=2, conventions=SMALL, channels=8,
               fc_channels=16, norms="sync", norm_kwargs=workers, frozen_stages=0)
    mx.random.seed(1)
    np.random.seed(1)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    own = list(range(comm.rank, len(OBJECTS), comm.size))
    images = np.random.RandomState(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    for _ in range(2):
        with autograd.record():
            losses = net.losses(nd.array(images[own]), np.array([[64, 96]] * len(own)),
                                [OBJECTS[i] for i in own],
                                [np.random.default_rng(i) for i in own])
            total = sum(loss.total for loss in losses.values())
        total.backward()
    gradient = net.features.fpn.laterals[0].conv.weight.grad().asnumpy()
    result = comm.total({"gradient": gradient.astype(np.float64),
                         **{name: np.array([loss.total.asscalar(), loss.count])
                            for name, loss in losses.items()}})
    (Path(folder) / f"{comm.rank}.json").write_text(
        json.dumps({name: value.ravel().tolist() for name, value in result.items()}))
    comm.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])

"""Writes deploy graphs as ONNX and what the networks say in MXNet: write_onnx.py FOLDER.

Runs in the environment of the package; check_openvino.py reads the files.
"""
import sys
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnest import zoo
from gluon_resnest.interop.deploy.export import Plan, export_deployment
from gluon_resnest.interop.deployed import Card
from gluon_resnest.interop.pose import PoseCard
from gluon_resnest.interop.segmentation import SegmentationCard
from gluon_resnest.models.resnest import initialize

SHAPES = ((1, 3, 96, 64), (2, 3, 128, 160))


def networks():
    """Yields (net, card): each task's, and splits of one, two and four."""
    for name in ("resnest14", "resnest14_1s1x64d", "resnest14_fast_4s2x40d", "resnet50_v1b"):
        yield zoo.get_model(name, classes=7), Card(name, 7, 96)
    yield zoo.pose_model("resnest14"), PoseCard("simple_pose_resnest14", 96, 64)
    for head in ("deeplab", "deeplabplus", "fcn"):
        name = f"{head}_resnest_tiny"
        yield (zoo.segmentation_model(name, 5).without_auxiliary(), SegmentationCard(name, 5, 96))


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for net, card in networks():
        initialize(net)
        net(mx.nd.zeros(SHAPES[0]))     # some networks learn their shapes from it
        for name, parameter in net._collect_params_with_prefix().items():
            if name.endswith(("gamma", "running_var")):
                values = rng.uniform(0.5, 1.0, parameter.shape)
            elif name.endswith(("beta", "bias", "running_mean")):
                values = rng.normal(0, 0.1, parameter.shape)
            else:
                continue
            parameter.set_data(mx.nd.array(values * (0.3 if "bn3.gamma" in name else 1)))
        export_deployment(net, folder / card.model, card, Plan("onnx"))
        inputs = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
        outputs = [net(mx.nd.array(each)).asnumpy() for each in inputs]
        np.savez(folder / f"{card.model}.npz", *inputs, *outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

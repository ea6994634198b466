"""Conversion of pose networks of mmpose, and of heads that are left out."""
import sys
from pathlib import Path

import numpy as np
import pytest
from detector_checkpoints import TINY, Listing, checkpoint, equal

from gluon_resnest.errors import UserError
from gluon_resnest.interop import checkpoints, convert
from gluon_resnest.interop.weights import load_parameters
from gluon_resnest.zoo import pose_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import convert_weights  # noqa: E402


def listed_pose(head):
    """Returns the (their name, our name, shape) of every tensor of mmpose's SimplePose."""
    out = Listing()
    for number, (inputs, channels) in enumerate(((3, 8), (8, 8), (8, 16))):
        out.layer(f"backbone.stem.{number}.conv", f"backbone.conv1.{3 * number}",
                  (channels, inputs, 3, 3), bias=False)
        out.norm(f"backbone.stem.{number}.bn",
                 "backbone.bn1" if number == 2 else f"backbone.conv1.{3 * number + 1}", channels)
    inputs = 16
    for stage, width in ((1, 8), (2, 16), (3, 32), (4, 64)):
        name, shortcut = f"backbone.layer{stage}.0.", 0 if stage == 1 else 1
        for number, shape in ((1, (width, inputs, 1, 1)), (3, (4 * width, width, 1, 1))):
            out.layer(f"{name}conv{number}", f"{name}conv{number}", shape, bias=False)
            out.norm(f"{name}bn{number}", f"{name}bn{number}", shape[0])
        out.layer(f"{name}conv2.conv", f"{name}conv2.conv", (2 * width, width // 2, 3, 3), False)
        out.norm(f"{name}conv2.bn0", f"{name}conv2.bn", 2 * width)
        out.layer(f"{name}conv2.fc1", f"{name}conv2.fc1", (32, width, 1, 1))
        out.norm(f"{name}conv2.bn1", f"{name}conv2.bn1", 32)
        out.layer(f"{name}conv2.fc2", f"{name}conv2.fc2", (2 * width, 32, 1, 1))
        out.layer(f"{name}downsample.{shortcut}", f"{name}downsample.1",
                  (4 * width, inputs, 1, 1), bias=False)
        out.norm(f"{name}downsample.{shortcut + 1}", f"{name}downsample.2", 4 * width)
        inputs = 4 * width
    for number in range(3):
        out.layer(f"{head}.deconv_layers.{3 * number}", f"deconv_layers.{3 * number}",
                  (inputs, 256, 4, 4), bias=False)
        out.norm(f"{head}.deconv_layers.{3 * number + 1}", f"deconv_layers.{3 * number + 1}", 256)
        inputs = 256
    out.layer(f"{head}.final_layer", "final_layer", (5, 256, 1, 1))
    return out.rows


@pytest.mark.parametrize("head", ["head", "keypoint_head"])
def test_pose_networks_of_mmpose_convert_whole(tmp_path, head, capsys):
    rows = listed_pose(head)
    theirs = {name: np.random.randn(*shape).astype(np.float32) for name, _, shape in rows}
    source, target = str(tmp_path / "theirs.pth"), str(tmp_path / "ours.params")
    checkpoints.write_weights(source, theirs, "torch", {})
    convert_weights.main([source, target, "--model", TINY])
    assert "network   simple_pose_resnest_tiny\nbuild     pose_model('resnest_tiny', 5)\n" in (
        capsys.readouterr().out)
    net = pose_model(TINY, 5)
    load_parameters(net, target)
    for name, ours, _ in rows:
        np.testing.assert_array_equal(net._collect_params_with_prefix()[ours].data().asnumpy(),
                                      theirs[name], err_msg=name)
    convert_weights.main([target, source, "--model", TINY, "--to", "mmpose"])
    assert equal(checkpoints.read_weights(source).tensors, {
        name.replace("keypoint_head", "head"): value for name, value in theirs.items()})
    del theirs[f"{head}.deconv_layers.4.running_var"]
    with pytest.raises(UserError, match=f"1 missing: {head}.deconv_layers.4.running_var"):
        convert.to_gluon(theirs, model=TINY)


def test_heads_of_mmsegmentation_are_dropped_with_the_reason():
    theirs, _ = checkpoint("mmdet", "faster_rcnn")
    theirs = {name: value for name, value in theirs.items() if name.startswith("backbone.")}
    theirs["decode_head.bottleneck.conv.weight"] = np.zeros((2, 2, 3, 3), np.float32)
    done = convert.to_gluon(theirs, model=TINY)
    assert "other corners than ours" in done.dropped["decode_head.bottleneck.conv.weight"]
    assert done.model == TINY

"""Names of the layouts, against lists written by hand, and their recognition."""
import sys

import pytest

from gluon_resnest.errors import UserError
from gluon_resnest.interop import torch_names
from gluon_resnest.interop.torch_names import BY_NAME, LAYOUTS, Naming, detect, written

NORM = ("gamma", "beta", "running_mean", "running_var")
TORCH_NORM = ("weight", "bias", "running_mean", "running_var")


def norms(names, leaves):
    return [f"{name}.{leaf}" for name in names for leaf in leaves]


# Of every layout: stem, block, shortcut, each as (weights and biases, norms), in the same order.
STEM = {
    "gluon": (["conv1.0.weight", "conv1.3.weight", "conv1.6.weight"],
              ["conv1.1", "conv1.4", "bn1"]),
    "torch": (["conv1.0.weight", "conv1.3.weight", "conv1.6.weight"],
              ["conv1.1", "conv1.4", "bn1"]),
    "mmdet": (["stem.0.weight", "stem.3.weight", "stem.6.weight"],
              ["stem.1", "stem.4", "stem.7"]),
    "mmpretrain": (["stem.0.conv.weight", "stem.1.conv.weight", "stem.2.conv.weight"],
                   ["stem.0.bn", "stem.1.bn", "stem.2.bn"]),
    "detectron2": (["stem.conv1_1.weight", "stem.conv1_2.weight", "stem.conv1_3.weight"],
                   ["stem.conv1_1.norm", "stem.conv1_2.norm", "stem.conv1_3.norm"]),
}
_ATTENTION = ["conv2.conv.weight", "conv2.fc1.weight", "conv2.fc1.bias", "conv2.fc2.weight",
              "conv2.fc2.bias"]
_CONVS = ["conv1.weight", "conv3.weight"] + _ATTENTION
_TORCH_BLOCK = (_CONVS, ["bn1", "bn3", "conv2.bn0", "conv2.bn1"])
BLOCK = {
    "gluon": (_CONVS, ["bn1", "bn3", "conv2.bn", "conv2.bn1"]),
    "torch": _TORCH_BLOCK, "mmdet": _TORCH_BLOCK, "mmpretrain": _TORCH_BLOCK,
    "detectron2": (_CONVS, ["conv1.norm", "conv3.norm", "conv2.bn0", "conv2.bn1"]),
}


def shortcut(layout, stage):
    if layout == "detectron2":
        return "shortcut.weight", "shortcut.norm"
    if layout == "mmpretrain" and stage == 1:
        return "downsample.0.weight", "downsample.1"
    return "downsample.1.weight", "downsample.2"


def listed(layout, prefix=""):
    """Lists the names of a network of two blocks a stage as one of the systems spells them."""
    leaves = NORM if layout == "gluon" else TORCH_NORM
    names = STEM[layout][0] + norms(STEM[layout][1], leaves)
    for stage in (1, 2, 3, 4):
        where = f"res{stage + 1}" if layout == "detectron2" else f"layer{stage}"
        for block in (0, 1):
            inner = BLOCK[layout][0] + norms(BLOCK[layout][1], leaves)
            if block == 0:
                weight, norm = shortcut(layout, stage)
                inner += [weight] + norms([norm], leaves)
            names += [f"{where}.{block}.{name}" for name in inner]
    return [prefix + name for name in names]


@pytest.mark.parametrize("layout", ["gluon", "torch", "mmdet", "mmpretrain", "detectron2"])
def test_every_name_of_every_stage_is_that_of_the_system(layout):
    naming = Naming(BY_NAME[layout], "")
    assert [naming.theirs(name) for name in listed("gluon")] == listed(layout)


@pytest.mark.parametrize("layout, name", [
    ("torch", "fc.weight"), ("mmpretrain", "head.fc.weight"), ("gluon", "fc.weight"),
    ("gluon-symbol", "dense0_weight")])
def test_the_classifier_has_the_name_of_the_system(layout, name):
    assert written(layout).theirs("fc.weight") == name


@pytest.mark.parametrize("ours, theirs", [
    ("conv1.3.weight", "conv1_weight"), ("bn1.running_var", "batchnorm2_running_var"),
    ("layer1.0.conv1.weight", "layers1_conv0_weight"),
    ("layer1.0.conv2.conv.weight", "layers1_conv1_weight"),
    ("layer1.0.conv2.fc2.bias", "layers1_conv3_bias"),
    ("layer3.2.conv3.weight", "layers3_conv14_weight"),
    ("layer3.2.conv2.bn1.gamma", "layers3_batchnorm10_gamma"),
    ("layer2.0.downsample.1.weight", "down2_conv0_weight"),
    ("layer2.0.downsample.2.beta", "down2_batchnorm0_beta")])
def test_exported_graphs_number_the_layers_of_a_stage(ours, theirs):
    assert BY_NAME["gluon-symbol"].theirs(ours) == theirs


@pytest.mark.parametrize("layout", [layout.name for layout in LAYOUTS])
def test_no_two_names_become_one(layout):
    theirs = [written(layout).theirs(name) for name in listed("gluon") + ["fc.weight", "fc.bias"]]
    assert len(set(theirs)) == len(theirs)


@pytest.mark.parametrize("layout, prefix", [
    ("gluon", ""), ("torch", ""), ("torch", "module."), ("torch", "pretrained."),
    ("torch", "module.pretrained."), ("mmdet", ""), ("mmdet", "backbone."),
    ("mmpretrain", "backbone."), ("mmpretrain", ""), ("detectron2", ""),
    ("detectron2", "backbone.bottom_up.")])
def test_layout_and_prefix_are_recognised_from_the_names(layout, prefix):
    assert detect(listed(layout, prefix)) == Naming(BY_NAME[layout], prefix)


def test_a_sibling_of_the_backbone_loses_its_prefix():
    naming = Naming(BY_NAME["mmpretrain"], "module.backbone.")
    assert naming.theirs("fc.bias") == "module.head.fc.bias"
    assert naming.theirs("bn1.gamma") == "module.backbone.stem.2.bn.weight"


@pytest.mark.parametrize("layout, name, dropped", [
    ("torch", "layer1.0.bn1.num_batches_tracked", True), ("torch", "head.aspp.b0.0.weight", True),
    ("torch", "module.auxlayer.block.0.weight", True), ("torch", "layer1.0.bn9.weight", False),
    ("mmdet", "neck.fpn_convs.0.conv.bias", True),
    ("mmdet", "roi_head.bbox_head.fc_cls.bias", True),
    ("mmdet", "decode_head.conv_seg.weight", True), ("mmdet", "backbone.extra.weight", False),
    ("mmpretrain", "head.deconv_layers.0.weight", True),
    ("mmpretrain", "keypoint_head.final_layer.bias", True), ("mmpretrain", "head.fc.bias", False),
    ("detectron2", "pixel_mean", True), ("detectron2", "backbone.fpn_output3.norm.bias", True),
    ("detectron2", "roi_heads.box_head.0.fc1.weight", True),
    ("detectron2", "backbone.bottom_up.res3.0.conv2_offset.weight", False),
    ("gluon", "layer1.0.bn1.num_batches_tracked", False)])
def test_only_known_names_are_dropped(layout, name, dropped):
    assert bool(written(layout).drops(name)) is dropped


def test_names_of_another_architecture_are_refused():
    with pytest.raises(UserError, match="fit none of the layouts detectron2, mmpretrain, mmdet"):
        detect(["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"])


def test_two_networks_in_one_file_are_refused():
    with pytest.raises(UserError, match="2 torch networks, under '', 'module.'"):
        detect(listed("torch") + listed("torch", "module."))


def test_the_rules_need_no_torch():
    assert torch_names.LAYOUTS and "torch" not in sys.modules

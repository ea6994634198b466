"""timm's ResNeSts with weights by rule; runs in the environment of `make peers`."""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # A torchvision whose compiled part does not fit this torch still imports once these are known.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}",
                             "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
from numpy_resnest import ruled, ruled_image  # noqa: E402

CLASSES = 16
NAMES = ("resnest14d", "resnest26d", "resnest50d", "resnest101e", "resnest200e", "resnest269e",
         "resnest50d_1s4x24d", "resnest50d_4s2x40d")
SIZES = ((64, 96), (97, 65))


def ruled_model(name, **options):
    """Builds a timm model in evaluation mode whose tensors follow `ruled`."""
    model = timm.create_model(name, num_classes=CLASSES, **options).eval()
    model.load_state_dict({key: value if key.endswith("num_batches_tracked")
                           else torch.from_numpy(ruled(key, tuple(value.shape)))
                           for key, value in model.state_dict().items()})
    return model


def with_published_dilation(model):
    """Gives timm's dilated first blocks what the published network has there.

    timm leaves out the stride-1 average pooling at the head of a dilated stage, and averages 2x2
    on the shortcut where the published network, keeping its size, averages nothing.
    """
    for stage in (model.layer3, model.layer4):
        stage[0].avd_last = torch.nn.AvgPool2d(3, 1, padding=1)
        stage[0].downsample[0] = torch.nn.Identity()
    return model


def logits(model, size):
    """Returns the (16,) logits of the image of the rule."""
    with torch.no_grad():
        return model(torch.from_numpy(ruled_image(*size)))[0].numpy()

"""What the papers print about the networks of their tables, as data; nothing here is measured."""
from collections import namedtuple

# The second names its version: the first one printed other accuracies.
PAPER, EFFICIENTNET = "ResNeSt paper", "Tan and Le 2019 (arXiv 1905.11946v5), table 2"

# A printed row. model: zoo name, or None where only the numbers are known here; params in 1e6 and
# gmacs in 1e9 as printed (there called FLOPs), top1 in per cent at crop_px; None: not printed.
Row = namedtuple("Row", "label model table params gmacs crop_px top1")


def _twice(table, label, model, params, gmacs, top1, top1_320):
    """Table 3 prints two crops."""
    return [Row(label, model, table, params, gmacs, 224, top1),
            Row(label, model, table, params, gmacs, 320, top1_320)]


TABLE3 = [row for values in [
    ("ResNet-50", "resnet50", 25.5, 4.14, 76.15, 76.86),
    ("ResNeXt-50", "resnext50_32x4d", 25.0, 4.24, 77.77, 78.95),
    ("SENet-50", "senet50", 27.7, 4.25, 78.88, 80.29),
    ("ResNetD-50", "resnet50d", 25.6, 4.34, 79.15, 79.70),
    ("SKNet-50", "sknet50", 27.5, 4.47, 79.21, 80.68),
    ("ResNeSt-50-fast", "resnest50_fast_2s1x64d", 27.5, 4.34, 80.64, 81.43),
    ("ResNeSt-50", "resnest50", 27.5, 5.39, 81.13, 81.82),
    ("ResNet-101", "resnet101", 44.5, 7.87, 77.37, 78.17),
    ("ResNeXt-101", "resnext101_32x4d", 44.3, 7.99, 78.89, 80.14),
    ("SENet-101", "senet101", 49.2, 8.00, 79.42, 81.39),
    ("ResNetD-101", "resnet101d", 44.6, 8.06, 80.54, 81.26),
    ("SKNet-101", "sknet101", 48.9, 8.46, 79.81, 81.60),
    ("ResNeSt-101-fast", "resnest101_fast_2s1x64d", 48.2, 8.07, 81.97, 82.76),
    ("ResNeSt-101", "resnest101", 48.3, 10.2, 82.27, 83.00),
] for row in _twice(f"{PAPER}, table 3", *values)]

TABLE2 = [Row(label, f"resnest50_fast_{label}", f"{PAPER}, table 2", params, gmacs, 224, top1)
          for label, params, gmacs, top1 in [
              ("0s1x64d", 25.6, 4.34, 79.41), ("1s1x64d", 26.3, 4.34, 80.35),
              ("2s1x64d", 27.5, 4.34, 80.64), ("4s1x64d", 31.9, 4.35, 80.90),
              ("2s2x40d", 26.9, 4.38, 81.00)]]

TABLE4 = [Row(label, model, f"{PAPER}, table 4", params, None, crop_px, top1)
          for label, model, params, crop_px, top1 in [
              ("ResNeSt-101", "resnest101", 48, 256, 83.0),
              ("EfficientNet-B4", "efficientnet_b4", 19, 380, 83.0),
              ("SENet-154", None, 146, 320, 82.7),
              ("NASNet-A", None, 89, 331, 82.7),
              ("AmoebaNet-A", None, 87, 299, 82.8),
              ("ResNeSt-200", "resnest200", 70, 320, 83.9),
              ("EfficientNet-B5", "efficientnet_b5", 30, 456, 83.7),
              ("AmoebaNet-C", None, 155, 299, 83.5),
              ("ResNeSt-269", "resnest269", 111, 416, 84.5),
              ("GPipe", None, 557, None, 84.3),
              ("EfficientNet-B7", "efficientnet_b7", 66, 600, 84.4)]]

EFFICIENTNETS = [Row(f"EfficientNet-B{i}", f"efficientnet_b{i}", EFFICIENTNET, *values)
                 for i, values in enumerate([
                     (5.3, 0.39, 224, 77.1), (7.8, 0.70, 240, 79.1), (9.2, 1.0, 260, 80.1),
                     (12, 1.8, 300, 81.6), (19, 4.2, 380, 82.9), (30, 9.9, 456, 83.6),
                     (43, 19, 528, 84.0), (66, 37, 600, 84.3)])]

# The paper's table 4 prints no FLOPs; these are from table 2 of the EfficientNet paper.
SEARCHED_GMACS = {"SENet-154": 42, "NASNet-A": 24, "AmoebaNet-A": 23, "AmoebaNet-C": 41}

# CIFAR-10 report, tables I and II: millions of parameters with 10 classes.
REPORT = [("ResNet-14-0s1x64d", "resnet14_0s1x64d", 8.03),
          ("ResNet-14-1s1x64d", "resnet14_1s1x64d", 8.21),
          ("ResNeSt-14-0s1x64d", "resnest14_0s1x64d", 8.06),
          ("ResNeSt-14-1s1x64d", "resnest14_1s1x64d", 8.23),
          ("ResNeSt-14-1s1x40d", "resnest14_1s1x40d", 5.44),
          ("ResNeSt-14-1s2x64d", "resnest14_1s2x64d", 13.63),
          ("ResNeSt-14-2s1x64d, ResNeSt-14", "resnest14_2s1x64d", 8.58),
          ("ResNeSt-32", "resnest32", 16.56),
          ("ResNeSt-50", "resnest50_fast_2s1x64d", 25.45),
          ("ResNeSt-101", "resnest101_fast_2s1x64d", 46.14),
          ("ResNet-18", "resnet18", 11.18),
          ("EfficientNet b0", "efficientnet_b0", 4.02),
          ("EfficientNet b1", "efficientnet_b1", 6.53),
          ("EfficientNet b2", "efficientnet_b2", 7.72),
          ("EfficientNet b3", "efficientnet_b3", 10.71)]

# What timm has of the same architecture: its name, parameters, and multiply-accumulates of its
# convolutions and dense layers on one 224x224 image; measured on timm 1.0.31.
TIMM = {
    "resnet18": ("resnet18", 11689512, 1814073344),
    "resnet50": ("resnet50", 25557032, 4089184256),
    "resnet101": ("resnet101", 44549160, 7801405440),
    "resnet50d": ("resnet50d", 25576264, 4328824832),
    "resnet101d": ("resnet101d", 44568392, 8041046016),
    "resnext50_32x4d": ("resnext50_32x4d", 25028904, 4230479872),
    "resnext101_32x4d": ("resnext101_32x4d", 44177704, 7969996800),
    "senet50": ("seresnext50_32x4d", 27559896, 4232994816),
    "senet101": ("seresnext101_32x4d", 48955416, 7974739968),
    "sknet50": ("skresnext50_32x4d", 27479784, 4462710784),
    "resnest14": ("resnest14d", 10611688, 2749405184),
    "resnest26": ("resnest26d", 17069448, 3623391232),
    "resnest50": ("resnest50d", 27483240, 5371160576),
    "resnest101": ("resnest101e", 48275016, 10200565760),
    "resnest200": ("resnest200e", 70201544, 17408411648),
    "resnest269": ("resnest269e", 110929480, 22434121728),
    "resnest50_fast_4s2x40d": ("resnest50d_4s2x40d", 30417592, 4369060736),
    "resnest50_fast_1s4x24d": ("resnest50d_1s4x24d", 25677000, 4399827456),
    "efficientnet_b0": ("efficientnet_b0", 5288548, 385814752),
    "efficientnet_b1": ("efficientnet_b1", 7794184, 569651680),
    "efficientnet_b2": ("efficientnet_b2", 9109994, 658963440),
    "efficientnet_b3": ("efficientnet_b3", 12233232, 962708240),
    "efficientnet_b4": ("efficientnet_b4", 19341616, 1503710432),
    "efficientnet_b5": ("efficientnet_b5", 30389784, 2356493184),
    "efficientnet_b6": ("efficientnet_b6", 43040704, 3360166848),
    "efficientnet_b7": ("efficientnet_b7", 66347960, 5169865152),
}

"""Tables that are not in the paper: the authors' other pages, OpenMMLab's, the CIFAR-10 report.

The report (ST5229 group project) prints latency and throughput of a T4; here the throughput is
compared with that of its first row.
"""
from gluon_resnest.reproduction.rows import Table, printed, timed, trained

_IMAGENET = "--rec-train train.rec --rec-val val.rec"
_COCO = "--root coco --backbone-weights runs/imagenet/{backbone}"
_ADE = "--root ADEChallengeData2016 --backbone-weights runs/imagenet/{backbone}"
_CITYSCAPES = "--root cityscapes --backbone-weights runs/imagenet/{backbone}"
_CONTEXT = "--root pascal_context --backbone-weights runs/imagenet/{backbone}"
_ENCODING = (("aux_weight", "0.2"),)
_ROUNDED = "rounded there"
_OTHER_RECIPE = "another recipe there"
_SERVER = "COCO's server judges test-dev (docs/detection.md)"
_POSE = ("--train-annotations person_keypoints_train2017.json --train-images train2017 "
         "--val-annotations person_keypoints_val2017.json --val-images val2017 "
         "--backbone-weights runs/imagenet/{backbone}")
_CIFAR = "--data cifar10"
_CIFAR_NOTE = (
    "Measured on CIFAR-10 from JPEG files, which are not quite the report's pixels. The report "
    "prints 8.03 M of ResNet-14, which has 8.036 M. Settings, evaluations in between and what "
    "seeds say about the report's conclusions: [CIFAR-10](cifar10.md#results).")

# (data set, [(head, mIoU in one scale, in six with flip)])
_MMSEGMENTATION = [
    ("citys", [("FCN", 77.56, 78.98), ("PSPNet", 78.57, 79.19), ("DeepLabV3", 79.67, 80.51),
               ("DeepLabV3+", 79.62, 80.27)]),
    ("ade", [("FCN", 45.62, 46.16), ("PSPNet", 45.44, 46.28), ("DeepLabV3", 45.71, 46.59),
             ("DeepLabV3+", 46.47, 47.27)])]

# (network, pixels, images/s): of those that are here.
SPEEDS = [("resnet50", 224, 725.45), ("resnet101", 224, 475.28), ("resnext50_32x4d", 224, 560.70),
          ("resnext101_32x4d", 224, 345.62), ("resnest50", 224, 488.17),
          ("resnest50", 256, 404.84), ("resnest50", 320, 273.74), ("resnest101", 224, 313.29),
          ("resnest101", 256, 265.30), ("resnest101", 320, 176.11), ("resnest200", 320, 102.93),
          ("resnest269", 400, 54.62), ("efficientnet_b0", 224, 806.45),
          ("efficientnet_b1", 240, 588.24)]


def _backbones(values, file, family="", suffix=""):
    """Returns rows of detectors; the second number, if any, is that of masks."""
    return [trained(f"{family} {backbone}", f"{file}/{entry}{suffix}",
                    **dict(zip(("ap", "mask_ap"), numbers)))
            for backbone, entry, *numbers in values]


def _report(values):
    return tuple(trained(name, f"cifar10/{entry}", top1=top1,
                         parameters=parameters, images_per_second=speed)
                 for name, entry, parameters, speed, top1 in values)


TABLES = (
    Table("ablation", "ablation.md: radix, cardinality, width of ResNeSt-50-fast",
          "zhanghang1989/ResNeSt, ablation.md (Gluon column)", tuple(
              trained(name, f"imagenet/resnest50_fast_{name}", top1=top1)
              for name, top1 in [
                  ("1s1x64d", 80.35), ("2s1x64d", 80.65), ("4s1x64d", 80.90), ("1s2x40d", 80.72),
                  ("2s2x40d", 80.84), ("4s2x40d", 81.17), ("1s4x24d", 80.97)]),
          data=_IMAGENET),

    Table("zoo", "The released weights, trained again", "GluonCV's and the authors' model zoo", (
        *(trained(name, f"imagenet/{name}", remark, top1=top1) for name, top1, remark in [
            ("resnest14", 75.75, ""), ("resnest26", 78.68, ""), ("resnest50", 81.04, ""),
            ("resnest101", 82.83, "82.81 in the authors' README"),
            ("resnest200", 83.88, "83.86 in GluonCV's"), ("resnest269", 84.53, "")]),
        *(trained(f"faster {name}", f"faster_rcnn/{name}@gluoncv", ap=ap, ap50=ap50, ap75=ap75)
          for name, ap, ap50, ap75 in [
              ("resnest50", 42.7, 64.1, 46.4), ("resnest101", 44.9, 66.4, 48.9),
              ("resnest269", 46.5, 67.5, 50.7)]),
        *(trained(f"deeplab {name}", f"deeplabv3/{name}_ade", remark, miou=miou, pixacc=pixacc)
          for name, pixacc, miou, remark in [
              ("resnest200", 82.45, 48.36, ""), ("resnest269", 82.62, 47.60, ""),
              ("resnet50", 80.5, 42.5, "42.1 and 80.39 in Table 7")]),
        *(trained(f"citys {name}", f"deeplabv3/{name}_citys", f"{_ROUNDED}: {miou} in Table 7",
                  miou=round(miou, 1), pixacc=pixacc)
          for name, pixacc, miou in [("resnet50", 96.3, 78.72), ("resnet101", 96.4, 79.42)]),
        trained("faster resnest50_dcn", "faster_rcnn/resnest50_dcn",
                "printed in the authors' d2/README", ap=44.11),
    ), data=(("resnest*", _IMAGENET), ("faster *", _COCO), ("deeplab *", _ADE),
             ("citys *", _CITYSCAPES))),

    Table("encoding", "PyTorch-Encoding: segmentation of ADE20K and Pascal Context",
          "zhanghang1989/PyTorch-Encoding, docs/source/model_zoo/segmentation.rst", (
              *(trained(f"ade {name}", f"deeplabv3/{entry}", changes=changes, miou=miou,
                        pixacc=pixacc)
                for name, entry, changes, pixacc, miou in [
                    ("fcn resnest50", "fcn_resnest50_ade", (), 80.18, 42.94),
                    ("resnest50", "resnest50_ade", _ENCODING, 81.17, 45.12),
                    ("resnest101", "resnest101_ade@180", (), 82.07, 46.91),
                    ("resnest200", "resnest200_ade", (), 82.45, 48.36),
                    ("resnest269", "resnest269_ade", _ENCODING, 82.62, 47.60)]),
              *(trained(f"pcontext {name}", f"deeplabv3/{entry}_pcontext", miou=miou,
                        pixacc=pixacc)
                for name, entry, pixacc, miou in [
                    ("fcn resnest50", "fcn_resnest50", 79.19, 51.98),
                    ("resnest50", "resnest50", 80.41, 53.19),
                    ("resnest101", "resnest101", 81.91, 56.49),
                    ("resnest200", "resnest200", 82.50, 58.37),
                    ("resnest269", "resnest269", 83.06, 58.92)]),
          ), data=(("ade *", _ADE), ("pcontext *", _CONTEXT)),
          note="Its commands, on a batch of 16: the auxiliary loss weighs 0.2 ([0071](decisions/"
               "0071-segmentation-loss.md))."),

    Table("mmdetection", "mmdetection's page of ResNeSt",
          "open-mmlab/mmdetection, configs/resnest", (
              *_backbones([("resnest50", "resnest50", 42.0), ("resnest101", "resnest101", 44.5)],
                          "faster_rcnn", "faster", "@mmdetection"),
              *_backbones([("resnest50", "resnest50", 42.6, 38.1),
                           ("resnest101", "resnest101", 45.2, 40.2)],
                          "mask_rcnn", "mask", "@mmdetection"),
              *_backbones([("resnest50", "resnest50", 44.5), ("resnest101", "resnest101", 46.8)],
                          "cascade_rcnn", "cascade", "@mmdetection"),
              *_backbones([("resnest50", "mask_resnest50", 45.4, 39.5),
                           ("resnest101", "mask_resnest101", 47.7, 41.4)],
                          "cascade_rcnn", "cascade mask", "@mmdetection"),
          ), data=_COCO, note="Memory printed there for two images on a GPU, with ResNeSt-50 and "
                              "-101: Faster 4.8 and 7.1 GB, Mask 5.5 and 7.8, Cascade (-101) 8.4, "
                              "Cascade Mask (-101) 10.5."),

    Table("mmsegmentation", "mmsegmentation's page of ResNeSt",
          "open-mmlab/mmsegmentation, configs/resnest; six scales and flip", tuple(
              printed(f"{data} {head}", f"single scale: {single:.2f}", miou=miou)
              for data, values in _MMSEGMENTATION for head, single, miou in values),
          note="All on ResNeSt-101, by networks that differ from ours: no average pooling in "
               "dilated first blocks, ImageNet's usual pixel statistics, 512 channels in ASPP."),

    Table("mmpose", "mmpose's page of ResNeSt", "open-mmlab/mmpose, td-heatmap, COCO val2017", (
        *(trained(f"{network}{size}", f"simple_pose/{network}{size}", _OTHER_RECIPE,
                  **dict(zip(("ap", "ap50", "ap75"), values)))
          for network, size, *values in [
              ("resnest50", "", 72.0, 89.9, 80.0), ("resnest101", "", 72.5, 90.0, 80.7),
              ("resnest50", "@384x288", 73.7, 90.0, 81.1),
              ("resnest101", "@384x288", 74.5, 90.5, 81.8)]),
        *(printed(name, _OTHER_RECIPE, ap=ap, ap50=ap50, ap75=ap75)
          for name, ap, ap50, ap75 in [
              ("resnest200", 73.1, 90.5, 81.2), ("resnest269", 73.7, 90.7, 81.9),
              ("resnest200@384x288", 75.3, 90.7, 82.7), ("resnest269@384x288", 75.4, 90.8, 82.8)]),
    ), data=_POSE, note="There: 210 epochs, batch 512, a rate of 5e-4, persons found by a detector "
                        "of 56.4 AP; here those of Table 8, annotated persons."),

    Table("speeds", "The authors' list of speeds", "zhanghang1989/ResNeSt, issue 112: V100, 16 "
          "images a batch", (
              *(timed(f"{network} at {px}", "infer --paper speeds --device gpu", speed)
                for network, px, speed in SPEEDS),
              *(printed(name, images_per_second=speed) for name, speed in [
                  ("resnet152 at 224", 348.17), ("resnext101_64x4d at 224", 210.02),
                  ("resnest152 at 256", 199.74), ("resnest152 at 320", 132.77)]),
          )),

    Table("slides", "The authors' slides: best results", "slides of the authors, 2020", (
        trained("cascade mask resnest200", "cascade_rcnn/mask_resnest200_dcn@test-dev", _SERVER,
                server="mask_resnest200_dcn@tricks", ap=53.30, mask_ap=47.10),
        trained("cascade mask resnest200 val", "cascade_rcnn/mask_resnest200_dcn@tricks",
                "not in the slides: the same training on val2017 in one scale, d2/README",
                ap=50.91, mask_ap=44.50),
        trained("cascade mask resnest200 val no dcn", "cascade_rcnn/mask_resnest200@tricks",
                "not in the slides: d2/README", ap=50.54, mask_ap=44.21),
        trained("panoptic resnest200", "panoptic_fpn/resnest200",
                "boxes and masks in the authors' d2/README", pq=47.90, ap=51.00, mask_ap=43.68),
        trained("ade20k resnest200", "deeplabv3/resnest200_ade", miou=48.36),
        trained("cityscapes resnest200", "deeplabv3/deeplabplus_resnest200_citys",
                "DeepLabV3+ in the authors' README", miou=82.7),
        printed("cityscapes resnest200 mapillary", "in the authors' README: validation set, "
                "trained with Mapillary, too", miou=83.8),
        printed("cityscapes resnest200 mapillary test", "in the authors' README: test set, which "
                "the data set's server judges", miou=83.3),
        trained("pascal context resnest269", "deeplabv3/resnest269_pcontext",
                "58.92 in the authors' README, rounded in the slides", miou=58.9),
        printed("lvis", "named there as COCO + LVIS challenge of ECCV 2020, without a number; "
                "what can be trained is in the table lvis"),
    ), data=(("cascade mask *", _COCO), ("panoptic *", _COCO), ("ade20k *", _ADE),
             ("cityscapes *", _CITYSCAPES), ("pascal context *", _CONTEXT))),

    Table("lvis", "LVIS v1: Mask and Cascade Mask R-CNN",
          "nothing is published; the settings are assumed (decision 0097)", tuple(
              trained(f"{family} {backbone}{schedule}", f"{entry}{backbone}@lvis{schedule}")
              for family, entry in [("mask", "mask_rcnn/"), ("cascade mask", "cascade_rcnn/mask_")]
              for backbone in ("resnest50", "resnest101")
              for schedule in ("", "_2x", "_federated")), data=_COCO),

    Table("cifar1", "CIFAR-10 report, Table I: 14 layers", "report, Table I", _report([
        ("resnet14_0s1x64d", "resnet14_0s1x64d", 8.03, 8177, 58.08),
        ("resnet14_1s1x64d", "resnet14_1s1x64d", 8.21, 7624, 58.68),
        ("resnest14_0s1x64d", "resnest14_0s1x64d", 8.06, 5826, 62.96),
        ("resnest14_1s1x64d", "resnest14_1s1x64d", 8.23, 7797, 61.21),
        ("resnest14_1s1x40d", "resnest14_1s1x40d", 5.44, 6967, 61.22),
        ("resnest14_1s2x64d", "resnest14_1s2x64d", 13.63, 7646, 62.95),
        ("resnest14_2s1x64d", "resnest14_2s1x64d", 8.58, 6471, 62.64),
    ]), data=_CIFAR, costs=True, note=_CIFAR_NOTE),

    Table("cifar2", "CIFAR-10 report, Table II: other networks", "report, Table II", (
        *_report([
            ("resnest14", "resnest14", 8.58, 5530, 61.68),
            ("resnest32", "resnest32", 16.56, 5678, 59.04),
            ("resnest50", "resnest50", 25.45, 5277, 59.45),
            ("resnest101", "resnest101", 46.14, 3745, 58.18),
            ("resnet18", "resnet18", 11.18, 8016, 58.55),
            ("efficientnet_b0", "efficientnet_b0", 4.02, 6668, 50.72),
            ("efficientnet_b1", "efficientnet_b1", 6.53, 5908, 46.57),
            ("efficientnet_b2", "efficientnet_b2", 7.72, 5871, 43.23),
            ("efficientnet_b3", "efficientnet_b3", 10.71, 4584, 41.80)]),
        trained("resnest14@stronger", "cifar10/resnest14@stronger",
                "not in the report: an aim of this project", top1=90.0),
    ), data=_CIFAR, costs=True, note=_CIFAR_NOTE),

    Table("hotdog", "CIFAR-10 report, section IV.C: fine-tuning on hot dogs",
          "report, section IV.C", (
              *(trained(name, f"finetune/{name}@report", "from ImageNet weights", top1=top1,
                        lacks="weights of ImageNet, which were not to be had here",
                        needs=(("data", "hotdog"), ("weights", f"{name}.*|published")))
                for name, top1 in [("resnest50", 95.0), ("resnet50", 90.7)]),
              *(trained(f"{name} {preset[1:] or 'ours'}", f"finetune/{network}{preset}",
                        f"not in the report: from the weights of cifar1, {settings}",
                        changes=(("crop_px", "64"), ("eval_px", "64")),
                        needs=(("data", "hotdog"), ("weights", network)))
                for preset, settings in [("@report", "its settings"), ("", "ours")]
                for name, network in [("resnest14", "resnest14_2s1x64d"),
                                      ("resnet14", "resnet14_0s1x64d")]),
          ), data=(("resne*50", "--data hotdog --weights {backbone}.params"),
                   ("resne*14 *", "--data hotdog --weights runs/cifar10/{backbone}")),
          note="The report's rows are of Dive into Deep Learning's 2800 pictures; what was run "
               "here is of 400 others, a hundred of them for the test, where guessing gives 50 % "
               "([fine-tuning](finetuning.md#hot-dogs-from-weights-trained-on-cifar-10))."),
)

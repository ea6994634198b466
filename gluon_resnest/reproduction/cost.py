"""What a row would cost in hours of one GPU: the model of `--plan`, with one stated speed.

One V100 trains ResNeSt-50 on 258 images/s of 224 px (docs/plan.md, (a)); a classifier, a pose or a
segmentation network on as many as it has fewer multiply-accumulates at its training size. Detectors
are scaled from GluonCV's log, 27.7 images/s on 8 V100 for Faster R-CNN on ResNeSt-50, by the
multiply-accumulates of the backbone alone. Small images and small networks will be slower than
this model, and evaluation, start and data loading are not in it.
"""
from gluon_resnest import zoo
from gluon_resnest.config import (
    ClassificationRecipe, DetectionRecipe, PoseRecipe, SegmentationRecipe)
from gluon_resnest.engine.plan import Cluster, Workload, estimate

SPEED, FASTER_RCNN_SPEED = 258.0, 27.7 / 8

# 1e9 multiply-accumulates of whole networks on one image, by `tools/analyze_model.py`:
# segmentation at 480 px and stride 8 by head and backbone, and what a pose network at 256x192 adds.
SEGMENTATION_GMACS = {
    "deeplab_resnest50": 155.2, "deeplab_resnest101": 228.5, "deeplab_resnest200": 300.7,
    "deeplab_resnest269": 435.1, "deeplab_resnet50": 158.7, "deeplab_resnet101": 226.9,
    "fcn_resnest50": 133.2, "deeplabplus_resnest200": 317.1}
DECONVOLUTION_GMACS = 1.42

# Training images by the recipes' names; for pose, persons with joints; for COCO, with boxes.
IMAGES = {"imagenet": 1281167, "cifar10": 50000, "ade20k": 20210, "cityscapes": 2975,
          "pascal_context": 4998, "coco": 117266, "lvis": 99388, "coco_persons": 149813,
          "hotdog": 2000}


def gpu_hours(recipe):
    """Returns the hours of one V100 that a recipe's training takes, or None if it is not known."""
    if isinstance(recipe, ClassificationRecipe):
        images = IMAGES.get({1000: "imagenet", 10: "cifar10", 2: "hotdog"}.get(recipe.classes))
        gmacs = zoo.variant(recipe.network).gmacs * (recipe.crop_px / 224) ** 2
    elif isinstance(recipe, SegmentationRecipe):
        images = IMAGES.get(recipe.dataset)
        gmacs = SEGMENTATION_GMACS.get(recipe.network.rpartition("_")[0])
        gmacs = gmacs and gmacs * (recipe.crop_px / 480) ** 2
    elif isinstance(recipe, PoseRecipe):
        images = IMAGES["coco_persons"]
        area = recipe.height * recipe.width
        gmacs = zoo.variant(recipe.network).gmacs * area / 224 ** 2 \
            + DECONVOLUTION_GMACS * area / (256 * 192)
    elif isinstance(recipe, DetectionRecipe):
        images = IMAGES[recipe.dataset]
        gmacs = zoo.variant(zoo.backbone_name(recipe.network)).gmacs * SPEED / FASTER_RCNN_SPEED
    else:
        return None
    if images is None or gmacs is None:
        return None
    speed = SPEED * zoo.variant("resnest50").gmacs / gmacs
    steps = recipe.steps(max(1, images // recipe.batch))
    work = Workload(batch=recipe.batch, steps_per_epoch=steps, epochs=1, parameters=1, values=1,
                    activation_bytes=0)      # one device sends nothing, whatever its size
    return estimate(work, Cluster(images_per_second=speed)).hours

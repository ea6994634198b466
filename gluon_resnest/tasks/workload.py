"""What a training costs in images, values and bytes, for `--plan`; nothing is allocated."""
import math

from mxnet.gluon import nn

from gluon_resnest.data.detection import DIVISOR, longest_px
from gluon_resnest.data.keypoints import JOINTS
from gluon_resnest.data.sampling import TrainPlan
from gluon_resnest.engine.plan import Workload
from gluon_resnest.interop.analysis import analyze
from gluon_resnest.models.detection.rcnn import BOX_SIZE, MASK_SIZE
from gluon_resnest.models.detection.semantic_head import LEVELS
from gluon_resnest.tasks.detector import build_detector, build_panoptic
from gluon_resnest.zoo import get_model, pose_model, segmentation_model


def classification_workload(recipe, cluster):
    """Returns the `Workload` of a ClassificationRecipe.

    Args:
      recipe: a ClassificationRecipe.
      cluster: `engine.plan.Cluster`; says how many images and workers there are.

    Raises:
      UserError: if the batch cannot be divided among the workers.
    """
    steps = _steps(recipe, cluster, order=recipe.data_order, remainder=recipe.remainder)
    net = get_model(recipe.network, classes=recipe.classes)
    return _workload(recipe, net, steps, _bytes(net, recipe.crop_px, recipe.crop_px))


def pose_workload(recipe, cluster):
    """Returns the `Workload` of a PoseRecipe; as `classification_workload`, images are persons."""
    net = pose_model(recipe.network, len(JOINTS))
    return _workload(recipe, net, _steps(recipe, cluster, remainder=recipe.remainder),
                     _bytes(net, recipe.height, recipe.width))


def segmentation_workload(recipe, cluster):
    """Returns the `Workload` of a SegmentationRecipe; as `classification_workload`."""
    net = segmentation_model(
        recipe.network, recipe.classes, output_stride=recipe.output_stride,
        head_channels=recipe.head_channels, head_dropout=recipe.head_dropout)
    return _workload(recipe, net, _steps(recipe, cluster),
                     _bytes(net, recipe.crop_px, recipe.crop_px))


def detection_workload(recipe, cluster):
    """Returns the `Workload` of a DetectionRecipe; as `classification_workload`.

    Activations are those of the largest image, frozen stages included, and of the heads.
    """
    net = build_detector(recipe)
    return _workload(recipe, net, _steps(recipe, cluster),
                     _bytes(net.features, *_padded(recipe)) + _roi_bytes(net))


def panoptic_workload(recipe, cluster):
    """Returns the `Workload` of a PanopticRecipe; as `detection_workload`."""
    net = build_panoptic(recipe)
    kept = _bytes(_Pixels(net), *_padded(recipe)) + _roi_bytes(net.detector)
    return _workload(recipe, net, _steps(recipe, cluster), kept)


class _Pixels(nn.HybridBlock):
    """What a panoptic network does with whole images."""

    def __init__(self, net):
        super().__init__()
        self.features, self.semantic = net.features, net.semantic

    def hybrid_forward(self, F, x):
        return self.semantic(*self.features(x)[:LEVELS])


def _roi_bytes(net):
    """Returns what training keeps of the RoIs of one image in the heads of an `RCNN`."""
    kept = 0
    rois, masks = net.conventions.roi_samples, net.conventions.max_mask_rois
    for head, size, count in [(stage.head, BOX_SIZE, rois) for stage in net.stages] + [
            (head, MASK_SIZE, masks) for head in net.mask_heads]:
        kept += _bytes(head, size, size, batch=count, in_channels=net.features.fpn.channels)
    return kept


def _padded(recipe):
    """Returns height and width of the largest batch of a DetectionRecipe."""
    short, longest = max(recipe.short_sides), recipe.max_px
    if recipe.max_pixels is not None:
        longest = min(longest, longest_px(short, recipe.max_pixels))
    return [-(-side // DIVISOR) * DIVISOR for side in (short, longest)]


def _bytes(net, height, width, **shape):
    """Returns what training a network keeps at most."""
    return analyze(net, (height, width), **shape).total().bytes


def _steps(recipe, cluster, **options):
    return TrainPlan(int(cluster.images), recipe.batch, 0, int(cluster.workers), recipe.seed,
                     **options).steps_per_epoch


def _workload(recipe, net, steps, activation_bytes):
    """Returns the Workload of a network whose training keeps so many bytes of an image."""
    sizes = {name: (math.prod(parameter.shape), parameter.grad_req != "null")
             for name, parameter in net.collect_params().items()}
    return Workload(
        batch=recipe.batch, steps_per_epoch=steps, epochs=recipe.steps(steps) / steps,
        parameters=sum(size for size, learns in sizes.values() if learns),
        values=sum(size for size, _ in sizes.values()),
        activation_bytes=activation_bytes // recipe.accumulate, optimizer=recipe.optimizer,
        average=bool(recipe.ema_decay), gradient_bytes=2 if recipe.compression == "fp16" else 4)

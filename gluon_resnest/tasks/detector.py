"""The networks of recipes of detection and panoptic segmentation."""
import dataclasses

from gluon_resnest.models.detection.build import Norms, detector
from gluon_resnest.models.detection.conventions import by_sigmoid
from gluon_resnest.models.detection.conventions import conventions as conventions_of
from gluon_resnest.models.detection.panoptic import panoptic
from gluon_resnest.models.norm import norm_layer
from gluon_resnest.zoo import get_model


def build_detector(recipe, comm=None, *, class_names=None):
    """Builds the network of a DetectionRecipe, without values.

    Args:
      recipe: the DetectionRecipe.
      comm: this worker's Comm; without one nothing is synchronised, for inference.
      class_names: of the classes; None numbers them.
    """
    return detector(recipe.network.lower(), get_model, classes=class_names or recipe.classes,
                    **_options(recipe, comm))


def build_panoptic(recipe, comm=None, *, class_names=None, stuff_names=None):
    """Builds the network of a PanopticRecipe, without values; as `build_detector`."""
    return panoptic(recipe.network.lower(), get_model, classes=class_names or recipe.classes,
                    stuff=stuff_names or recipe.stuff, semantic_channels=recipe.semantic_channels,
                    semantic_weight=recipe.semantic_weight, **_options(recipe, comm))


def _options(recipe, comm):
    """Returns what a recipe says of its detector, as arguments of `build.detector`."""
    changes = {"roi_samples": recipe.roi_samples, "detections": recipe.detections,
               "score_threshold": recipe.score_threshold,
               **dict.fromkeys(("post_nms_train", "cascade_post_nms_train", "post_nms_test"),
                               recipe.proposals)}
    conventions = conventions_of(recipe.conventions)
    if recipe.class_loss != "softmax":
        conventions = by_sigmoid(conventions)
    conventions = dataclasses.replace(
        conventions,
        **{name: value for name, value in changes.items() if value is not None})

    def norm(policy):
        if policy == "sync":
            return norm_layer("sync", {"workers": comm}) if comm else "batch"
        return policy

    return dict(conventions=conventions, norms=Norms(*map(norm, recipe.norms)),
                dropblock=recipe.dropblock, box_head=recipe.box_head,
                mask_convs=recipe.mask_convs, frozen_stages=recipe.frozen_stages,
                channels=recipe.channels, fc_channels=recipe.fc_channels)

"""The module of each task: cards, predictor and weights of its networks, chosen by their name."""
from gluon_resnest.interop import detection, panoptic, pose, segmentation, trained
from gluon_resnest.interop.deployed import Card

_TASKS = {pose.PoseCard: (pose.is_pose, pose),
          segmentation.SegmentationCard: (segmentation.is_segmenter, segmentation),
          detection.DetectionCard: (detection.is_detector, detection),
          panoptic.PanopticCard: (panoptic.is_panoptic, panoptic)}

CARDS = {card.task: card for card in (Card, *_TASKS)}


def card_class(name):
    """Returns the class of the cards of a zoo name's network, which has its `task` and `word`.

    A name that no task spells is a classifier's, or unknown.
    """
    return next((card for card, (spells, _) in _TASKS.items() if spells(name)), Card)


def from_zoo(name, weights):
    """Returns (net, card) of a zoo name with the weights of a file; None: the published ones.

    Raises:
      UserError: if the name is unknown, or the weights are not to be had or do not fit.
    """
    _, module = _TASKS.get(card_class(name), (None, trained))
    return module.from_zoo(name, weights)

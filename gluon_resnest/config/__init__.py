"""Recipes as frozen dataclasses: checked when made, every field a flag, a JSON round trip.

A recipe holds the numbers of an experiment, nothing about a machine or a path. One that differs is
`dataclasses.replace(RECIPES["resnest50"], crop_px=256)`; nothing is inherited or merged.
"""
from gluon_resnest.config.classification import ClassificationRecipe
from gluon_resnest.config.detection import DetectionRecipe
from gluon_resnest.config.fields import override
from gluon_resnest.config.panoptic import PanopticRecipe
from gluon_resnest.config.pose import PoseRecipe
from gluon_resnest.config.segmentation import SegmentationRecipe

__all__ = ["ClassificationRecipe", "DetectionRecipe", "PanopticRecipe", "PoseRecipe",
           "SegmentationRecipe", "override"]

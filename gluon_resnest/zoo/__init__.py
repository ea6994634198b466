"""Networks by name, with the weights published for them."""
import fnmatch
import inspect
from dataclasses import replace

import mxnet as mx

from gluon_resnest.errors import UserError, check_count, nearest
from gluon_resnest.interop.weights import load_backbone, load_parameters
from gluon_resnest.models.baselines import ResNet, ResNetArchitecture
from gluon_resnest.models.detection import build as detection
from gluon_resnest.models.detection import panoptic
from gluon_resnest.models.efficientnet import EfficientNet, EfficientNetArchitecture
from gluon_resnest.models.norm import norm_layer as norm_constructor
from gluon_resnest.models.resnest import Architecture, FeatureExtractor, ResNeSt
from gluon_resnest.models.segmentation import parse_name, segmenter
from gluon_resnest.models.simple_pose import SimplePose
from gluon_resnest.zoo.options import OPTIONS, refuse_others
from gluon_resnest.zoo.table import (
    HIDDEN, SEGMENTERS, VARIANTS, Variant, Weights, is_named, is_same_network, variant)

__all__ = ["HIDDEN", "OPTIONS", "POSE", "SEGMENTERS", "VARIANTS", "Variant", "Weights",
           "backbone_name", "get_model", "is_named", "is_same_network", "list_models",
           "load_backbone_weights", "load_weights", "pose_model", "segmentation_model", "variant"]

# Architecture -> its network, and the prefix of its parameters' names.
_NETWORKS = {Architecture: (ResNeSt, "resnest_"), ResNetArchitecture: (ResNet, "resnet_"),
             EfficientNetArchitecture: (EfficientNet, "efficientnet_")}

POSE = "simple_pose_"       # before the name of a backbone: the pose network on it
_POSE_NAMES = tuple(POSE + backbone for backbone in (
    "resnest50", "resnest101", "resnest200", "resnest269", "resnet50", "resnet101"))


def list_models(pattern="*"):
    """Returns the names of all networks that match a shell pattern such as "*fast*"."""
    return fnmatch.filter([*VARIANTS, *SEGMENTERS, *detection.NAMES, *panoptic.NAMES,
                           *_POSE_NAMES], pattern)


def get_model(name, pretrained=False, root=None, ctx=None, classes=1000, norm_layer=None,
              norm_kwargs=None, dilated=False, last_gamma=False, *, in_channels=3,
              output_stride=None, dropblock=None, final_drop=None, features_only=False,
              out_indices=(0, 1, 2, 3), aux=True, deform_stages=(), use_global_stats=False,
              pretrained_base=None, **others):
    """Builds a network by name; GluonCV's zoo answers for the names that are its own.

    Two networks of a family in one Block are built in a name scope each (docs/migration.md).

    Args:
      name: see `variant`, or "simple_pose_" and such a name, or {head}_{such a name}[_{data set}]
        as in `models.segmentation.parse_name`, or a detector's as in
        `models.detection.build.parse`, or a panoptic network's as in
        `models.detection.panoptic.detector_name`; case does not matter.
      pretrained: True for the newest published weights, or the first 8 digits of a version's SHA-1.
      root: folder of weight files; None is that of `interop.store`.
      ctx: where pretrained parameters go; None is the CPU.
      classes: length of the logits; the default means 1000, or as many as the data set has. For a
        detector also names; for a panoptic network (things, stuff), each a number or names.
      norm_layer, norm_kwargs: see `models.norm.norm_layer`.
      dilated: GluonCV's word for `output_stride=8`.
      last_gamma: start each residual branch at zero.
      in_channels: channels of the image.
      output_stride: 8, 16 or 32 (the default; 8 for segmentation).
      dropblock, final_drop: probabilities; None takes the variant's, for a classifier, and no
        DropBlock in the backbone of another network.
      features_only: return a `FeatureExtractor` of `out_indices` without a classifier.
      out_indices: which of the four feature maps.
      aux: whether a segmentation network has its auxiliary head.
      deform_stages: see `models.resnest.Architecture`; a detector's name says it by _dcn.
      use_global_stats: GluonCV's word for norms that use their running statistics in training too.
      pretrained_base: False is GluonCV's word for a backbone without weights, as all are here; see
        `load_backbone_weights`.
      others: for networks of GluonCV's.

    Raises:
      UserError: if the name is unknown or an argument does not fit; see `OPTIONS`.
    """
    name = name.lower()
    out_indices = _numbers("out_indices", out_indices)
    deform_stages = _numbers("deform_stages", deform_stages)
    options = dict(
        classes=classes, norm_layer=norm_layer, norm_kwargs=norm_kwargs, dilated=dilated,
        last_gamma=last_gamma, in_channels=in_channels, output_stride=output_stride,
        dropblock=dropblock, final_drop=final_drop, features_only=features_only,
        out_indices=out_indices, aux=aux, deform_stages=deform_stages,
        use_global_stats=use_global_stats, pretrained_base=pretrained_base, **others)
    kind = _kind(name)
    if kind not in ("detector", "panoptic network"):    # which may have names
        check_count("classes", classes)
    check_count("in_channels", in_channels)
    if kind == "network of GluonCV's":
        return _from_gluoncv(name, dict(pretrained=pretrained, root=root, ctx=ctx, **options))
    refuse_others(f"{name!r} is a {kind}, which has no", kind, _given(options))
    if pretrained_base and not pretrained:
        raise UserError("get_model gives a backbone no weights, got pretrained_base="
                        f"{pretrained_base!r}; leave it out and call zoo.load_backbone_weights "
                        "with a file or, if it can be had, a published name (docs/model_zoo.md, "
                        "Getting weights)")
    if use_global_stats:
        norm_kwargs = {**(norm_kwargs or {}), "use_global_stats": True}
    if dilated and output_stride not in (None, 8):
        raise UserError(f"dilated=True means output_stride=8, got output_stride={output_stride!r}; "
                        "give one of the two")
    output_stride = 8 if dilated else output_stride
    norms = dict(norm_layer=norm_layer, norm_kwargs=norm_kwargs)
    if kind == "segmentation network":
        own = parse_name(name).classes or classes if classes == 1000 else classes
        net = segmentation_model(name, own, aux=aux, dropblock=dropblock or 0.0, **norms,
                                 output_stride=8 if output_stride is None else output_stride)
    elif kind == "pose network":
        net = pose_model(name[len(POSE):], dropblock=dropblock or 0.0, **norms)
    elif kind == "detector":
        net = detection.detector(
            name, get_model, classes=None if classes == 1000 else classes,
            norms=norm_layer or "batch", norm_kwargs=norm_kwargs, dropblock=dropblock or 0.0)
    elif kind == "panoptic network":
        things, stuff = _things_and_stuff(classes)
        net = panoptic.panoptic(
            name, get_model, classes=things, stuff=stuff, norms=norm_layer or "batch",
            norm_kwargs=norm_kwargs, dropblock=dropblock or 0.0)
    else:
        if not features_only and "out_indices" in _given(options):
            raise UserError(f"out_indices are the maps of features_only=True, got {out_indices!r} "
                            "without it; give both or neither")
        net = _classifier(
            name, classes=classes, in_channels=in_channels, deform_stages=deform_stages,
            output_stride=32 if output_stride is None else output_stride,
            norm=norm_constructor(norm_layer, norm_kwargs), zero_last_gamma=last_gamma,
            dropblock=dropblock, final_drop=final_drop)
    if pretrained:
        _load(net, name, pretrained, root, ctx)
    return FeatureExtractor(net, out_indices) if features_only else net


def _kind(name):
    """Returns the key of `OPTIONS` that a name in lower case stands for; GluonCV has the rest."""
    segmenter, detector = parse_name(name), detection.parse(name)
    if panoptic.detector_name(name):
        return "panoptic network"
    if segmenter and is_named(segmenter.backbone):
        return "segmentation network"
    if name.startswith(POSE) and is_named(name[len(POSE):]):
        return "pose network"
    if detector and is_named(detector.backbone):
        return "detector"
    return "classifier" if is_named(name) else "network of GluonCV's"


def _numbers(what, values):
    """Returns an option of several numbers as a tuple."""
    try:
        return tuple(values)
    except TypeError as error:
        raise UserError(f"{what} must be a tuple of numbers, got {values!r}; give ({values!r},)"
                        ) from error


def _classifier(name, *, deform_stages, **options):
    """Builds a network of the table; `options` as in `models.resnest.ResNeSt`."""
    arch = variant(name).arch
    build, prefix = _NETWORKS[type(arch)]
    if deform_stages:
        if not isinstance(arch, Architecture):
            raise UserError(f"deform_stages is for the ResNeSt family, got {name!r}")
        arch = replace(arch, deform_stages=deform_stages)
    return build(arch, prefix="resnetv1f_" if "_fast_" in name else prefix, **options)


def _things_and_stuff(classes):
    """Returns what `get_model`'s `classes` mean for a panoptic network; COCO's by default."""
    if classes == 1000:
        return detection.COCO_CLASSES, panoptic.COCO_STUFF
    if not isinstance(classes, (tuple, list)) or len(classes) != 2:
        raise UserError(f"a panoptic network has things and stuff, got classes={classes!r}; give "
                        "classes=(80, 53), or two tuples of names")
    return classes


def pose_model(backbone, joints=17, *, norm_layer=None, norm_kwargs=None, dropblock=0.0):
    """Builds SimplePose on a network of the table (paper, appendix B.1).

    Args:
      backbone: its name.
      joints: number of heat maps.
      norm_layer, norm_kwargs: see `models.norm.norm_layer`; of backbone and deconvolutions.
      dropblock: probability in the backbone; the published runs had none.

    Returns:
      `models.simple_pose.SimplePose`.
    """
    features = get_model(backbone, norm_layer=norm_layer, norm_kwargs=norm_kwargs,
                         dropblock=dropblock, features_only=True, out_indices=(3,))
    return SimplePose(features, joints, norm_constructor(norm_layer, norm_kwargs))


def segmentation_model(name, classes, *, output_stride=8, norm_layer=None, norm_kwargs=None,
                       dropblock=0.0, aux=True, head_channels=None, head_dropout=True):
    """Builds a segmentation network (paper, 6.3).

    Args:
      name: see `models.segmentation.parse_name`.
      classes: length of the logits.
      output_stride: 8 or 16.
      norm_layer, norm_kwargs: see `models.norm.norm_layer`; of backbone and heads.
      dropblock: probability in the backbone; the published runs had none.
      aux, head_channels, head_dropout: see `models.segmentation.segmenter`.

    Returns:
      `models.segmentation.Segmenter`.

    Raises:
      UserError: if the name is not one of a segmentation network, or an argument does not fit.
    """
    spelled = parse_name(name)
    if not (spelled and is_named(spelled.backbone)):
        raise UserError(f"{name!r} is no segmentation network; expected "
                        "{head}_{backbone}[_{data set}], such as deeplab_resnest50_ade")
    backbone = get_model(spelled.backbone, norm_layer=norm_layer, norm_kwargs=norm_kwargs,
                         output_stride=output_stride, dropblock=dropblock)
    return segmenter(backbone, classes, head=spelled.head, aux=aux, dropout=head_dropout,
                     head_channels=head_channels, norm=norm_constructor(norm_layer, norm_kwargs))


def backbone_name(name):
    """Returns the name of the classifier that a network stands on; a classifier is its own.

    It tells variants: mask_rcnn_fpn_resnet50_coco stands on resnet50_msra, deeplab_resnet50_ade on
    resnet50_v1s.
    """
    name = name.lower()
    if name.startswith(POSE):
        return name[len(POSE):]
    spelled = detection.parse(panoptic.detector_name(name) or name) or parse_name(name)
    return spelled.backbone if spelled else name


def load_weights(net, name, source, *, root=None, ctx=None):
    """Loads parameters into a network of the table, strictly.

    Args:
      net: the network, as `get_model(name)` builds it.
      name: its name.
      source: path or URL of a parameter file, or "published" for the newest weights of the table.
      root: folder of downloaded files; None is that of `interop.store`.
      ctx: where the parameters go; None is the CPU.
    """
    from gluon_resnest.interop import store
    if source == "published":
        _load(net, name, True, root, ctx)
    else:
        load_parameters(net, store.fetch(source, root), ctx=ctx or mx.cpu())


def load_backbone_weights(backbone, source, *, root=None, ctx=None):
    """Gives a backbone the values of a trained classifier; see `interop.weights.load_backbone`.

    Args:
      backbone: a `FeatureExtractor`, or a Block with other children of a classifier.
      source: name of the table, whose published weights are taken; or path or URL of a file.
      root: folder of downloaded files; None is that of `interop.store`.
      ctx: where the parameters go; None is the CPU.
    """
    from gluon_resnest.interop import store
    if is_named(source):
        file = _resolved(source, True, root)
    else:
        file = store.fetch(source, root)
    load_backbone(backbone, file, ctx=ctx or mx.cpu())


def _load(net, name, pretrained, root, ctx):
    load_parameters(net, _resolved(name, pretrained, root), ctx=ctx or mx.cpu())


def _resolved(name, pretrained, root):
    """Returns the file published for a name; arguments as of `get_model`."""
    from gluon_resnest.interop import store
    return store.resolve(name.lower(), _published(name.lower()), pretrained, root)


def _published(name):
    """Returns the SHA-1 of the files published for a name in lower case, newest first."""
    if parse_name(name) or name.startswith(POSE) or detection.parse(name) \
            or panoptic.detector_name(name):
        return SEGMENTERS.get(name, ())
    weights = variant(name).weights
    return weights.sha1 if weights else ()


def _from_gluoncv(name, options):
    """Asks GluonCV's zoo.

    Args:
      name: in lower case.
      options: of `get_model`; those at their defaults are left to GluonCV.
    """
    try:
        from gluoncv import model_zoo
    except ImportError as error:
        raise UserError(f"unknown model {name!r}, expected a name of list_models() or, after "
                        "`pip install 'gluon-resnest[gluoncv]'`, one of GluonCV's"
                        f"{nearest(name, list_models())}") from error
    if name not in model_zoo.get_model_list():
        return variant(name)  # raises: the name is not ours either
    given = _given(options)
    refuse_others(f"{name!r} is a network of GluonCV's, which knows no", "network of GluonCV's",
                  [key for key in given if key in _DEFAULTS])
    try:
        return model_zoo.get_model(name, **given)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"GluonCV's {name!r} does not take these options: {error}") from error
    except OSError as error:
        raise UserError(f"GluonCV's {name!r} needs a file that GluonCV cannot fetch "
                        f"({type(error).__name__}); put it into GluonCV's folder of weights"
                        ) from error


def _given(options):
    """Returns those of `get_model`'s options that are not at their defaults."""
    return {key: value for key, value in options.items()
            if key not in _DEFAULTS or value != _DEFAULTS[key]}


_DEFAULTS = {name: each.default for name, each in inspect.signature(get_model).parameters.items()
             if each.kind is not each.VAR_KEYWORD}

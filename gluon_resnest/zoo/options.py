"""Which options of `get_model` a kind of network takes."""
from gluon_resnest.errors import UserError, nearest

_NORMS = ("norm_layer", "norm_kwargs", "use_global_stats")
# What a name stands for -> the options of `get_model` that such a network takes; all others are
# refused, but GluonCV's networks know more. `pretrained`, `root` and `ctx` are for all.
OPTIONS = {
    "classifier": (*_NORMS, "classes", "dilated", "last_gamma", "in_channels", "output_stride",
                   "dropblock", "final_drop", "features_only", "out_indices", "deform_stages"),
    "segmentation network": (*_NORMS, "classes", "dilated", "output_stride", "dropblock", "aux",
                             "pretrained_base"),
    "pose network": (*_NORMS, "dropblock", "pretrained_base"),
    "detector": (*_NORMS, "classes", "dropblock", "pretrained_base"),
    "panoptic network": (*_NORMS, "classes", "dropblock", "pretrained_base"),
    "network of GluonCV's": (*_NORMS, "classes", "dilated", "last_gamma", "aux",
                             "pretrained_base"),
}


def refuse_others(sentence, kind, given):
    """Raises a UserError for the first option given that a kind of network does not take."""
    known = (*OPTIONS[kind], "pretrained", "root", "ctx")
    for key in given:
        if key not in known:
            raise UserError(f"{sentence} {key}; leave {key} out, or take one of "
                            f"{', '.join(known)}{nearest(key, known)}")

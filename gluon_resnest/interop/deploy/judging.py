"""Compares a deployed network with the one it was made from."""
from dataclasses import asdict, dataclass

import numpy as np

# Largest difference of a float32 deployment, relative to the largest output. Folding and fusing
# round otherwise than the network does; trials gave 1e-6 to 3e-5.
TOLERANCE = 1e-4
# A network is too sensitive to be compared where inputs that change by NUDGE, several roundings of
# float32, change outputs by SENSITIVE.
NUDGE, SENSITIVE = 1e-6, 1e-4
# Least share of images of which a bf16 or int8 network must say the same as the float32 one.
MIN_AGREEMENT = 0.97


@dataclass(frozen=True)
class Comparison:
    """How alike two classifiers answer.

    Attributes:
      images: that both saw.
      agreement: share of them with the same most probable class.
      logit_error: L2 norm of the differences relative to that of the logits, each image's mean
        taken off.
      top1, float_top1: share of right classes of the deployment and of the network, or None where
        labels are unknown.
    """

    images: int
    agreement: float
    logit_error: float
    top1: float = None
    float_top1: float = None

    def values(self):
        """Returns it as a dict of plain numbers."""
        return asdict(self)

    def __str__(self):
        text = (f"{100 * self.agreement:.2f} % of {self.images} images get the same class, logits "
                f"differ by {100 * self.logit_error:.2f} %")
        if self.top1 is None:
            return text
        return f"{text}; top-1 {100 * self.top1:.2f} %, of float32 {100 * self.float_top1:.2f} %"


def compare(deployed, network, batches):
    """Compares two functions from images to logits (N, K).

    Args:
      batches: iterable of (images float32 (N, 3, H, W), labels int (N,) or None).
    """
    answers, expected, labels = [], [], []
    for images, known in batches:
        answers.append(deployed(images))
        expected.append(network(images))
        labels.append(known)
    answers, expected = (_centred(np.concatenate(each)) for each in (answers, expected))
    ours, theirs = answers.argmax(1), expected.argmax(1)
    right = {}
    if all(known is not None for known in labels):
        truth = np.concatenate(labels)
        right = {"top1": float((ours == truth).mean()),
                 "float_top1": float((theirs == truth).mean())}
    error = np.linalg.norm(answers - expected) / max(np.linalg.norm(expected), 1e-30)
    return Comparison(len(ours), float((ours == theirs).mean()), float(error), **right)


def worst_difference(deployed, network, inputs):
    """Returns the largest difference of any output, relative to its largest expected value.

    Args:
      deployed, network: functions from images to a list of outputs.
      inputs: iterable of images (N, 3, H, W).
    """
    worst = 0.0
    for images in inputs:
        for ours, theirs in zip(deployed(images), network(images)):
            if ours.shape != theirs.shape:
                return float("inf")
            error = np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-30)
            worst = float(np.maximum(worst, error))     # NaN stays
    return worst


def sensitivity(network, inputs):
    """Returns how far outputs move, relative to the largest, where inputs move by NUDGE."""
    rng = np.random.default_rng(0)

    def nudged(images):
        noise = rng.standard_normal(images.shape)
        return network((images * (1 + NUDGE * noise)).astype(np.float32))

    return worst_difference(nudged, network, inputs)


def _centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)

"""Label smoothing, mixup and CutMix: who is mixed with whom and how much, and the targets.

Plans are functions of (seed, epoch, sample numbers) and live on the host; applying one to images,
`keep * x + (1 - keep) * x[partner]`, is the task's part, on the device.

Two modes. "batch", what trained the published weights: one lambda for the worker's batch, keyed
by its first sample, partners in reversed order (paper, section 5.1). "example", what section 4.2
says: one lambda for every image, keyed by the image itself, partners 2k and 2k + 1.
"""
import numpy as np

from gluon_resnest.data.sampling import random_for
from gluon_resnest.errors import UserError, check_choice

MODES = ("none", "batch", "example")
FORMULAS = ("uniform", "paper")


def mixup_plan(seed, epoch, indices, alpha, mode="batch"):
    """Plans mixup (paper, eq. 6 and 7) for one worker's batch.

    Args:
        seed, epoch: of the run.
        indices: (b,) sample numbers of the batch, in its order.
        alpha: lambda ~ Beta(alpha, alpha), > 0.
        mode: one of MODES; "none" leaves every image alone.

    Returns:
        (lam, partner): float32 (b,) share of the image itself, int64 (b,) position in the batch
        of the image it is mixed with.

    Raises:
        UserError: for an unknown mode, alpha <= 0, or an odd batch in mode "example".
    """
    check_choice("mixup mode", mode, MODES)
    count = len(indices)
    if mode == "none":
        return np.ones(count, dtype=np.float32), np.arange(count)
    _check_alpha("mixup_alpha", alpha)
    if mode == "batch":
        lam = np.full(count, random_for(seed, epoch, indices[0], "mixup").beta(alpha, alpha))
    else:
        lam = np.array([random_for(seed, epoch, index, "mixup").beta(alpha, alpha)
                        for index in indices])
    return lam.astype(np.float32), _partners(count, mode)


def cutmix_plan(seed, epoch, indices, alpha, height, width, mode="batch"):
    """Plans CutMix (Yun et al. 2019): a box of the partner's pixels replaces one's own.

    The box has a share 1 - lambda of the area, lambda ~ Beta(alpha, alpha), and a uniform centre;
    what sticks out of the image is cut off, and lambda is corrected for it.

    Args:
        seed, epoch, indices, alpha, mode: as in `mixup_plan`.
        height, width: of the images in pixels.

    Returns:
        (boxes, lam, partner): int64 (b, 4) as (top, left, bottom, right), ends excluded, possibly
        empty; float32 (b,) share of the image's own pixels; int64 (b,).

    Raises:
        UserError: as `mixup_plan`.
    """
    check_choice("CutMix mode", mode, MODES)
    count = len(indices)
    if mode == "none":
        return (np.zeros((count, 4), dtype=np.int64), np.ones(count, dtype=np.float32),
                np.arange(count))
    _check_alpha("cutmix_alpha", alpha)
    if mode == "batch":
        box = _random_box(random_for(seed, epoch, indices[0], "cutmix"), alpha, height, width)
        boxes = np.tile(box, (count, 1))
    else:
        boxes = np.array([_random_box(random_for(seed, epoch, index, "cutmix"), alpha, height,
                                      width) for index in indices])
    pasted = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    lam = (1 - pasted / (height * width)).astype(np.float32)
    return boxes, lam, _partners(count, mode)


def picks_cutmix(seed, epoch, indices):
    """Tosses the fair coin that decides between mixup and CutMix where a recipe has both."""
    return bool(random_for(seed, epoch, indices[0], "mixup or cutmix").random() < 0.5)


def box_mask(boxes, height, width):
    """Returns float32 (b, 1, height, width): 0 inside each image's box, 1 outside."""
    rows, columns = np.arange(height), np.arange(width)
    top, left, bottom, right = boxes.T[:, :, None]
    in_rows = (top <= rows) & (rows < bottom)
    in_columns = (left <= columns) & (columns < right)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return (~inside).astype(np.float32)


def soft_targets(labels, lam, partner, classes, smoothing, formula="uniform", weights=None):
    """Builds the target distributions of a mixed batch.

    Args:
        labels: (b,) whole numbers in 0..classes - 1.
        lam, partner: (b,) each, from a plan.
        classes: K.
        smoothing: eta in 0..1; 0 gives one-hot rows.
        formula: "uniform" trained the published weights: 1 - eta + eta/K on the class, eta/K
            elsewhere. "paper" is its eq. 5: 1 - eta on the class, eta/(K - 1) elsewhere.
        weights: float32 (K,), what an image of each class counts, or None: one. Each image brings
            its own into a mixture: weighing the mixture would pass a rare image's weight on to
            its partner's label.

    Returns:
        float32 (b, K); rows sum to one, or to the mixture of both images' weights.

    Raises:
        UserError: for a label out of range, an impossible smoothing or an unknown formula.
    """
    check_choice("smoothing formula", formula, FORMULAS)
    if not 0 <= smoothing <= 1:
        raise UserError(f"label smoothing must lie in 0..1, got {smoothing!r}")
    labels = np.asarray(labels)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise UserError(f"labels must lie in 0..{classes - 1}, got {wrong[0]}; "
                        "set the number of classes that the data has")
    off = smoothing / classes if formula == "uniform" else smoothing / max(classes - 1, 1)
    on = 1 - (classes - 1) * off
    rows = np.full((len(labels), classes), off, dtype=np.float32)
    rows[np.arange(len(labels)), labels] = on
    if weights is not None:
        rows *= weights[labels][:, None]
    lam = np.asarray(lam, dtype=np.float32)[:, None]
    return lam * rows + (1 - lam) * rows[partner]


def _partners(count, mode):
    if mode == "batch":
        return np.arange(count)[::-1].copy()
    if count % 2:
        raise UserError("mixing each example with its neighbour needs an even batch per worker, "
                        f"got {count}; change the batch size or the number of workers")
    return np.arange(count) ^ 1


def _random_box(rng, alpha, height, width):
    side = np.sqrt(1 - rng.beta(alpha, alpha))
    rows, columns = int(height * side), int(width * side)
    top = int(rng.integers(height)) - rows // 2
    left = int(rng.integers(width)) - columns // 2
    return (max(top, 0), max(left, 0), min(top + rows, height), min(left + columns, width))


def _check_alpha(name, alpha):
    if not alpha > 0:
        raise UserError(f"{name} must be positive, got {alpha!r}; use mode 'none' for no mixing")

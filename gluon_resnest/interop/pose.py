"""Finds the joints of persons with an exported pose network or one of the zoo."""
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd

from gluon_resnest import zoo
from gluon_resnest.data import color
from gluon_resnest.data import images as image_files
from gluon_resnest.data import keypoints
from gluon_resnest.data.pose_transforms import PersonCrop, inverse, move
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.text_files import read_json
from gluon_resnest.errors import UserError, diverged
from gluon_resnest.interop import cards, deployed
from gluon_resnest.interop.card_values import number, triple, whole
from gluon_resnest.interop.trained import with_weights
from gluon_resnest.models.simple_pose import FLIP_TESTS, STRIDE, predict_joints

_PERSONS = 32           # that go through the network together


@dataclass(frozen=True)
class PoseCard(cards.TaskCard):
    """How an exported pose network wants its persons and what its heat maps mean.

    The input is float32 RGB (N, 3, height, width), `(value / 255 - mean) / std`: a person's box,
    grown on one side to this aspect ratio and on all by `margin`. The output is heat maps
    (N, joints, height / 4, width / 4); pixel x of a map is pixel 4 x of the input.

    Attributes:
      model: name of the network.
      height, width, margin: of a person's crop.
      joints: their names.
      partners: for each joint the one it is seen as in a mirror.
      skeleton: pairs of joints to connect.
      flip: flip test of `models.simple_pose.predict_joints` that belongs to the published numbers.
      mean, std, commit, sha256: as in `deployed.Card`.
    """

    task = "pose"
    word = "pose network"
    lists = ("joints", "partners", "skeleton", "mean", "std")
    adjustable = ("height", "width")

    model: str
    height: int = 256
    width: int = 192
    margin: float = 1.25
    joints: Tuple[str, ...] = keypoints.JOINTS
    partners: Tuple[int, ...] = keypoints.PARTNERS
    skeleton: Tuple[Tuple[int, int], ...] = keypoints.SKELETON
    flip: str = "shifted"
    mean: Tuple[float, float, float] = color.MEAN
    std: Tuple[float, float, float] = color.STD
    commit: str = ""
    sha256: Optional[dict] = None

    @property
    def input_shape(self):
        """Shape of one prepared person."""
        return (1, 3, self.height, self.width)

    @property
    def summary(self):
        """See `TaskCard`."""
        return f"persons of {self.height} x {self.width} px"

    @property
    def output_shape(self):
        """Shape of its heat maps."""
        return (1, len(self.joints), self.height // STRIDE, self.width // STRIDE)

    def own_faults(self):
        """See `TaskCard`."""
        def indices(values):
            return all(type(value) is int and 0 <= value < len(self.joints) for value in values)

        partners = self.partners
        return {
            **{side: whole(getattr(self, side), 32, 4096) and getattr(self, side) % 32 == 0
               for side in ("height", "width")},
            "margin": number(self.margin, 0.5, 10),
            "joints": 0 < len(self.joints) <= 1000 and all(
                isinstance(name, str) for name in self.joints),
            "partners": len(partners) == len(self.joints) and indices(partners) and all(
                partners[partner] == own for own, partner in enumerate(partners)),
            "skeleton": all(len(pair) == 2 and indices(pair) for pair in self.skeleton),
            "flip": self.flip in FLIP_TESTS,
            # PersonCrop, which prepares the persons, knows no other normalisation.
            "mean": triple(self.mean, -10, 10) and tuple(self.mean) == color.MEAN,
            "std": triple(self.std, 1e-6, 1e3) and tuple(self.std) == color.STD}


def read_card(prefix):
    """Returns the `PoseCard` of an exported pair.

    Raises:
      UserError: if there is none, or it is damaged, or of another task or format.
    """
    return cards.read(prefix, PoseCard)


class PoseAnswer(NamedTuple):
    """What was found in a file: boxes (P, 4) and joints (P, J, 3) in its pixels, or the problem."""

    file: Path
    boxes: np.ndarray
    joints: np.ndarray
    problem: Optional[str] = None


class PosePredictor:
    """Finds the joints of persons in images.

    Args:
      forward: float32 array (N, 3, height, width) to heat maps, both numpy.
      card: the network's `PoseCard`.
    """

    def __init__(self, forward, card):
        self.card = card
        self._forward = forward
        self._crop = PersonCrop(card.height, card.width, tuple(card.partners), card.margin)

    @classmethod
    def load(cls, prefix, *, ctx=None, engine=None):
        """Loads an exported network; arguments and errors as `predictor.Predictor.load`."""
        if engine is None and deployed.is_plain(prefix):
            deployed.check_presence(prefix)
            card = read_card(prefix)
            return cls.of_block(deployed.load_pair(prefix, card, ctx=ctx), card, ctx=ctx)
        card = read_card(prefix)
        return cls(deployed.load(prefix, engine=engine, device=str(ctx or "cpu"), card=card), card)

    @classmethod
    def of_block(cls, net, card, *, ctx=None):
        """Wraps a Gluon block whose parameters lie on `ctx`, the CPU by default."""
        def forward(images):
            with autograd.pause(train_mode=False):
                return net(mx.nd.array(images, ctx=ctx or mx.cpu())).asnumpy()

        net.hybridize(static_alloc=True)
        return cls(forward, card)

    def predict(self, image, boxes):
        """Returns the joints of persons, (P, J, 3): x and y in pixels of the image, score.

        Args:
          image: uint8 RGB (H, W, 3).
          boxes: (P, 4): x, y, width, height.

        Raises:
          UserError: if a box is empty, or the network gives NaN or infinity.
        """
        blank, still = np.zeros((len(self.card.joints), 3)), random_for(0, 0, 0)
        if not len(boxes):
            return np.zeros((0,) + blank.shape)
        persons = []
        for start in range(0, len(boxes), _PERSONS):
            part = boxes[start:start + _PERSONS]
            crops = np.stack([self._crop(image, box, blank, still)[0] for box in part])
            found = predict_joints(self._forward, crops, list(self.card.partners), self.card.flip)
            if not np.isfinite(found).all():
                raise diverged(self.card.model)
            persons += [move(joints, inverse(self._crop.matrix(box)))
                        for joints, box in zip(found, part)]
        return np.stack(persons)

    def answer(self, files, boxes=None):
        """Yields the `PoseAnswer` of each image file; one without an answer has a problem.

        Args:
          files: paths.
          boxes: {file name: boxes (P, 4)}; None takes each whole image as one person.
        """
        for file in map(Path, files):
            try:
                image = image_files.load(file)
                height, width = image.shape[:2]
                own = [[0, 0, width, height]] if boxes is None else boxes.get(file.name, [])
                own = np.array(own, float).reshape(-1, 4)
                answer = PoseAnswer(file, own, self.predict(image, own))
            except UserError as error:
                answer = PoseAnswer(file, np.zeros((0, 4)), np.zeros((0, 0, 3)), str(error))
            yield answer


def read_boxes(file):
    """Returns the boxes of a json file {image file name: [[x, y, width, height], ...]}.

    Raises:
      UserError: if it is no such file.
    """
    content = read_json(file)
    if isinstance(content, dict):
        boxes = {name: _box_array(rows) for name, rows in content.items()}
        if all(rows is not None for rows in boxes.values()):
            return boxes
    raise UserError(f"{file} must hold {{image file name: [[x, y, width, height], ...]}} with "
                    "positive widths and heights; correct it")


def boxes_of(files, boxes, source):
    """Returns those of `read_boxes` that belong to image files; those of no persons are empty.

    Args:
      files: paths of images.
      boxes: {file name: boxes}.
      source: file they are from, for the error.

    Raises:
      UserError: if none of the names is that of an image.
    """
    names = {Path(file).name for file in files}
    if not names & set(boxes):
        raise UserError(f"{source} has boxes for none of the {len(names)} images, such as "
                        f"{min(names)!r}; its names must be file names without folders")
    return {name: rows for name, rows in boxes.items() if name in names}


def _box_array(rows):
    """Returns boxes as float (P, 4), or None if they are none."""
    try:
        boxes = np.array(rows, float)
    except (TypeError, ValueError):
        return None
    if boxes.shape == (0,):
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        return None
    return boxes if np.isfinite(boxes).all() and (boxes[:, 2:] > 0).all() else None


def is_pose(name):
    """Returns whether a name spells a pose network, simple_pose_{backbone}."""
    return name.lower().startswith(zoo.POSE)


def from_zoo(name, weights, *, ctx=None):
    """Builds a pose network of the zoo, "simple_pose_{backbone}", with the weights of a file.

    Returns:
      (net, card): the card says 256 x 192, as a file does not tell what it was trained at.

    Raises:
      UserError: if the name is unknown, or the weights are not given or do not fit.
    """
    return with_weights(name, weights, ctx=ctx), PoseCard(name)

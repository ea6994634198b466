"""What the predictors of dense and object tasks share: files in, answers or problems out."""
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd

from gluon_resnest.data import images as image_files
from gluon_resnest.data.detection import stack
from gluon_resnest.data.detection_transforms import EvalTransform, moved
from gluon_resnest.errors import UserError
from gluon_resnest.interop import cards, deployed


class TaskPredictor:
    """Base of predictors that answer one image at a time.

    A subclass has the `kind` of its cards, `answered(file, image)` and `failed(file, problem)`.
    """

    kind = cards.TaskCard

    @classmethod
    def load(cls, prefix, card=None, *, ctx=None, **options):
        """Loads an exported pair; `card` takes the place of the one beside it.

        Raises:
          UserError: if a file is absent, damaged or not what was exported.
        """
        card = card or cards.read(prefix, cls.kind)
        return cls(deployed.load_pair(prefix, card, ctx=ctx), card, ctx=ctx, **options)

    def answer(self, files):
        """Yields the answer of each file, in order; one that is no image has a problem."""
        for file in map(Path, files):
            try:
                yield self.answered(file, image_files.load(file))
            except UserError as error:
                yield self.failed(file, str(error))


class BoxPredictor(TaskPredictor):
    """Base of predictors whose network is a detector or contains one.

    Images keep their own aspect ratio.

    Args:
      net: Block whose parameters lie on `ctx`.
      card: with short_px, max_px, resize, mean and std as in `detection.DetectionCard`.
      ctx: Context to run on; the CPU by default.
    """

    def __init__(self, net, card, *, ctx=None):
        self.card, self._net, self._ctx = card, net, ctx or mx.cpu()
        self._transform = EvalTransform(card.short_px, card.max_px, card.resize, mean=card.mean,
                                        std=card.std)
        net.hybridize()

    def run(self, image):
        """Runs the network on a uint8 RGB image (H, W, 3).

        Returns:
          (outputs, sizes, originals): the network's NDArrays; the image's (height, width) after
          and before it was resized, as rows of one.

        Raises:
          UserError: if the network gives NaN or infinity.
        """
        original = image.shape[:2]
        resized = moved(image, self._transform.move(*original), self._transform.rule)
        images, sizes = stack([resized], self._transform, divisor=1)
        with autograd.pause(train_mode=False):
            outputs = self._net(mx.nd.array(images, ctx=self._ctx))
        if not all(np.isfinite(output.asnumpy()).all() for output in outputs):
            raise UserError(f"the network {self.card.model} gives NaN or infinity for this image; "
                            "its weights are damaged or its training had diverged")
        return outputs, sizes, [original]

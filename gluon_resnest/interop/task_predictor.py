"""What the predictors of dense and object tasks share: files in, answers or problems out."""
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd

from gluon_resnest.data import images as image_files
from gluon_resnest.data.detection import stack
from gluon_resnest.data.detection_transforms import EvalTransform, moved
from gluon_resnest.errors import UserError, diverged
from gluon_resnest.interop import cards, deployed


class TaskPredictor:
    """Base of predictors that answer one image at a time.

    A subclass has the `kind` of its cards, whether its networks are `deployable`,
    `answered(file, image)` and `failed(file, problem)`.
    """

    kind = cards.TaskCard
    deployable = True

    @classmethod
    def load(cls, prefix, card=None, *, ctx=None, engine=None, **options):
        """Loads an exported network.

        Args:
          prefix: what its file names begin with.
          card: instead of the one beside the files.
          ctx: Context to run on; the CPU by default.
          engine: as in `predictor.Predictor.load`.
          options: of the class.

        Raises:
          UserError: if a file is absent, damaged, not what was exported or for another engine.
        """
        card = card or cards.read(prefix, cls.kind)
        if engine is not None and not cls.deployable:
            raise UserError(f"{card.model}, a {card.word}, has no deploy graph that an engine "
                            "could run; leave the engine out")
        if engine is None and deployed.is_plain(prefix):
            net = deployed.load_pair(prefix, card, ctx=ctx)
        else:
            net = _EngineBlock(deployed.load(prefix, engine=engine, device=str(ctx or "cpu"),
                                             card=card))
        return cls(net, card, ctx=ctx, **options)

    def answer(self, files):
        """Yields the answer of each file, in order; one that is no image has a problem."""
        for file in map(Path, files):
            try:
                yield self.answered(file, image_files.load(file))
            except UserError as error:
                yield self.failed(file, str(error))


class _EngineBlock(mx.gluon.Block):
    """Lets a `deploy.loading.Loaded` network of one output take the place of a Block."""

    def __init__(self, network):
        super().__init__()
        self._network = network

    def forward(self, images):
        return mx.nd.array(self._network(images.asnumpy()), ctx=images.context)


class BoxPredictor(TaskPredictor):
    """Base of predictors whose network is a detector or contains one.

    Images keep their own aspect ratio.

    Args:
      net: Block whose parameters lie on `ctx`.
      card: with short_px, max_px, resize, mean and std as in `detection.DetectionCard`.
      ctx: Context to run on; the CPU by default.
    """

    deployable = False

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
            raise diverged(self.card.model)
        return outputs, sizes, [original]

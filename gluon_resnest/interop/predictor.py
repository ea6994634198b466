"""Classifies images with an exported pair or a network of the zoo."""
import itertools
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd

from gluon_resnest.data import images as image_files
from gluon_resnest.data.transforms import eval_transform
from gluon_resnest.errors import UserError, diverged
from gluon_resnest.interop import deployed


class Guess(NamedTuple):
    """One class an image may belong to; `name` is None where the classes have no names."""

    index: int
    name: Optional[str]
    probability: float

    @property
    def label(self):
        """What to call the class."""
        return f"class {self.index}" if self.name is None else self.name


class Answer(NamedTuple):
    """What a file shows: guesses, most probable first, or the problem that kept it from saying."""

    file: Path
    guesses: Tuple[Guess, ...]
    problem: Optional[str] = None


class Predictor:
    """Turns images into their most probable classes.

    Args:
      forward: float32 array (N, 3, H, W) to logits (N, K), both numpy.
      card: `deployed.Card` that says how images are prepared and what the classes are called.
    """

    def __init__(self, forward, card):
        self.card = card
        self._forward = forward
        self._prepare = eval_transform(card.crop_px, card.protocol, mean=card.mean, std=card.std)

    @classmethod
    def load(cls, prefix, card=None, *, ctx=None, engine=None):
        """Loads an exported network.

        Args:
          prefix: what its file names begin with.
          card: instead of the one beside the files, for pairs that have none.
          ctx: Context to run on; the CPU by default.
          engine: "mxnet" or "onnxruntime", which runs what was exported for it as fast as it can;
            None runs a pair as it is, and what else there is by its engine.

        Raises:
          UserError: if a file is absent, damaged, not what was exported or for another engine.
        """
        plain = engine is None and deployed.is_plain(prefix)
        if plain:
            deployed.check_presence(prefix)
        card = card or deployed.read_card(prefix)
        if card is None:
            raise UserError(f"{str(prefix)!r} has no card {deployed.paths(prefix)[2].name!r} that "
                            "says how its images are prepared; give crop and protocol yourself")
        if plain:
            return cls.of_block(deployed.load_pair(prefix, card, ctx=ctx), card, ctx=ctx)
        return cls(deployed.load(prefix, engine=engine, device=str(ctx or "cpu"), card=card), card)

    @classmethod
    def of_block(cls, net, card, *, ctx=None):
        """Wraps a Gluon block whose parameters lie on `ctx`, the CPU by default."""
        def forward(images):
            with autograd.pause(train_mode=False):
                return net(mx.nd.array(images, ctx=ctx or mx.cpu())).asnumpy()

        net.hybridize(static_alloc=True)
        return cls(forward, card)

    def probabilities(self, images):
        """Returns the class probabilities (N, K) of a list of uint8 RGB images (H, W, 3)."""
        logits = self._forward(np.stack([self._prepare(image) for image in images]))
        if not np.isfinite(logits).all():
            raise diverged(self.card.model, "these images")
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, images, *, topk=5, batch=16):
        """Yields for each image its `topk` guesses, most probable first.

        Args:
          images: iterable of uint8 RGB images (H, W, 3) of any sizes.
          topk: guesses an image, at most as many as there are classes.
          batch: images that are classified together.
        """
        images = iter(images)
        for group in iter(lambda: list(itertools.islice(images, batch)), []):
            for row in self.probabilities(group):
                best = np.argsort(-row, kind="stable")[:topk]
                yield tuple(self._guess(row, index) for index in best)

    def classify(self, files, *, topk=5, batch=16):
        """Yields the `Answer` of each image file, in order; a file that is no image has a problem.

        Args: as `predict`.
        """
        files = iter(files)
        for group in iter(lambda: list(itertools.islice(files, batch)), []):
            images, problems = {}, {}
            for file in group:
                try:
                    images[file] = image_files.load(file)
                except UserError as error:
                    problems[file] = str(error)
            guesses = dict(zip(images, self.predict(images.values(), topk=topk, batch=batch)))
            for file in group:
                yield Answer(Path(file), guesses.get(file, ()), problems.get(file))

    def _guess(self, row, index):
        names = self.card.class_names
        return Guess(int(index), names[index] if names else None, float(row[index]))


def find_images(sources):
    """Returns the image files that a list of files and folders means, folders sorted and deep.

    Raises:
      UserError: if a source does not exist, or a folder holds no image.
    """
    files = []
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(file for file in source.rglob("*")
                           if file.suffix.lower() in image_files.SUFFIXES and file.is_file())
            if not found:
                raise UserError(f"the folder {str(source)!r} holds no image; expected files ending "
                                f"in {', '.join(image_files.SUFFIXES)}")
            files += found
        elif source.exists():
            files.append(source)
        else:
            raise UserError(f"there is no image or folder {str(source)!r}; check the path")
    return files

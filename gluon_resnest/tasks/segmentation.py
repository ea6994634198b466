"""Semantic segmentation as a Task: network, crops, pixel losses, exact confusion matrix."""
import io
import itertools
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import nd

from gluon_resnest.data import color
from gluon_resnest.data.classification import first_difference
from gluon_resnest.data.label_maps import counted_from_zero
from gluon_resnest.data.loader import Loader
from gluon_resnest.data.sampling import TrainPlan, shard
from gluon_resnest.data.segmentation import SegmentationDataset, read_ahead
from gluon_resnest.data.segmentation_layouts import open_segmentation
from gluon_resnest.data.segmentation_transforms import TrainTransform
from gluon_resnest.data.shapes import KINDS, ShapeScenes
from gluon_resnest.engine.amp import enable
from gluon_resnest.engine.memory import to_device
from gluon_resnest.engine.optim import Poly, decays, optimizer, set_multipliers
from gluon_resnest.engine.progress import evaluating
from gluon_resnest.engine.update import make_update
from gluon_resnest.errors import UserError
from gluon_resnest.files import write_whole
from gluon_resnest.metrics import ConfusionMatrix, intersection_over_union, pixel_accuracy
from gluon_resnest.models.pixel_loss import PixelCrossEntropy
from gluon_resnest.models.segmentation import initialize
from gluon_resnest.models.whole_image import WholeImage
from gluon_resnest.tasks.statistics import settle_statistics
from gluon_resnest.tasks.trained_run import check_classes, load_backbone
from gluon_resnest.tasks.workload import segmentation_workload
from gluon_resnest.zoo import load_weights, segmentation_model

CONFUSION = "confusion.npy"         # in the run directory: int64 (classes, classes), rows are true
_SUM_NUMBERS = range(8)             # more than the steps that are under way at a time
_NORMALIZATION = color.normalization()
_BLACK = tuple(_NORMALIZATION[:, 3])


class Segmentation:
    """Trains and evaluates one network on images with a class for each pixel.

    Args:
      recipe: a SegmentationRecipe.
      run: the command line's other flags.
      comm: this worker's `engine.comm` connection.
    """

    main_metric = "miou"
    workload = staticmethod(segmentation_workload)

    @staticmethod
    def add_flags(parser):
        """Adds the paths and sizes that belong to a machine, not to the experiment."""
        parser.add_argument("--root", metavar="DIR", help="folder of the data set, laid out as "
                            "the recipe's dataset says (docs/segmentation.md), or with train.rec "
                            "and val.rec of tools/pack_masks.py")
        parser.add_argument("--backbone-weights", metavar="RUN|FILE|NAME",
                            help="start the backbone from a classification run, a .params file or "
                            "URL, or the published weights of a zoo name")
        parser.add_argument("--eval-batch", type=int, default=4, metavar="N",
                            help="windows a worker evaluates at a time (default: %(default)s)")
        parser.add_argument("--synthetic-steps", type=int, default=100, metavar="N",
                            help="training steps in an epoch of --data synthetic, drawn shapes "
                            "(default: %(default)s)")

    def __init__(self, recipe, run, comm):
        self._recipe, self._run, self._comm, self._workdir = recipe, run, comm, run.workdir
        if run.eval_batch < 1:
            raise UserError(f"--eval-batch must be at least 1, got {run.eval_batch}")
        self._context = comm.context(run.device)
        self._train, self.class_names = None, None
        if not run.eval_only:
            self._train = _training_data(recipe, run, comm)
            self.steps_per_epoch = self._train.steps_per_epoch
            self.class_names = self._train.dataset.class_names
        self._val = _dataset(recipe, run, "val")
        self._readers = run.data_workers
        _check_alike(self.class_names, self._val.class_names)
        self.class_names = self.class_names or self._val.class_names
        comm.on_main(lambda: check_classes(run.workdir, self.class_names))

        enable(recipe.precision, self._context)
        mx.random.seed(recipe.seed)
        self.net = _network(recipe, run, comm, self._context)
        self._coarse = self.net.before_enlarging()
        self._coarse.hybridize(static_alloc=True)
        logits = self.net.without_auxiliary()
        logits.hybridize(static_alloc=True)
        self._whole = WholeImage(
            logits, window_px=recipe.crop_px, base_px=recipe.base_px, scales=recipe.scales,
            flip=recipe.eval_flip, rule=recipe.eval_rule, padding=_BLACK, batch=run.eval_batch,
            ctx=self._context, name=recipe.network)
        self.params = self.net.collect_params()
        heads = {name for head in self.net.heads() for name in head.collect_params()}
        set_multipliers(
            self.params,
            decays=(lambda name: True) if recipe.decay_bias_and_norm else decays,
            lr_mult=lambda name: recipe.head_lr_factor if name in heads else 1.0)
        if run.eval_only:
            return
        self.update = make_update(recipe, self.net, comm, optimizer(
            recipe.optimizer, wd=recipe.wd, momentum=recipe.momentum, beta2=recipe.beta2))
        self._loss = PixelCrossEntropy(recipe.ohem_easy,
                                       min(recipe.ohem_keep, recipe.crop_px ** 2))

    @property
    def lr_at(self):
        """The learning rate schedule: polynomial decay at every step (paper, 6.3)."""
        recipe, steps = self._recipe, self.steps_per_epoch
        return Poly(recipe.lr, round(recipe.warmup_epochs * steps), recipe.epochs * steps,
                    recipe.power)

    def on_epoch(self, epoch):
        """Does nothing: nothing changes between the epochs."""

    def batches(self, start_step):
        """Yields (images (N, 3, S, S), labels (N, S, S), pixels (N,)) from a global step on.

        `pixels` is the mean number of labelled pixels of an image over all workers, at least one
        in the whole batch: the same for each image, and on each worker.
        """
        for batch, number in zip(self._train.batches(start_step), itertools.cycle(_SUM_NUMBERS)):
            images, labels = (to_device(part, self._context) for part in batch.arrays)
            labelled = self._comm.sum_later((labels >= 0).sum(), f"pixels.{number}")
            count = len(images) * self._comm.size
            pixels = nd.maximum(labelled, 1) / count
            yield images, labels, pixels.broadcast_to((len(images),))

    def losses(self, batch):
        """Returns {"loss", "auxiliary"}: sums over the labelled pixels of these images.

        Divided by the pixels that so many images have on average. So the mean over the workers, or
        over the parts of a batch, is the mean over all labelled pixels, however they are
        distributed.
        """
        images, labels, pixels = batch
        main, auxiliary = (self._loss(logits, labels) / pixels.sum()
                           for logits in self._coarse(images))
        return {"loss": main, "auxiliary": self._recipe.aux_weight * auxiliary}

    def evaluate(self):
        """Compares every pixel of the evaluation set at full size, over all workers.

        Returns:
          {"miou", "pixacc": per cent, "classes": how many are there or predicted, "images"}.

        Raises:
          RuntimeError: if the workers together saw another number of images than the set has.
        """
        settle_statistics(
            self._coarse, self.params, self._comm,
            batches=self._recipe.precise_bn_batches if self._train else 0,
            loader=lambda: _training_data(self._recipe, self._run, self._comm),
            forward=lambda batch: self._coarse(to_device(batch.arrays[0], self._context)))
        matrix, seen = ConfusionMatrix(self._recipe.classes), 0
        own = shard(len(self._val), self._comm.rank, self._comm.size)
        for image, labels in evaluating(read_ahead(self._val, own, self._readers), len(own),
                                        self._comm):
            matrix.update(self._whole.labels(color.apply(image, _NORMALIZATION)), labels)
            seen += 1
        total = self._comm.total({"pixels": matrix.pixels, "images": seen})
        if total["images"] != len(self._val):
            raise RuntimeError(f"evaluation saw {total['images']} images of {len(self._val)}: "
                               "each must be seen exactly once")
        if self._workdir:
            self._comm.on_main(lambda: _save(Path(self._workdir) / CONFUSION, total["pixels"]))
        overlaps = intersection_over_union(total["pixels"])
        present = overlaps[~np.isnan(overlaps)]
        if not len(present):
            raise UserError("the evaluation set has no labelled pixel; check its label files")
        return {"miou": 100 * float(present.mean()),
                "pixacc": 100 * pixel_accuracy(total["pixels"]), "classes": len(present),
                "images": total["images"]}

    @staticmethod
    def describe(metrics):
        """Returns the sentence a person reads about `evaluate`'s values."""
        return (f"mIoU {metrics['miou']:.2f} % over {metrics['classes']} classes, pixel accuracy "
                f"{metrics['pixacc']:.2f} %, {metrics['images']} images")

    def close(self):
        """Ends the loader processes."""
        if self._train is not None:
            self._train.close()


def _check_alike(train, val):
    """Refuses other class names in training than in evaluation; None: not known."""
    found = first_difference(train, val) if train and val else None
    if found:
        number, here, there = found
        raise UserError("train and val must have the same classes in the same order, but class "
                        f"{number} is {here!r} in train and {there!r} in val; number them alike")


def _network(recipe, run, comm, context):
    """Builds the recipe's network on the device, initialised or loaded."""
    net = segmentation_model(
        recipe.network, recipe.classes, output_stride=recipe.output_stride,
        norm_layer=recipe.norm, norm_kwargs={"workers": comm} if recipe.norm == "sync" else None,
        head_channels=recipe.head_channels, head_dropout=recipe.head_dropout)
    initialize(net, ctx=context)
    if run.backbone_weights:
        load_backbone(net.stages(), run.backbone_weights, network=recipe.network, ctx=context)
    if run.weights:
        load_weights(net, recipe.network, run.weights, ctx=context)
    return net


def _training_data(recipe, run, comm):
    """Returns the loader of the training crops."""
    dataset = _dataset(recipe, run, "train", TrainTransform(
        recipe.base_px, recipe.crop_px, (recipe.scale_low, recipe.scale_high), recipe.flip,
        recipe.blur))
    plan = TrainPlan(len(dataset), recipe.batch, comm.rank, comm.size, recipe.seed)
    return Loader(dataset, plan, seed=recipe.seed, workers=run.data_workers)


def _save(path, array):
    content = io.BytesIO()
    np.save(content, array)
    write_whole(path, content.getvalue())


def _dataset(recipe, run, split, transform=None):
    """Opens a split of the recipe's data set, or draws one."""
    if run.data == "synthetic":
        images = recipe.batch * run.synthetic_steps
        held_out = split == "val"
        source = ShapeScenes(max(1, images // 8) if held_out else images,
                             (recipe.crop_px, recipe.crop_px * 5 // 4), recipe.classes,
                             2 * recipe.seed + held_out)
        names = ("ground", *KINDS)
        names = names[:recipe.classes] if recipe.classes <= len(names) else None
        return SegmentationDataset(source, counted_from_zero(recipe.classes, names), transform)
    if not run.root:
        raise UserError("--root DIR is missing; give the folder of the data set, or use --data "
                        "synthetic")
    return open_segmentation(recipe.dataset, run.root, split, classes=recipe.classes,
                             transform=transform)

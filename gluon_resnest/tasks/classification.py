"""Image classification as a Task: network, images, soft targets, exact top-k counts."""
import logging

import mxnet as mx
import numpy as np
from mxnet import nd

from gluon_resnest.data import mixing
from gluon_resnest.data.loader import Loader
from gluon_resnest.data.sampling import EvalPlan, TrainPlan
from gluon_resnest.data.synthetic import SyntheticClassification
from gluon_resnest.engine.amp import enable
from gluon_resnest.engine.memory import to_device
from gluon_resnest.engine.optim import Cosine, Steps, decays, optimizer, set_multipliers
from gluon_resnest.engine.progress import evaluating
from gluon_resnest.engine.update import make_update
from gluon_resnest.errors import UserError
from gluon_resnest.losses import Distillation, SoftCrossEntropy, balanced_weights
from gluon_resnest.metrics import TopK
from gluon_resnest.models.dropblock import set_drop_prob, set_drop_rule
from gluon_resnest.models.norm import few_values, freeze_stages, use_running_statistics
from gluon_resnest.models.resnest import initialize
from gluon_resnest.models.sync_batch_norm import plain_batch_norm
from gluon_resnest.tasks import trained_run
from gluon_resnest.tasks.classification_data import (
    evaluation_images, held_out_images, training_images)
from gluon_resnest.tasks.statistics import settle_statistics
from gluon_resnest.tasks.workload import classification_workload
from gluon_resnest.zoo import get_model, load_weights

_log = logging.getLogger(__name__)


class Classification:
    """Trains and evaluates one network on class-labelled images.

    Args:
      recipe: a ClassificationRecipe.
      run: the command line's other flags.
      comm: this worker's `engine.comm` connection.
    """

    main_metric = "top1"
    workload = staticmethod(classification_workload)

    @classmethod
    def add_flags(cls, parser):
        """Adds the paths and sizes that belong to a machine, not to the experiment."""
        cls.add_paths(parser)
        parser.add_argument("--eval-batch", type=int, default=64, metavar="N",
                            help="images per evaluation step of a worker (default: %(default)s)")
        parser.add_argument("--synthetic-steps", type=int, default=100, metavar="N",
                            help="training steps in an epoch of --data synthetic "
                            "(default: %(default)s)")
        parser.add_argument("--teacher-weights", metavar="FILE",
                            help="parameters of the recipe's teacher network, or: published")

    @staticmethod
    def add_paths(parser):
        """Adds where the images are."""
        parser.add_argument("--rec-train", metavar="PATH",
                            help="training images: a .rec file (tools/pack_records.py or MXNet's "
                            "im2rec), or a folder of class folders")
        parser.add_argument("--rec-val", metavar="PATH", help="evaluation images, likewise")

    def __init__(self, recipe, run, comm):
        self._recipe, self._run, self._comm = recipe, run, comm
        self._context = comm.context(run.device)
        self._train, self.class_names = None, None
        if run.eval_only:
            self.class_names = comm.on_main(lambda: trained_run.class_names(run.workdir))
        else:
            self._train = self.open_training(run)
            self.steps_per_epoch = self._train.steps_per_epoch
            self.class_names = self._train.dataset.class_names
            comm.on_main(lambda: trained_run.check_classes(run.workdir, self.class_names))
        self._val = self.open_evaluation(run)
        self.class_names = self.class_names or self._val.dataset.class_names

        enable(recipe.precision, self._context)
        mx.random.seed(recipe.seed)
        self.net = _network(recipe, comm, self._context)
        _check_sides(self.net, recipe, ("eval_px",) if run.eval_only else ("crop_px", "eval_px"))
        if not run.eval_only:
            _look_for_few_values(self.net, recipe, comm)
        if run.weights:
            self.load(run)
        freeze_stages(self.net, recipe.freeze_stages)
        self.net.hybridize(static_alloc=True)
        self.params = self.net.collect_params()
        set_multipliers(self.params, decays=decays if not recipe.decay_bias_and_norm
                        else lambda name: True)
        if run.eval_only:
            return
        self.update = make_update(recipe, self.net, comm, optimizer(
            recipe.optimizer, wd=recipe.wd, momentum=recipe.momentum))
        self._class_weights = None
        if recipe.class_weights == "balanced":
            self._class_weights = balanced_weights(self._train.dataset.labels, recipe.classes)
        self._teacher = _teacher(recipe, run, self._context)
        self._loss = SoftCrossEntropy() if self._teacher is None else \
            Distillation(recipe.temperature, recipe.hard_weight)
        self._loss.hybridize()

    def load(self, run):
        """Gives the network the values that --weights names."""
        load_weights(self.net, self._recipe.network, run.weights, ctx=self._context)

    @property
    def lr_at(self):
        """The learning rate schedule: warm-up, then half a cosine to zero (paper, 4.2), or flat."""
        steps = self.steps_per_epoch
        warmup = round(self._recipe.warmup_epochs * steps)
        if self._recipe.schedule == "constant":
            return Steps(self._recipe.peak_lr, warmup, milestones=())
        return Cosine(self._recipe.peak_lr, warmup, self._recipe.epochs * steps)

    def on_epoch(self, epoch):
        """Sets DropBlock's probability on its linear ramp, which ends at the recipe's value."""
        if self._recipe.dropblock:          # a change has the network traced anew
            set_drop_prob(self.net, self._recipe.dropblock * (epoch + 1) / self._recipe.epochs)

    def batches(self, start_step):
        """Yields (images (N, 3, S, S), targets (N, K)) on the device, from a global step on."""
        return map(self.on_device, self._train.batches(start_step))

    def losses(self, batch):
        """Returns {"loss": mean over the local batch}."""
        images, targets = batch
        logits = self.net(images)
        if self._teacher is None:
            return {"loss": self._loss(logits, targets)}
        with mx.autograd.pause():
            taught = self._teacher(images)
        return {"loss": self._loss(logits, targets, taught)}

    def evaluate(self):
        """Counts the evaluation set over all workers, every image exactly once.

        Returns:
          {"top1", "top5": percent, "top1_hits", "top5_hits", "images": counts}.

        Raises:
          RuntimeError: if the workers together saw other images than the set has.
        """
        self.settle()
        metric, numbers = TopK((1, 5)), 0
        for batch, logits in self.scored(self._val):
            metric.update(logits, batch.arrays[1])
            numbers += int(batch.indices.sum())
        top1, top5, seen, numbers = map(int, self._comm.total(np.append(metric.counts(), numbers)))
        _check_seen(seen, numbers, len(self._val.dataset))
        return {"top1": 100 * top1 / seen, "top5": 100 * top5 / seen, "top1_hits": top1,
                "top5_hits": top5, "images": seen}

    def settle(self):
        """Gives the network the running statistics with which it is evaluated, and saved."""
        settle_statistics(
            self.net, self.params, self._comm,
            batches=self._recipe.precise_bn_batches if self._train else 0,
            loader=lambda: self.open_training(self._run),
            forward=lambda batch: self.net(self.on_device(batch)[0]))

    def scored(self, loader):
        """Yields (batch, logits as numpy (N, K)) of this worker's part of a loader's epoch."""
        for batch in evaluating(loader.epoch(0), loader.steps_per_epoch, self._comm):
            images, labels = batch.arrays
            if len(labels):     # a worker's share of the last step may be empty
                logits = self.net(to_device(images, self._context)).astype("float32", copy=False)
                yield batch, logits.asnumpy()

    @staticmethod
    def describe(metrics):
        """Returns the sentence a person reads about `evaluate`'s values."""
        return (f"top-1 {metrics['top1']:.3f} % ({metrics['top1_hits']} of {metrics['images']}), "
                f"top-5 {metrics['top5']:.3f} % ({metrics['top5_hits']} of {metrics['images']})")

    def open_training(self, run):
        """Returns a loader of the training images; they are opened once."""
        recipe = self._recipe
        if self._train is not None:
            dataset = self._train.dataset
        elif run.data == "synthetic":
            dataset = self._generated(recipe.crop_px, recipe.batch * run.synthetic_steps, 0)
        else:
            dataset = self.training_images(run)
        return Loader(dataset, self._train_plan(dataset), seed=recipe.seed,
                      workers=run.data_workers)

    def open_evaluation(self, run):
        """Returns the loader of the evaluation images; those of training are open already."""
        recipe = self._recipe
        if run.data == "synthetic":
            dataset = self._generated(recipe.eval_px, recipe.batch * run.synthetic_steps // 8, 1)
        else:
            dataset = self.evaluation_images(run)
        return self._evaluation_loader(dataset, run)

    def training_images(self, run):
        """Opens the dataset of training images."""
        return training_images(self._recipe, run.rec_train, "--rec-train")

    def evaluation_images(self, run):
        """Opens the dataset of evaluation images."""
        if self._recipe.hold_out:
            return held_out_images(self._recipe, run.rec_train, "--rec-train",
                                   self._train and self._train.dataset)
        return evaluation_images(self._recipe, run.rec_val, "--rec-val", self.class_names)

    def _evaluation_loader(self, dataset, run):
        return Loader(dataset, self._eval_plan(dataset, run), seed=self._recipe.seed,
                      workers=run.data_workers)

    def _generated(self, size, length, part):
        # Other images for evaluation, part 1, than for training, part 0, whatever the seed.
        return SyntheticClassification(max(1, length), size, self._recipe.classes,
                                       2 * self._recipe.seed + part)

    def _train_plan(self, dataset):
        recipe, comm = self._recipe, self._comm
        return TrainPlan(len(dataset), recipe.batch, comm.rank, comm.size, recipe.seed,
                         recipe.data_order, recipe.remainder)

    def _eval_plan(self, dataset, run):
        comm = self._comm
        return EvalPlan(len(dataset), run.eval_batch * comm.size, comm.rank, comm.size)

    def close(self):
        """Ends the loader processes."""
        for loader in (self._train, self._val):
            if loader is not None:
                loader.close()

    def on_device(self, batch):
        """Moves a batch to the device: mixed images, soft targets."""
        recipe = self._recipe
        images, labels = batch.arrays
        keep, lam, partner = _mixing_plan(recipe, batch)
        targets = mixing.soft_targets(labels, lam, partner, recipe.classes,
                                      recipe.label_smoothing, recipe.smoothing_formula,
                                      self._class_weights)
        images = to_device(images, self._context)
        if keep is not None:
            keep = to_device(keep.reshape(len(lam), 1, *(keep.shape[2:] or (1, 1))), self._context)
            mate = nd.take(images, to_device(partner, self._context))
            images = mate + nd.broadcast_mul(keep, images - mate)
        return images, to_device(targets, self._context)


def _check_seen(seen, numbers, images):
    """Raises a RuntimeError unless so many images, and the sum of their numbers, are the set's."""
    if (seen, numbers) != (images, images * (images - 1) // 2):
        raise RuntimeError(f"evaluation saw {seen} images of {images}, whose numbers add up to "
                           f"{numbers} and not {images * (images - 1) // 2}: each must be seen "
                           "exactly once")


def _mixing_plan(recipe, batch):
    """Decides how a batch is mixed.

    Returns:
      (keep, lam, partner): share of the own image as (N,) or, in CutMix, mask (N, 1, H, W), None
      where nothing is mixed; share of the own label (N,); position of the other image (N,).
    """
    moment = (recipe.seed, batch.epoch, batch.indices)
    mixes = batch.epoch < recipe.epochs - recipe.mixup_off_epochs
    mixup, cutmix = mixes and recipe.mixup_alpha > 0, mixes and recipe.cutmix_alpha > 0
    if mixup and cutmix:
        cutmix = mixing.picks_cutmix(*moment)
    if cutmix:
        size = batch.arrays[0].shape[2:]
        boxes, lam, partner = mixing.cutmix_plan(*moment, recipe.cutmix_alpha, *size,
                                                 recipe.mixup_mode)
        return mixing.box_mask(boxes, *size), lam, partner
    if mixup:
        lam, partner = mixing.mixup_plan(*moment, recipe.mixup_alpha, recipe.mixup_mode)
        return lam, lam, partner
    return (None, *mixing.mixup_plan(*moment, 1.0, "none"))


def _network(recipe, comm, context):
    """Builds the recipe's network, initialised as in the paper, on the device."""
    options = {} if recipe.final_drop is None else {"final_drop": recipe.final_drop}
    if recipe.norm == "sync":
        options["norm_kwargs"] = {"workers": comm}
    net = get_model(recipe.network, classes=recipe.classes, last_gamma=recipe.last_gamma,
                    norm_layer=recipe.norm, **options)
    set_drop_rule(net, recipe.dropblock_rule, per_sample=recipe.dropblock_mask == "sample")
    set_drop_prob(net, recipe.dropblock / recipe.epochs)
    initialize(net, ctx=context)
    return net


def _check_sides(net, recipe, fields):
    """Raises a UserError unless a network can compute images of the sides in a recipe's fields."""
    with plain_batch_norm(net):
        logits = net(mx.sym.var("data"))
    for field in fields:
        side = getattr(recipe, field)
        try:
            logits.infer_shape(data=(1, 3, side, side))
        except mx.MXNetError as error:
            raise UserError(f"{field} (={side}) leaves {recipe.network} a map too small to be "
                            "pooled; give a larger one, for example 32") from error


def _look_for_few_values(net, recipe, comm):
    """Warns of batch norms that see few values; those that would see one use running statistics.

    The variance of one value is zero: such a norm answers its beta, whatever comes in.
    """
    images = max(1, comm.split(recipe.batch) // recipe.accumulate)
    few = few_values(net, (images, 3, recipe.crop_px, recipe.crop_px), workers=comm.size)
    single = [name for name, values in few.items() if values == 1]
    if single:
        use_running_statistics(net, single)
        _log.warning("%d batch norms, %s first, would see a single value per channel (%d images "
                     "per worker and part): they use their running statistics instead; use a "
                     "larger --batch to have them learn", len(single), single[0], images)
    few = {name: values for name, values in few.items() if values > 1}
    if few:
        name = min(few, key=few.get)
        _log.warning("%d batch norms see fewer than 8 values per channel, %s only %d (%d images "
                     "per worker): use a larger --batch, --norm sync or --norm frozen", len(few),
                     name, few[name], images)


def _teacher(recipe, run, context):
    """Returns the teacher network in inference mode, or None."""
    if not recipe.teacher:
        if run.teacher_weights:
            raise UserError("--teacher-weights needs the network they belong to; give it with "
                            "--teacher NAME")
        return None
    if not run.teacher_weights:
        raise UserError(f"the teacher {recipe.teacher!r} needs trained parameters: give them with "
                        "--teacher-weights FILE")
    net = get_model(recipe.teacher, classes=recipe.classes)
    load_weights(net, recipe.teacher, run.teacher_weights, ctx=context)
    net.hybridize(static_alloc=True)
    return net

"""Detection and instance segmentation as a Task: R-CNNs on a pyramid, COCO's AP (paper, 6.1)."""
import functools
import itertools
import logging
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import autograd, nd

from gluon_resnest.data.detection import stack
from gluon_resnest.data.repeat_factor import image_counts
from gluon_resnest.data.sampling import random_for, shard
from gluon_resnest.data.text_files import read_json
from gluon_resnest.engine.amp import enable
from gluon_resnest.engine.memory import to_device
from gluon_resnest.engine.optim import Steps, decays, optimizer, set_multipliers
from gluon_resnest.engine.progress import evaluating
from gluon_resnest.engine.update import make_update
from gluon_resnest.errors import UserError
from gluon_resnest.models.deform import set_deformable_form
from gluon_resnest.models.detection.build import parse
from gluon_resnest.models.detection.inference import View, detect, detect_views
from gluon_resnest.models.detection.rpn import NO_BOX
from gluon_resnest.models.detection.sampling import draw_classes
from gluon_resnest.models.detection.targets import Objects
from gluon_resnest.models.resnest import initialize
from gluon_resnest.tasks import detection_data
from gluon_resnest.tasks.coco_files import cocoeval, write_results
from gluon_resnest.tasks.detection_evaluation import (
    KINDS, ProposalRecall, check_results, coco_ap, coco_results, table)
from gluon_resnest.tasks.detector import build_detector
from gluon_resnest.tasks.lvis_evaluation import lvis, lvis_ap
from gluon_resnest.tasks.statistics import settle_statistics
from gluon_resnest.tasks.trained_run import check_classes, load_backbone
from gluon_resnest.tasks.workload import detection_workload
from gluon_resnest.zoo import load_weights

RESULTS = {"bbox": "boxes.json", "segm": "masks.json"}      # in the run directory, COCO's format
PER_CLASS = "classes.json"                                  # in the run directory: AP by class
_AP = {"coco": coco_ap, "lvis": lvis_ap}
_JUDGE = {"coco": cocoeval, "lvis": lvis}
_TOLD = {"ap50": "AP50", "ap75": "AP75", "ap_rare": "APr", "ap_common": "APc",
         "ap_frequent": "APf"}
_SUM_NUMBERS = range(8)             # more than the sums that are under way at a time
_DECAYS = {"all": lambda name: True, "no_norms": lambda name: not name.endswith(("gamma", "beta")),
           "weights": decays}

_log = logging.getLogger(__name__)


class Detection:
    """Trains and evaluates one detector on images with objects.

    Args:
      recipe: a DetectionRecipe.
      run: the command line's other flags.
      comm: this worker's `engine.comm` connection.
    """

    main_metric = "ap"
    workload = staticmethod(detection_workload)
    build = staticmethod(build_detector)
    look, look_views = staticmethod(detect), staticmethod(detect_views)

    @staticmethod
    def add_flags(parser):
        """Adds the paths and sizes that belong to a machine, not to the experiment."""
        detection_data.add_flags(parser)
        parser.add_argument("--backbone-weights", metavar="RUN|FILE|NAME",
                            help="start the backbone from a classification run, a .params file or "
                            "URL, or the published weights of a zoo name")
        parser.add_argument("--results", metavar="FILE", help="with --eval-only: judge this file "
                            "of results in COCO's format; no network runs")
        parser.add_argument("--rpn-recall", action="store_true", help="evaluations also tell the "
                            "average recall of the proposals")
        parser.add_argument("--eval-batch", type=int, default=1, metavar="N",
                            help="images per evaluation step of a worker (default: %(default)s)")
        parser.add_argument("--synthetic-steps", type=int, default=100, metavar="N",
                            help="training steps in an epoch of --data synthetic, drawn shapes "
                            "(default: %(default)s)")

    def __init__(self, recipe, run, comm):
        self._recipe, self._run, self._comm = recipe, run, comm
        self._workdir = Path(run.workdir) if run.workdir else None
        self._context = comm.context(run.device)
        self._data = self._open_data()
        self._train, self._val, self.net, self.params = None, None, None, {}
        if self._data.has_annotations:
            _JUDGE[recipe.dataset]()            # before hours of training, not after
        if run.results:
            if not run.eval_only:
                raise UserError("--results FILE is judged, not trained with; give --eval-only too")
            self.class_names = None
            return
        comm.on_main(self._data.check_masks)
        if not run.eval_only:
            if not self._data.has_annotations:
                raise UserError("the evaluation images have no annotations, so training cannot "
                                "tell which weights are best; give those of val2017")
            self._train = self._data.train()
            self.steps_per_epoch = self._train.steps_per_epoch
        self._val = self._data.evaluation()
        self.class_names = self._names(self._val.dataset.source)
        comm.on_main(lambda: check_classes(run.workdir, self.class_names))

        enable(recipe.precision, self._context)
        mx.random.seed(recipe.seed)
        self.net = self.build(recipe, comm)
        initialize(self.net, ctx=self._context)
        if run.backbone_weights:
            load_backbone(self.net.features.backbone, run.backbone_weights,
                          network=recipe.network, ctx=self._context)
        if run.weights:
            load_weights(self.net, recipe.network, run.weights, ctx=self._context)
        self.net.hybridize()
        self.params = self.net.collect_params()
        set_multipliers(self.params, decays=_DECAYS[recipe.decay])
        if run.eval_only:
            return
        if run.device == "cpu":
            set_deformable_form(self.net, "composed")       # the fused one cannot learn there
        self.update = make_update(recipe, self.net, comm, optimizer(
            recipe.optimizer, wd=recipe.wd, momentum=recipe.momentum, beta2=recipe.beta2))
        self._sums = itertools.cycle(_SUM_NUMBERS)

    @property
    def lr_at(self):
        """The learning rate schedule: a tenth after each of the recipe's milestones."""
        recipe = self._recipe
        return Steps(recipe.lr, recipe.warmup_iterations, recipe.decay_steps(self.steps_per_epoch),
                     warmup_from=recipe.warmup_from)

    def on_epoch(self, epoch):
        """Does nothing: no setting of the network changes while it trains."""

    def batches(self, start_step):
        """Yields what `RCNN.losses` takes, images on the device, from a global step on."""
        return (self._prepared(self._train, batch) for batch in self._train.batches(start_step))

    def losses(self, batch):
        """Returns {name: sum over this worker's batch, divided as `normalize` says}.

        Divided by the counts of all workers over their number, so that the mean over the workers
        is the mean over all of their images, or by this worker's own counts.
        """
        losses = self._losses(batch)
        if self._recipe.normalize == "local":
            return {name: loss.mean() for name, loss in losses.items()}
        with autograd.pause():
            counts = to_device([loss.count for loss in losses.values()], self._context)
            total = self._comm.sum_later(counts, f"counts.{next(self._sums)}")
            means = nd.maximum(total, 1) / self._comm.size
        return {name: loss.total / means[number:number + 1]
                for number, (name, loss) in enumerate(losses.items())}

    def _losses(self, batch):
        if self._recipe.class_loss == "federated":
            *batch, (classes, *_) = batch
            batch = (*batch, classes)
        return self.net.losses(*batch)

    def evaluate(self):
        """Detects objects in every evaluation image, each on one worker, and judges them.

        Writes boxes.json, masks.json and classes.json into the run directory, if there is one.

        Returns:
          Metrics of `detection_evaluation.coco_ap` or `lvis_evaluation.lvis_ap`, those of the
          proposals with --rpn-recall, and "images", the number of images looked at. Images without
          any annotation are not judged: then "detections" only, besides.

        Raises:
          RuntimeError: if an image was not looked at exactly once.
        """
        if self.net is None:
            return self._comm.on_main(self._judge_file)
        recipe = self._recipe
        settle_statistics(
            self.net, self.params, self._comm,
            batches=recipe.precise_bn_batches if self._train else 0,
            loader=self._data.train,
            forward=lambda batch: self._losses(self._prepared(self._train, batch)))
        recall = ProposalRecall() if self._run.rpn_recall else None
        mine = self._from_views() if recipe.scales else self._from_batches(recall)
        rows = sorted(itertools.chain.from_iterable(self._comm.gather(mine)),
                      key=lambda row: row[0])
        length = len(self._val.dataset)
        if [index for index, *_ in rows] != list(range(length)):
            raise RuntimeError(f"evaluation looked at {len(rows)} images of {length}: each must "
                               "be seen exactly once")
        counts = self._comm.total(recall.counts()) if recall else None
        metrics = self._comm.on_main(lambda: self._judged(rows))
        return {**metrics, **(recall.ratios(counts) if recall else {}), "images": length}

    @staticmethod
    def describe(metrics):
        """Returns the sentence a person reads about `evaluate`'s values."""
        images = f"{metrics['images']} images"
        if "ap" not in metrics and "mask_ap" not in metrics:
            return f"{metrics['detections']} detections in {images}, not judged: no annotations"
        parts = []
        for word, prefix in (("box", ""), ("mask", "mask_")):
            if prefix + "ap" in metrics:
                told = ", ".join(f"{title} {metrics[prefix + name]:.2f}"
                                 for name, title in _TOLD.items() if prefix + name in metrics)
                parts.append(f"{word} AP {metrics[prefix + 'ap']:.2f} % ({told})")
        return ", ".join([*parts, images])

    def close(self):
        """Ends the loader processes."""
        for loader in (self._train, self._val):
            if loader is not None:
                loader.close()

    @property
    def detector(self):
        """The `RCNN`."""
        return self.net

    def _open_data(self):
        spelled = parse(self._recipe.network)
        if not spelled:
            raise UserError(f"{self._recipe.network!r} is no detector; expected "
                            "{family}_fpn_{backbone}[_dcn]_{coco|lvis}, such as "
                            "mask_rcnn_fpn_resnest50_coco")
        return detection_data.DetectionData(self._recipe, self._run, self._comm,
                                            "mask" in spelled.family)

    def _names(self, source):
        """Returns the names of the classes, or None if the recipe has more than the data."""
        names = list(source.class_names)
        return names if len(names) == self._recipe.classes else None

    def _prepared(self, loader, batch):
        objects = [Objects(*each) for each in batch.objects]
        return (to_device(batch.images, self._context), batch.sizes, objects,
                [loader.rng(batch, number) for number in range(len(objects))],
                *self._counted(loader, batch))

    @functools.cached_property
    def _class_images(self):
        """How many training images show each class."""
        images = self._train.dataset
        return image_counts(map(images.shown, range(len(images))), self._recipe.classes)

    def _counted(self, loader, batch):
        """Returns the classes in the federated loss of a step, the same on all workers, if any.

        Once for each image, so that each part of a batch has them.
        """
        recipe = self._recipe
        if recipe.class_loss != "federated":
            return ()
        classes = draw_classes(loader.shown(batch), self._class_images, recipe.federated_classes,
                               random_for(recipe.seed, batch.epoch, batch.step, "classes"))
        return ([classes] * len(batch.objects),)

    def _from_batches(self, recall):
        """Returns [(index, boxes, masks)] of this worker's images, in COCO's format."""
        mine = []
        for batch in evaluating(self._val.epoch(0), self._val.steps_per_epoch, self._comm):
            if not len(batch.indices):
                continue
            found = self.look(self.net, batch.images, batch.sizes, batch.original, self._context)
            mine.extend(self._results(*row) for row in zip(batch.indices.tolist(), found,
                                                           batch.original))
            if recall:
                self._count(recall, batch)
        return mine

    def _from_views(self):
        """As `_from_batches`, with test-time augmentation; images are read by this process."""
        recipe, mine = self._recipe, []
        flips = (False, True) if recipe.eval_flip else (False,)
        datasets = [(flip, self._data.view(scale, recipe.eval_scales_max_px, flip))
                    for scale in recipe.scales for flip in flips]
        own = shard(len(self._val.dataset), self._comm.rank, self._comm.size)
        for index in evaluating(own, len(own), self._comm):
            views = []
            for flip, dataset in datasets:
                sample = dataset[index, random_for(0, 0, index)]
                images, sizes = stack([sample.image], dataset.transform)
                views.append(View(images[0], sizes[0], flip))
            found = self.look_views(self.net, views, sample.original, ctx=self._context)
            mine.append(self._results(index, found, sample.original))
        return mine

    def _results(self, index, found, original):
        dataset = self._val.dataset
        return (index, *coco_results(found, dataset.image_id(index), original,
                                     self._category_ids()))

    def _category_ids(self):
        """Returns COCO's number of each class; beyond the data's own, numbers nobody knows."""
        known = self._val.dataset.source.category_ids
        more = np.arange(self._recipe.classes - len(known)) + 1 + known.max(initial=0)
        return np.concatenate([known, more])

    def _count(self, recall, batch):
        boxes, scores = self.detector.proposals(to_device(batch.images, self._context),
                                                to_device(batch.sizes, self._context))
        for row, score, objects in zip(boxes.asnumpy(), scores.asnumpy(), batch.objects):
            recall.update(row[score > NO_BOX / 2], objects.boxes[~objects.crowd])

    def _judged(self, rows):
        """Writes and judges what all workers found."""
        results = {"bbox": list(itertools.chain.from_iterable(boxes for _, boxes, _ in rows))}
        if len(self.detector.mask_heads):
            results["segm"] = list(itertools.chain.from_iterable(masks for *_, masks in rows))
        if self._workdir is not None:
            for kind, found in results.items():
                write_results(self._workdir / RESULTS[kind], found)
        if not self._data.has_annotations:
            return {"detections": len(results["bbox"])}
        return self._measured(results)

    def _judge_file(self):
        """Judges --results FILE."""
        results, truth = read_json(self._run.results), self._data.truth()
        kinds = check_results(results, self._run.results, truth)
        return {**self._measured(dict.fromkeys(kinds, results), truth),
                "images": len(truth["images"])}

    def _measured(self, results, truth=None):
        """Returns the metrics of {kind: results}; writes the AP of each class."""
        truth = truth or self._data.truth()
        metrics, classes = {}, {}
        for kind, found in results.items():
            if kind == "segm":      # their own areas tell small from large, not those of boxes
                found = [{name: value for name, value in each.items() if name != "bbox"}
                         for each in found]
            own, per_class = _AP[self._recipe.dataset](truth, found, kind)
            metrics.update(own)
            for name, value in per_class.items():
                classes.setdefault(name, {})[KINDS[kind] + "ap"] = value
            _log.info("AP by class, %s:\n%s", kind, table(per_class))
        if self._workdir is not None:
            write_results(self._workdir / PER_CLASS, classes)
        return metrics

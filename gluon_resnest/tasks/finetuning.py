"""Fine-tuning of a trained network on a folder of class folders."""
import csv
import dataclasses
import hashlib
import logging
from pathlib import Path

import numpy as np
from mxnet.gluon import nn

from gluon_resnest.config import ClassificationRecipe, override
from gluon_resnest.data.classification import FolderDataset, list_folder
from gluon_resnest.data.images import read_file
from gluon_resnest.data.splitting import Subset, split
from gluon_resnest.errors import UserError
from gluon_resnest.interop.evaluation_drawing import Mistake, draw_confusion, draw_mistakes
from gluon_resnest.interop.export import export_classifier
from gluon_resnest.metrics import ConfusionMatrix
from gluon_resnest.run_directory import is_training, read_recipe
from gluon_resnest.tasks import trained_run
from gluon_resnest.tasks.classification import Classification
from gluon_resnest.tasks.classification_data import evaluation_pipeline, training_pipeline
from gluon_resnest.zoo import VARIANTS

NETWORKS = tuple(VARIANTS)
EVALUATION_FOLDERS = ("val", "test")
HELD_OUT_SHARE = 0.2            # where there is neither such a folder nor a number in the recipe
EXPORT, CONFUSION, MISTAKES = "exported", "confusion", "mistakes"

_log = logging.getLogger(__name__)


class FineTuning(Classification):
    """Trains a network with a new head on one's own images; see `Classification`.

    What the run ends with is the best evaluation: it is drawn, and its network exported.
    """

    data_flag = dict(metavar="DIR", help="a folder of images for each class, or train/ and val/ or "
                     "test/ with such folders; or synthetic: generated images")

    @staticmethod
    def add_paths(parser):
        """Adds nothing: --data is the only path."""

    @staticmethod
    def completed(recipe, run):
        """Returns the recipe with the number of classes that the folder has.

        An evaluation of a run's weights takes that run's recipe; `cli` does so for a workdir.
        """
        if run.eval_only and _is_folder(run.weights):
            return _recipe_of_weights(run)
        if (run.data == "synthetic" or run.smoke or run.plan is not None and run.data is None
                or run.eval_only and is_training(run.workdir)):
            return recipe
        folder = next(filter(None, _folders(run.data, evaluating=run.eval_only)))
        names = list_folder(folder)[1]
        if len(names) < 2:
            raise UserError(f"{folder} has one class folder, {names[0]!r}, expected at least two; "
                            "give the folder that contains a folder of images for each class")
        return dataclasses.replace(recipe, classes=len(names))

    def __init__(self, recipe, run, comm):
        self._sets = None
        if run.data != "synthetic":
            judged = run.weights if _is_folder(run.weights) else run.workdir
            names = comm.on_main(lambda: trained_run.class_names(judged)) if run.eval_only else None
            self._sets = open_folders(recipe, run.data, names, evaluating=run.eval_only)
            if not run.weights and not run.eval_only:
                _log.warning("there are no --weights: a new run starts from random values, for "
                             "which a few images seldom suffice; give --weights a parameter file, "
                             "a run directory, or published")
        super().__init__(recipe, run, comm)

    def training_images(self, run):
        """Returns the dataset of training images."""
        return self._sets[0]

    def evaluation_images(self, run):
        """Returns the dataset of evaluation images."""
        return self._sets[1]

    def load(self, run):
        """Gives all but the head the values of --weights; an evaluation takes the head too."""
        if run.eval_only and not _is_folder(run.weights):
            super().load(run)
        else:
            source = self._recipe.network if run.weights == "published" else run.weights
            trained_run.load_backbone(self.net if run.eval_only else _Headless(self.net), source,
                                      network=self._recipe.network, ctx=self._context)

    def evaluate(self):
        """Counts the evaluation set over all workers, every image exactly once.

        Returns:
          {"top1": percent, "mean_class": mean of the classes' accuracies in percent, "top1_hits",
          "images": counts}.
        """
        self.settle()
        return self._judged()

    def _judged(self):
        """Evaluates the network as it is; see `evaluate`."""
        self._answers = self._collect()
        _, labels, predicted, _ = self._answers
        counts = self._counts()
        seen = counts.sum(axis=1)
        hits = int((labels == predicted).sum())
        return {"top1": 100 * hits / len(labels),
                "mean_class": 100 * float(np.mean(np.diag(counts)[seen > 0] / seen[seen > 0])),
                "top1_hits": hits, "images": len(labels)}

    @staticmethod
    def describe(metrics):
        """Returns the sentence a person reads about `evaluate`'s values."""
        return (f"accuracy {metrics['top1']:.2f} % ({metrics['top1_hits']} of "
                f"{metrics['images']}), mean of the classes {metrics['mean_class']:.2f} %")

    def conclude(self, workdir, checkpoints, metrics):
        """Evaluates the best checkpoint again, as it was saved, draws its mistakes and exports it.

        Args:
          workdir, checkpoints: of the run; metrics: of its last evaluation.

        Returns:
          The metrics of the best, with "last_top1", that of the last, and "best_epoch".
        """
        best = checkpoints.restore_best(self.net, self._comm)
        metrics = {**self._judged(), "last_top1": metrics["top1"],
                   "best_epoch": best.step / self.steps_per_epoch}
        self._comm.on_main(lambda: self._leave(Path(workdir)))
        return metrics

    def _collect(self):
        """Returns (numbers, labels, predictions, probabilities of these) of the evaluation set."""
        own = [[], [], [], []]
        for batch, logits in self.scored(self._val):
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            best = logits.argmax(axis=1)
            for column, values in zip(own, (
                    batch.indices, batch.arrays[1], best,
                    powers[np.arange(len(best)), best] / powers.sum(axis=1))):
                column.append(values.copy())
        pieces = self._comm.gather([np.concatenate(column) if column else np.zeros(0, int)
                                    for column in own])
        columns = [np.concatenate(column) for column in zip(*pieces)]
        order = np.argsort(columns[0])
        if not np.array_equal(columns[0][order], np.arange(len(self._val.dataset))):
            raise RuntimeError(f"evaluation saw {len(order)} images, {len(set(columns[0]))} "
                               f"different ones, of {len(self._val.dataset)}: each must be seen "
                               "exactly once")
        return [column[order] for column in columns]

    def _counts(self):
        matrix = ConfusionMatrix(self._recipe.classes)
        matrix.update(self._answers[2], self._answers[1])
        return matrix.pixels

    def _leave(self, workdir):
        """Writes and draws the confusion matrix and the mistakes; exports the best network."""
        names, counts = self.class_names, self._counts()
        for name, row in zip(names, counts):
            if row.sum():
                hits = row[names.index(name)]
                _log.info("%6.2f %%  %s (%d of %d)", 100 * hits / row.sum(), name, hits, row.sum())
        _write_csv(workdir / f"{CONFUSION}.csv", ["true \\ predicted", *names],
                   [[name, *row] for name, row in zip(names, counts)])
        draw_confusion(workdir / f"{CONFUSION}.png", counts, names)
        if self._sets is not None:
            mistakes = self._mistakes()
            _write_csv(workdir / f"{MISTAKES}.csv", Mistake._fields, mistakes)
            draw_mistakes(workdir / f"{MISTAKES}.png", mistakes)
        net, card = trained_run.open_classifier(workdir)
        export_classifier(net, workdir / EXPORT, card)
        _log.info("exported %s, drew its confusion matrix and mistakes beside it", workdir / EXPORT)

    def _mistakes(self):
        """Returns the `Mistake`s, the surest first."""
        numbers, labels, predicted, probabilities = self._answers
        wrong = np.flatnonzero(labels != predicted)
        return [Mistake(self._val.dataset.name(numbers[i]), self.class_names[labels[i]],
                        self.class_names[predicted[i]], round(float(probabilities[i]), 4))
                for i in wrong[np.argsort(-probabilities[wrong], kind="stable")]]


class _Headless(nn.Block):
    """The children of a classifier but its last layer, under their names."""

    def __init__(self, net):
        super().__init__()
        for name, child in net._children.items():
            if name != "fc":
                self.register_child(child, name)


def open_folders(recipe, root, class_names=None, *, evaluating=False):
    """Opens the training and the evaluation images below a folder.

    Without val/ or test/, or if the recipe holds images out, the evaluation images are split off:
    by the seed, of each class its share, files of equal content on one side.

    Args:
      recipe: a ClassificationRecipe.
      root: folder of class folders, or one that contains train/ and val/ or test/.
      class_names: of the run that is evaluated; numbers the classes, of which some may be missing.
        None numbers them by the folders.
      evaluating: val/ or test/ alone will do.

    Returns:
      (training, evaluation) datasets; of val/ or test/ alone, the first is None.

    Raises:
      UserError: if the folders are not like that, one is none of `class_names`, or a class has too
        few images to be split.
    """
    folder, given = _folders(root, evaluating=evaluating)
    transform = evaluation_pipeline(recipe)
    if folder is None:
        return None, FolderDataset(given, transform, recipe.classes, class_names)
    train = FolderDataset(folder, training_pipeline(recipe), recipe.classes, class_names)
    if given and not recipe.hold_out:
        held = FolderDataset(given, transform, recipe.classes, train.class_names)
        common = set(_digests(train)) & set(_digests(held))
        if common:
            _log.warning("%d images are in %s and in %s: the accuracy will flatter", len(common),
                         folder, given)
        return train, held
    count = recipe.hold_out or max(1, round(HELD_OUT_SHARE * len(train)))
    kept, chosen = split(train.labels, count, recipe.seed, _digests(train),
                         class_names=train.class_names)
    _log.info("%s: %d of the %d images of %s are held out for evaluation",
              "--hold-out" if recipe.hold_out else f"{root} has no val/ or test/", len(chosen),
              len(train), folder)
    same = FolderDataset(folder, transform, recipe.classes, train.class_names)
    return Subset(train, kept), Subset(same, chosen)


def _folders(root, *, evaluating):
    """Returns which folders contain the class folders of training and of evaluation.

    The first is None where only images to evaluate are given, the second where there are none.
    """
    if root is None:
        raise UserError("--data DIR is missing; give a folder that contains a folder of images for "
                        "each class, or train/ and val/ with such folders")
    root = Path(root)
    given = [root / name for name in EVALUATION_FOLDERS if (root / name).is_dir()]
    if (root / "train").is_dir():
        return root / "train", given[0] if given else None
    if not given:
        return root, None
    if evaluating and all(path in given for path in root.iterdir()
                          if path.is_dir() and not path.name.startswith(".")):
        return None, given[0]
    raise UserError(f"{root} has {given[0].name}/ but no train/, expected both or only folders of "
                    "classes; name the folder of training images train/, or give a class of that "
                    "name another one")


def _is_folder(weights):
    """Returns whether --weights names a run directory; it may be None."""
    return weights is not None and Path(weights).is_dir()


def _recipe_of_weights(run):
    """Returns the recipe of the run directory that --weights names, changed as the flags say."""
    # The name is what config.json of the evaluation will say.
    run.model, recipe = read_recipe(run.weights, ClassificationRecipe,
                                    "give the run of a classification recipe", named=run.named)
    return override(recipe, run.changes)


def _digests(dataset):
    """Returns a checksum of each image file."""
    return [hashlib.sha256(read_file(dataset.name(index))).digest()
            for index in range(len(dataset))]


def _write_csv(path, head, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])

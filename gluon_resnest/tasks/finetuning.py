"""Fine-tuning of a trained network on a folder of class folders."""
import csv
import dataclasses
import hashlib
import logging
from pathlib import Path

import numpy as np
from mxnet.gluon import nn

from gluon_resnest.data.classification import FolderDataset, list_folder
from gluon_resnest.data.images import read_file
from gluon_resnest.data.splitting import Subset, split
from gluon_resnest.errors import UserError
from gluon_resnest.interop.evaluation_drawing import Mistake, draw_confusion, draw_mistakes
from gluon_resnest.interop.export import export_classifier
from gluon_resnest.metrics import ConfusionMatrix
from gluon_resnest.tasks.classification import Classification
from gluon_resnest.tasks.classification_data import evaluation_pipeline, training_pipeline
from gluon_resnest.tasks.trained_run import load_backbone, open_classifier
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
        """Returns the recipe with the number of classes that the folder has."""
        if run.data == "synthetic" or run.smoke:
            return recipe
        return dataclasses.replace(recipe, classes=len(list_folder(_training_folder(run.data))[1]))

    def __init__(self, recipe, run, comm):
        self._sets = None if run.data == "synthetic" else open_folders(recipe, run.data)
        super().__init__(recipe, run, comm)

    def training_images(self, run):
        """Returns the dataset of training images."""
        return self._sets[0]

    def evaluation_images(self, run):
        """Returns the dataset of evaluation images."""
        return self._sets[1]

    def load(self, run):
        """Gives all but the head the values of --weights; an evaluation takes the head too."""
        if run.eval_only:
            super().load(run)
        else:
            source = self._recipe.network if run.weights == "published" else run.weights
            load_backbone(_Headless(self.net), source, network=self._recipe.network,
                          ctx=self._context)

    def evaluate(self):
        """Counts the evaluation set over all workers, every image exactly once.

        Returns:
          {"top1": percent, "mean_class": mean of the classes' accuracies in percent, "top1_hits",
          "images": counts}.
        """
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
        """Evaluates the best checkpoint again, draws its mistakes and exports it.

        Args:
          workdir, checkpoints: of the run; metrics: of its last evaluation.

        Returns:
          The metrics of the best, with "last_top1", that of the last, and "best_epoch".
        """
        best = checkpoints.restore_best(self.net, self._comm)
        metrics = {**self.evaluate(), "last_top1": metrics["top1"],
                   "best_epoch": best.step / self.steps_per_epoch}
        self._comm.on_main(lambda: self._leave(Path(workdir)))
        return metrics

    def _collect(self):
        """Returns (numbers, labels, predictions, probabilities of these) of the evaluation set."""
        own = [[], [], [], []]
        for batch, logits in self.scored():
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            best = logits.argmax(axis=1)
            for column, values in zip(own, (
                    batch.indices, batch.arrays[1], best,
                    powers[np.arange(len(best)), best] / powers.sum(axis=1))):
                column.append(values.copy())
        pieces = self._comm.gather([np.concatenate(column) if column else np.zeros(0, int)
                                    for column in own])
        columns = [np.concatenate(column) for column in zip(*pieces)]
        self.check_seen(len(np.unique(columns[0])))
        order = np.argsort(columns[0])
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
        net, card = open_classifier(workdir)
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


def open_folders(recipe, root):
    """Opens the training and the evaluation images below a folder.

    Without val/ or test/, or if the recipe holds images out, the evaluation images are split off:
    by the seed, of each class its share, files of equal content on one side.

    Args:
      recipe: a ClassificationRecipe.
      root: folder of class folders, or one that contains train/ and val/ or test/.

    Returns:
      (training, evaluation) datasets.

    Raises:
      UserError: if the folders are not like that, or a class has too few images to be split.
    """
    folder = _training_folder(root)
    train = FolderDataset(folder, training_pipeline(recipe), recipe.classes)
    transform = evaluation_pipeline(recipe)
    given = [Path(root) / name for name in EVALUATION_FOLDERS if (Path(root) / name).is_dir()]
    if folder != Path(root) and given and not recipe.hold_out:
        held = FolderDataset(given[0], transform, recipe.classes, train.class_names)
        common = set(_digests(train)) & set(_digests(held))
        if common:
            _log.warning("%d images are in %s and in %s: the accuracy will flatter", len(common),
                         folder, given[0])
        return train, held
    count = recipe.hold_out or max(1, round(HELD_OUT_SHARE * len(train)))
    kept, chosen = split(train.labels, count, recipe.seed, _digests(train))
    _log.info("%s: %d of the %d images of %s are held out for evaluation",
              "--hold-out" if recipe.hold_out else f"{root} has no val/ or test/", len(chosen),
              len(train), folder)
    same = FolderDataset(folder, transform, recipe.classes, train.class_names)
    return Subset(train, kept), Subset(same, chosen)


def _training_folder(root):
    """Returns the folder that contains the class folders of the training images."""
    if root is None:
        raise UserError("--data DIR is missing; give a folder that contains a folder of images for "
                        "each class, or train/ and val/ with such folders")
    inside = Path(root) / "train"
    return inside if inside.is_dir() else Path(root)


def _digests(dataset):
    """Returns a checksum of each image file."""
    return [hashlib.sha256(read_file(dataset.name(index))).digest()
            for index in range(len(dataset))]


def _write_csv(path, head, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])

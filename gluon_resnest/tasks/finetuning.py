"""Fine-tuning of a trained network on a folder of class folders."""
import csv
import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mxnet.gluon import nn

from gluon_resnest.config import ClassificationRecipe, override
from gluon_resnest.data.classification import list_folder
from gluon_resnest.engine import amp
from gluon_resnest.errors import UserError
from gluon_resnest.interop.evaluation_drawing import Mistake, draw_confusion, draw_mistakes
from gluon_resnest.interop.export import export_classifier
from gluon_resnest.metrics import ConfusionMatrix
from gluon_resnest.run_directory import is_training, read_recipe
from gluon_resnest.tasks import trained_run
from gluon_resnest.tasks.classification import Classification
from gluon_resnest.tasks.finetuning_data import Sets, find_folders, open_folders
from gluon_resnest.zoo import VARIANTS

NETWORKS = tuple(VARIANTS)
EXPORT, CONFUSION, MISTAKES = "exported", "confusion", "mistakes"
TEST, EVALUATION = "test_", "evaluation_"       # begin the names of what is of test/; --eval-only

_log = logging.getLogger(__name__)


class FineTuning(Classification):
    """Trains a network with a new head on one's own images; see `Classification`.

    What the run ends with is the best evaluation: it is drawn, and its network exported. A test/
    beside the images by which that was chosen is judged once, at the end.
    """

    data_flag = dict(metavar="DIR", help="a folder of images for each class, or train/ and val/ or "
                     "test/ or both with such folders; or synthetic: generated images")
    weights_flag = dict(metavar="FILE|RUN", help="start from, or evaluate, this .params file or "
                        "URL, or the best checkpoint of this run directory; published: the newest "
                        "the zoo's table names")
    entries = "NETWORK or NETWORK@report, the names being those of docs/model_zoo.md"

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
        folder = next(filter(None, find_folders(run.data, evaluating=run.eval_only)))
        names = list_folder(folder)[1]
        if len(names) < 2:
            raise UserError(f"{folder} has one class folder, {names[0]!r}, expected at least two; "
                            "give the folder that contains a folder of images for each class")
        if "classes" in run.changes and recipe.classes != len(names):
            raise UserError(f"--classes is {recipe.classes}, but {folder} has {len(names)} class "
                            "folders; leave --classes out, or give the folder of all classes")
        return dataclasses.replace(recipe, classes=len(names))

    def __init__(self, recipe, run, comm):
        self._sets = Sets(None, None, None)
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
        return self._sets.training

    def evaluation_images(self, run):
        """Returns the dataset of evaluation images."""
        return self._sets.evaluation

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

    @staticmethod
    def describe(metrics):
        """Returns the sentence a person reads about `evaluate`'s values, and those of test/."""
        return "; on test/ ".join(
            f"accuracy {metrics[part + 'top1']:.2f} % ({metrics[part + 'top1_hits']} of "
            f"{metrics[part + 'images']}), mean of the classes {metrics[part + 'mean_class']:.2f} %"
            for part in ("", TEST) if part + "top1" in metrics)

    def conclude(self, workdir, checkpoints, metrics):
        """Judges the best checkpoint, as it was saved, on test/ too, draws and exports it.

        A process of 16 bits logs the command that exports it instead.

        Args:
          workdir, checkpoints: of the run; metrics: of its last evaluation.

        Returns:
          The metrics of the best, with "last_top1", that of the last, "best_epoch", and what
          `report` adds.
        """
        best = checkpoints.restore_best(self.net, self._comm)
        metrics = self.report(workdir, {**self._judged(), "last_top1": metrics["top1"],
                                        "best_epoch": best.step / self.steps_per_epoch})
        self._comm.on_main(lambda: _export(Path(workdir)))
        return metrics

    def report(self, workdir, metrics):
        """Draws the last evaluation; judges and draws a test/ beside the images of that.

        Args:
          workdir: of the run; None draws nothing. metrics: of the last evaluation.

        Returns:
          The metrics, with those of test/ as "test_top1" and so on.
        """
        self._comm.on_main(lambda: self._leave(workdir, "", self._val.dataset, self._answers))
        test = self._sets.test
        if test is None:
            return metrics
        with self._evaluation_loader(test, self._run) as loader:
            answers = self._collect(loader)
        self._comm.on_main(lambda: self._leave(workdir, TEST, test, answers))
        return {**metrics, **{TEST + name: value for name, value in answers.measured().items()}}

    def _judged(self):
        """Evaluates the network as it is; see `evaluate`."""
        self._answers = self._collect(self._val)
        return self._answers.measured()

    def _collect(self, loader):
        """Returns the `Answers` to all images of a loader, on every worker."""
        own = [[], [], [], []]
        for batch, logits in self.scored(loader):
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            best = logits.argmax(axis=1)
            for column, values in zip(own, (
                    batch.indices, batch.arrays[1], best,
                    powers[np.arange(len(best)), best] / powers.sum(axis=1))):
                column.append(values.copy())
        pieces = self._comm.gather([np.concatenate(column) if column else np.zeros(0, int)
                                    for column in own])
        numbers, *columns = (np.concatenate(column) for column in zip(*pieces))
        order = np.argsort(numbers)
        if not np.array_equal(numbers[order], np.arange(len(loader.dataset))):
            raise RuntimeError(f"evaluation saw {len(numbers)} images, {len(set(numbers))} "
                               f"different ones, of {len(loader.dataset)}: each must be seen "
                               "exactly once")
        return Answers(self._recipe.classes, *(column[order] for column in columns))

    def _leave(self, workdir, part, dataset, answers):
        """Logs each class, writes and draws the confusion matrix and the mistakes of a set.

        Args:
          workdir: of the run; None: the log only. part: TEST or empty. dataset, answers: of the
            set.
        """
        rows = []
        for number, (name, counts) in enumerate(zip(self.class_names, answers.counts())):
            hits, images = counts[number], counts.sum()
            accuracy = f"{100 * hits / images:.2f}" if images else ""
            rows.append([name, *counts, accuracy])
            if images:
                _log.info("%6s %%  %s%s (%d of %d)", accuracy, part, name, hits, images)
        if workdir is None:
            return
        # Beside a training, where the names without it are that one's.
        begin = EVALUATION + part if self._run.eval_only and is_training(workdir) else part
        confusion, wrong = (str(Path(workdir) / (begin + name)) for name in (CONFUSION, MISTAKES))
        _write_csv(f"{confusion}.csv", ["true \\ predicted", *self.class_names, "accuracy in %"],
                   rows)
        mistakes = None
        if self._sets.evaluation is not None:       # generated images are no files
            mistakes = answers.mistakes(dataset, self.class_names)
            _write_csv(f"{wrong}.csv", Mistake._fields, mistakes)
        try:
            draw_confusion(f"{confusion}.png", answers.counts(), self.class_names)
            if mistakes is not None:
                draw_mistakes(f"{wrong}.png", mistakes)
            _log.info("drew %s.png and %s.png", confusion, Path(wrong).name)
        except UserError as error:          # the numbers are there
            _log.warning("no pictures: %s", error)


class Answers(NamedTuple):
    """What a network said of a set: arrays (N,) in the order of its images.

    classes: how many there are; probabilities: of what was predicted.
    """

    classes: int
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray

    def counts(self):
        """Returns int (classes, classes): [t, p] images of true class t were called p."""
        matrix = ConfusionMatrix(self.classes)
        matrix.update(self.predicted, self.labels)
        return matrix.pixels

    def measured(self):
        """Returns the metrics of `FineTuning.evaluate`."""
        counts = self.counts()
        seen, hits = counts.sum(axis=1), np.diag(counts)
        return {"top1": 100 * int(hits.sum()) / len(self.labels),
                "mean_class": 100 * float(np.mean(hits[seen > 0] / seen[seen > 0])),
                "top1_hits": int(hits.sum()), "images": len(self.labels)}

    def mistakes(self, dataset, names):
        """Returns the `Mistake`s, the surest first."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        return [Mistake(dataset.name(i), names[self.labels[i]], names[self.predicted[i]],
                        round(float(self.probabilities[i]), 4))
                for i in wrong[np.argsort(-self.probabilities[wrong], kind="stable")]]


class _Headless(nn.Block):
    """The children of a classifier but its last layer, under their names."""

    def __init__(self, net):
        super().__init__()
        for name, child in net._children.items():
            if name != "fc":
                self.register_child(child, name)


def _export(workdir):
    """Exports the best network of a run; tells the command where this process cannot."""
    if amp.enabled() != "float32":
        # Files hold a float32 network, and MXNet cannot build one here to compare them with.
        _log.warning("not exported, for this process computes in %s; run python "
                     "tools/export_model.py %s --out %s", amp.enabled(), workdir, workdir / EXPORT)
        return
    net, card = trained_run.open_classifier(workdir)
    export_classifier(net, workdir / EXPORT, card)
    _log.info("exported %s", workdir / EXPORT)


def _is_folder(weights):
    """Returns whether --weights names a run directory; it may be None."""
    return weights is not None and Path(weights).is_dir()


def _recipe_of_weights(run):
    """Returns the recipe of the run directory that --weights names, changed as the flags say."""
    # The name is what config.json of the evaluation will say.
    run.model, recipe = read_recipe(run.weights, ClassificationRecipe,
                                    "give the run of a classification recipe", named=run.named)
    return override(recipe, run.changes)


def _write_csv(path, head, rows):
    # Names of files need not be UTF-8: such bytes are written as backslashes and numbers.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([head, *rows])

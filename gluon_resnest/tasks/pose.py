"""Pose estimation as a Task: SimplePose, crops of persons, heat maps, OKS AP (paper, B.1)."""
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnest.config import override
from gluon_resnest.data import keypoints
from gluon_resnest.data.keypoints import JOINTS, PARTNERS
from gluon_resnest.data.loader import Loader
from gluon_resnest.data.pose_transforms import PersonCrop, inverse, move
from gluon_resnest.data.sampling import EvalPlan, TrainPlan
from gluon_resnest.engine.amp import enable
from gluon_resnest.engine.memory import to_device
from gluon_resnest.engine.optim import Steps, optimizer, set_multipliers
from gluon_resnest.engine.progress import evaluating
from gluon_resnest.engine.update import make_update
from gluon_resnest.errors import UserError
from gluon_resnest.losses import JointHeatmapLoss
from gluon_resnest.models.resnest import initialize
from gluon_resnest.models.simple_pose import STRIDE, encode, predict_joints
from gluon_resnest.tasks import pose_evaluation
from gluon_resnest.tasks.coco_files import cocoeval, write_results
from gluon_resnest.tasks.statistics import settle_statistics
from gluon_resnest.tasks.trained_run import load_backbone
from gluon_resnest.tasks.workload import pose_workload
from gluon_resnest.zoo import POSE, load_weights, pose_model

RESULTS = "keypoints.json"


class Pose:
    """Trains and evaluates one network on the persons of COCO.

    Args:
      recipe: a PoseRecipe.
      run: the command line's other flags.
      comm: this worker's `engine.comm` connection.
    """

    main_metric = "ap"
    workload = staticmethod(pose_workload)
    class_names = None

    @staticmethod
    def add_flags(parser):
        """Adds the paths and sizes that belong to a machine, not to the experiment."""
        parser.add_argument("--train-annotations", metavar="FILE",
                            help="COCO's person_keypoints_train2017.json, or one like it")
        parser.add_argument("--train-images", metavar="DIR", help="folder of its images")
        parser.add_argument("--val-annotations", metavar="FILE",
                            help="person_keypoints_val2017.json, or one like it")
        parser.add_argument("--val-images", metavar="DIR", help="folder of its images")
        parser.add_argument("--detections", metavar="FILE",
                            help="evaluate on these person boxes, a json file in COCO's result "
                            "format, instead of the annotated ones")
        parser.add_argument("--backbone-weights", metavar="RUN|FILE|NAME",
                            help="start the backbone from a classification run, a .params file or "
                            "URL, or the published weights of a zoo name")
        parser.add_argument("--eval-batch", type=int, default=32, metavar="N",
                            help="persons per evaluation step of a worker (default: %(default)s)")
        parser.add_argument("--synthetic-steps", type=int, default=100, metavar="N",
                            help="training steps in an epoch of --data synthetic "
                            "(default: %(default)s)")

    @staticmethod
    def completed(recipe, run):
        """Returns the recipe; the published values are those of annotated boxes alone."""
        if run.detections:
            run.changes = {"expect_ap": "none", "expect_ap_no_flip": "none", **run.changes}
        return override(recipe, run.changes)

    def __init__(self, recipe, run, comm):
        self._recipe, self._run, self._comm = recipe, run, comm
        self._context = comm.context(run.device)
        self._results = Path(run.workdir) / RESULTS if run.workdir else None
        self._boxes_are_found = bool(run.detections)
        self._train = None
        if not run.eval_only:
            self._train = _training_data(recipe, run, comm)
            self.steps_per_epoch = self._train.steps_per_epoch
        self._val, self._truth = _evaluation_data(recipe, run, comm)
        cocoeval()                              # before hours of training, not after

        enable(recipe.precision, self._context)
        mx.random.seed(recipe.seed)
        self.net = pose_model(recipe.network, len(JOINTS), dropblock=recipe.dropblock)
        initialize(self.net, ctx=self._context)
        if run.backbone_weights:
            load_backbone(self.net.backbone, run.backbone_weights, network=recipe.network,
                          ctx=self._context)
        if run.weights:
            load_weights(self.net, POSE + recipe.network, run.weights, ctx=self._context)
        self.net.hybridize(static_alloc=True)
        self.params = self.net.collect_params()
        set_multipliers(self.params)
        if run.eval_only:
            return
        self.update = make_update(recipe, self.net, comm,
                                  optimizer(recipe.optimizer, wd=recipe.wd))
        self._loss = JointHeatmapLoss()
        self._loss.hybridize()

    @property
    def lr_at(self):
        """The learning rate schedule: a tenth after each of the recipe's epochs."""
        recipe, steps = self._recipe, self.steps_per_epoch
        return Steps(recipe.lr, round(recipe.warmup_epochs * steps),
                     tuple(epoch * steps for epoch in recipe.milestones))

    def on_epoch(self, epoch):
        """Does nothing: no setting of the network changes while it trains."""

    def batches(self, start_step):
        """Yields (images, heat maps, weights of the joints) on the device; see `encode`."""
        return map(self._drawn, self._train.batches(start_step))

    def losses(self, batch):
        """Returns {"loss": mean over the local batch}."""
        images, maps, weights = batch
        return {"loss": self._loss(self.net(images), maps, weights)}

    def evaluate(self):
        """Finds the joints of every person of the evaluation set, each on one worker.

        Writes the results to keypoints.json of the run directory, if there is one.

        Returns:
          `pose_evaluation.oks_ap`'s metrics and "images", the number of persons looked at.

        Raises:
          RuntimeError: if a person was not looked at exactly once.
        """
        settle_statistics(
            self.net, self.params, self._comm,
            batches=self._recipe.precise_bn_batches if self._train else 0,
            loader=lambda: _training_data(self._recipe, self._run, self._comm),
            forward=lambda batch: self.net(self._drawn(batch)[0]))
        joints = self._found()
        return self._comm.on_main(lambda: self._judged(joints))

    @staticmethod
    def describe(metrics):
        """Returns the sentence a person reads about `evaluate`'s values."""
        return (f"OKS AP {metrics['ap']:.2f} %, AP50 {metrics['ap50']:.2f} %, AP75 "
                f"{metrics['ap75']:.2f} %, AR {metrics['ar']:.2f} % on {metrics['images']} boxes")

    def close(self):
        """Ends the loader processes."""
        for loader in (self._train, self._val):
            if loader is not None:
                loader.close()

    def _drawn(self, batch):
        """Moves a batch to the device and draws its heat maps there."""
        recipe = self._recipe
        images, joints = (to_device(array, self._context) for array in batch.arrays)
        maps, weights = encode(joints, recipe.height // STRIDE, recipe.width // STRIDE,
                               recipe.sigma, exact=recipe.centre == "exact")
        return images, maps, weights

    def _found(self):
        """Returns the joints of all persons in pixels of their images, (P, 17, 3), all workers'."""
        def forward(images):
            return self.net(to_device(images, self._context)).astype(
                "float32", copy=False).asnumpy()

        dataset, mine = self._val.dataset, []
        for batch in evaluating(self._val.epoch(0), self._val.steps_per_epoch, self._comm):
            if not len(batch.indices):
                continue
            found = predict_joints(forward, batch.arrays[0], list(PARTNERS),
                                   self._recipe.eval_flip)
            for index, joints in zip(batch.indices.tolist(), found):
                back = inverse(dataset.crop.matrix(dataset.persons.boxes[index]))
                mine.append((index, move(joints, back)))
        everyone = sorted((row for rows in self._comm.gather(mine) for row in rows),
                          key=lambda row: row[0])
        if [index for index, _ in everyone] != list(range(len(dataset))):
            raise RuntimeError(f"evaluation looked at {len(everyone)} persons of {len(dataset)}: "
                               "each must be seen exactly once")
        return np.stack([joints for _, joints in everyone])

    def _judged(self, joints):
        recipe, dataset = self._recipe, self._val.dataset
        results = pose_evaluation.coco_results(dataset.persons, joints, recipe.joint_threshold)
        if self._boxes_are_found and recipe.oks_nms < 1:
            areas = [recipe.height * recipe.width / np.linalg.det(
                dataset.crop.matrix(box)[:, :2]) for box in dataset.persons.boxes]
            results = pose_evaluation.suppress(results, areas, recipe.oks_nms,
                                               pose_evaluation.joint_sigmas())
        if self._results is not None:
            write_results(self._results, results)
        return {**pose_evaluation.oks_ap(self._truth, results), "images": len(dataset)}


def _crop(recipe, **random):
    return PersonCrop(recipe.height, recipe.width, PARTNERS, recipe.margin, **random)


def _training_data(recipe, run, comm):
    """Returns the loader of the training persons."""
    crop = _crop(recipe, scale=recipe.scale, rotation=recipe.rotation,
                 rotate_prob=recipe.rotate_prob, flip=recipe.flip)
    if run.data == "synthetic":
        dataset = keypoints.SyntheticPersons(recipe.batch * run.synthetic_steps, crop,
                                             2 * recipe.seed)
    else:
        persons = keypoints.read_annotations(
            _given(run.train_annotations, "--train-annotations FILE"),
            _given(run.train_images, "--train-images DIR"))
        dataset = keypoints.PersonDataset(persons, crop)
    plan = TrainPlan(len(dataset), recipe.batch, comm.rank, comm.size, recipe.seed,
                     remainder=recipe.remainder)
    return Loader(dataset, plan, seed=recipe.seed, workers=run.data_workers)


def _evaluation_data(recipe, run, comm):
    """Returns the loader of the evaluation persons and the ground truth, see `read_truth`."""
    crop = _crop(recipe)
    if run.data == "synthetic":
        length = max(1, recipe.batch * run.synthetic_steps // 8)
        dataset = keypoints.SyntheticPersons(length, crop, 2 * recipe.seed + 1)
        truth = dataset.ground_truth()
    else:
        annotations = _given(run.val_annotations, "--val-annotations FILE")
        folder = _given(run.val_images, "--val-images DIR")
        persons = (keypoints.read_detections(run.detections, annotations, folder,
                                             recipe.min_box_score)
                   if run.detections else keypoints.read_annotations(annotations, folder))
        dataset = keypoints.PersonDataset(persons, crop)
        truth = keypoints.read_truth(annotations)       # all workers refuse a wrong file alike
    plan = EvalPlan(len(dataset), run.eval_batch * comm.size, comm.rank, comm.size)
    return Loader(dataset, plan, seed=recipe.seed, workers=run.data_workers), truth


def _given(path, flag):
    if not path:
        raise UserError(f"{flag} is missing; give COCO's keypoint annotations and images, or use "
                        "--data synthetic")
    return path

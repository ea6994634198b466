"""What a training will cost, before it is begun: a stated model, no measurement.

With B images per worker and step, N workers, G bytes of gradients in f buffers of at most 64 MiB:

    compute  = B / images_per_second                  of which two thirds are the backward pass
    sent     = 2 (N - 1) / N * G                      bytes each worker sends in a ring all-reduce
    reduce   = sent / bandwidth + f * 2 (N - 1) * latency
    exposed  = max(reduce / f, reduce - 2/3 compute)  the last buffer cannot hide; nor can the rest
    step     = max(compute + exposed, B / input)      where the loader is slower than all of it

and the run is epochs * steps of it, evaluation, start and restarts left out.
"""
import dataclasses
import math
from dataclasses import dataclass

from gluon_resnest.errors import UserError, nearest

FUSION_BYTES = 64 * 2 ** 20     # Horovod's limit is 128 MiB, but it sends what a cycle finds ready
BACKWARD_SHARE = 2 / 3
_WHOLE = ("images", "workers", "keep")
_SLOTS = {"nag": 1, "sgd": 1, "adam": 2}


@dataclass(frozen=True)
class Workload:
    """A training, whatever it runs on.

    Attributes:
      batch: images per step over all workers; steps_per_epoch, epochs.
      parameters: values that learn, so none of frozen parts; values: all, with running statistics.
      activation_bytes: what training keeps of one image, in float32.
      optimizer: "nag", "sgd" or "adam"; average: whether a moving average is kept.
      gradient_bytes: bytes in which a gradient travels, 4 or 2.
    """

    batch: int
    steps_per_epoch: int
    epochs: float
    parameters: int
    values: int
    activation_bytes: int
    optimizer: str = "nag"
    average: bool = False
    gradient_bytes: int = 4


@dataclass(frozen=True)
class Cluster:
    """What it runs on.

    Attributes:
      images: in the training set (default: ImageNet-1k).
      workers: processes, one device each.
      images_per_second: trained by one device alone; `--data synthetic` measures it.
      bandwidth: GB/s a worker sends in an all-reduce of all workers.
      latency: microseconds of one of its 2 (N - 1) steps.
      input: images/s the loader of one worker gives; `--test-io` measures it.
      keep: checkpoints kept besides the best.
    """

    images: float = 1281167
    workers: float = 1
    images_per_second: float = 0
    bandwidth: float = 10.0
    latency: float = 20.0
    input: float = math.inf
    keep: float = 3

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                hint = ("; give the speed of one device, which --data synthetic measures"
                        if field.name == "images_per_second" else "")
                raise UserError(f"--plan needs {field.name} above 0, got {value:g}{hint}")
            if field.name in _WHOLE and value % 1 != 0:         # NaN, of infinity
                raise UserError(f"--plan needs a whole number for {field.name}, got {value:g}")


@dataclass(frozen=True)
class Plan:
    """What it comes to; times in seconds, of a step unless said.

    Attributes:
      workload, cluster: what it is the plan of.
      compute, reduce, exposed, waiting: computing; all-reduce; what of it is not hidden behind
        the backward pass; waiting for images.
      step: all of it.
      sent: bytes each worker sends in a step.
      memory: bytes on a device, at most: weights, gradients, optimizer, average, activations.
      disk: bytes of the checkpoints.
    """

    workload: Workload
    cluster: Cluster
    compute: float
    reduce: float
    exposed: float
    waiting: float
    step: float
    sent: float
    memory: float
    disk: float

    @property
    def steps(self):
        """Updates of the whole run."""
        return round(self.workload.steps_per_epoch * self.workload.epochs)

    @property
    def images_per_second(self):
        """Over all workers."""
        return self.workload.batch / self.step

    @property
    def efficiency(self):
        """Share of what the workers would do without each other and without a loader."""
        return self.compute / self.step

    @property
    def hours(self):
        """Wall time of the run."""
        return self.steps * self.step / 3600


def cluster_of(text):
    """Reads a Cluster from "workers=64,images_per_second=250".

    Raises:
      UserError: if a name is unknown or a value no number above 0, whole where it counts.
    """
    known = {field.name for field in dataclasses.fields(Cluster)}
    values = {}
    for word in filter(None, text.split(",")):
        name, _, number = word.partition("=")
        if name not in known:
            raise UserError(f"--plan knows no {name!r}{nearest(name, known)}")
        try:
            values[name] = float(number)
        except ValueError:
            raise UserError(f"--plan needs a number for {name}, got {number!r}") from None
    return Cluster(**values)


def estimate(workload, cluster):
    """Returns the `Plan` of a workload on a cluster, by the model above."""
    workers, per_worker = cluster.workers, workload.batch / cluster.workers
    gradients = workload.parameters * workload.gradient_bytes
    buffers = math.ceil(gradients / FUSION_BYTES)
    sent = 2 * (workers - 1) / workers * gradients
    compute = per_worker / cluster.images_per_second
    reduce = sent / (cluster.bandwidth * 1e9) + \
        buffers * 2 * (workers - 1) * cluster.latency * 1e-6
    exposed = max(reduce / buffers, reduce - BACKWARD_SHARE * compute)
    waiting = max(0.0, per_worker / cluster.input - compute - exposed)
    slots = _SLOTS[workload.optimizer] + workload.average
    return Plan(workload, cluster, compute, reduce, exposed, waiting,
                step=compute + exposed + waiting, sent=sent,
                memory=4 * (workload.values + workload.parameters * (1 + slots))
                + workload.activation_bytes * per_worker,
                disk=4 * (workload.values + workload.parameters * slots) * (cluster.keep + 2))


def describe(plan):
    """Returns the lines a person reads about a `Plan`."""
    work, cluster = plan.workload, plan.cluster
    return "\n".join([
        f"{work.epochs:.4g} epochs x {work.steps_per_epoch} steps x {work.batch} images "
        f"= {plan.steps} steps, {plan.steps * work.batch:.4g} images",
        f"{cluster.workers:g} worker(s) x {work.batch / cluster.workers:g} images, each "
        f"{cluster.images_per_second:g} images/s alone: {plan.images_per_second:.0f} images/s "
        f"together, {plan.efficiency:.1%} of {cluster.workers * cluster.images_per_second:.0f}",
        f"a step: {1e3 * plan.step:.1f} ms = {1e3 * plan.compute:.1f} computing + "
        f"{1e3 * plan.exposed:.1f} exposed all-reduce (of {1e3 * plan.reduce:.1f}) + "
        f"{1e3 * plan.waiting:.1f} waiting for images",
        f"sent by each worker: {plan.sent / 1e6:.1f} MB per step, "
        f"{plan.sent * plan.steps / 1e12:.2f} TB in all",
        f"wall time {plan.hours:.1f} h, device time {plan.hours * cluster.workers:.0f} h "
        "(evaluation, start and restarts not counted)",
        f"memory of a device: at most {plan.memory / 2 ** 30:.1f} GiB and workspaces, of it "
        f"{work.activation_bytes * work.batch / cluster.workers / 2 ** 30:.1f} GiB activations",
        f"disk: {plan.disk / 2 ** 30:.2f} GiB of checkpoints"])

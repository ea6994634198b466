"""Learning rate schedules as pure functions, the optimizers, and the update of the parameters.

A schedule is called with the number of an update, counted from 1: `lr_at(k)` is the rate of the
k-th update. So the first update of a run of `total_steps` uses `lr_at(1)`, the last one
`lr_at(total_steps)`, and `lr_at(0)` is where the warm-up comes from (decision 0020).
"""
import math
from dataclasses import dataclass
from typing import Tuple

import mxnet as mx

from gluon_resnest.errors import UserError, check_choice


@dataclass(frozen=True)
class Cosine:
    """Half a cosine to zero after a linear warm-up (paper, section 4.2).

    With b = base_lr, w = warmup_steps, n = total_steps, f = warmup_from:

        k < w:  b * (f + (1 - f) * k / w)
        else:   b / 2 * (1 + cos(pi * (k - w) / (n - w)))

    lr_at(w) == base_lr, lr_at(total_steps) == 0 exactly, and 0 afterwards.
    """

    base_lr: float
    warmup_steps: int
    total_steps: int
    warmup_from: float = 0.0

    def __post_init__(self):
        _check_span(self)

    def __call__(self, step):
        if step < self.warmup_steps:
            return _warmup(self, step)
        return self.base_lr / 2 * (1 + math.cos(math.pi * _progress(self, step)))


@dataclass(frozen=True)
class Poly:
    """Polynomial decay to zero after a linear warm-up (DeepLab).

    k < w as in `Cosine`, else b * (1 - (k - w) / (n - w)) ** power.
    """

    base_lr: float
    warmup_steps: int
    total_steps: int
    power: float = 0.9
    warmup_from: float = 0.0

    def __post_init__(self):
        _check_span(self)
        if self.power <= 0:
            raise UserError(f"power must be positive, got {self.power!r}")

    def __call__(self, step):
        if step < self.warmup_steps:
            return _warmup(self, step)
        return self.base_lr * (1 - _progress(self, step)) ** self.power


@dataclass(frozen=True)
class Steps:
    """Decay by a factor at milestones after a linear warm-up (detection, pose).

    k < w as in `Cosine`, else b * factor ** (number of milestones m with m < k): a milestone is
    the last update with the old rate.
    """

    base_lr: float
    warmup_steps: int
    milestones: Tuple[int, ...]
    factor: float = 0.1
    warmup_from: float = 0.0

    def __post_init__(self):
        _check_warmup(self)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"milestones must ascend, got {self.milestones!r}")
        if self.milestones and self.milestones[0] < self.warmup_steps:
            raise UserError(f"the first milestone (={self.milestones[0]}) must not lie in the "
                            f"warm-up of {self.warmup_steps} steps")

    def __call__(self, step):
        if step < self.warmup_steps:
            return _warmup(self, step)
        return self.base_lr * self.factor ** sum(step > end for end in self.milestones)


def scaled_lr(base_lr, batch):
    """Returns base_lr * batch / 256, the linear scaling rule (paper, section 4.2)."""
    return base_lr * batch / 256


def decays(name):
    """Returns whether weight decay applies to a parameter: not to gamma, beta, bias.

    (Paper, section 4.2; the bias of attention and classifier included, as in the authors' code.)
    """
    return not name.endswith(("gamma", "beta", "bias"))


def optimizer(name, *, wd, momentum=0.9, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Makes an optimizer whose learning rate is set at every update.

    Args:
      name: "nag" (the published one), "sgd" or "adam".
      wd: weight decay, added to the gradient; see `set_multipliers` for where it applies.
      momentum: of nag and sgd.
      beta1, beta2, epsilon: of adam.
    """
    check_choice("optimizer", name, ("nag", "sgd", "adam"))
    if name == "adam":
        return mx.optimizer.create("adam", learning_rate=0.0, wd=wd, beta1=beta1, beta2=beta2,
                                   epsilon=epsilon)
    return mx.optimizer.create(name, learning_rate=0.0, wd=wd, momentum=momentum)


def set_multipliers(params, *, decays=decays, lr_mult=lambda name: 1.0):
    """Sets where weight decay applies and how fast each parameter learns.

    Args:
      params: ParameterDict.
      decays: predicate of the parameter's name; `lambda name: True` decays everything.
      lr_mult: factor on the learning rate by name, for example 10 for a new head.
    """
    for name, parameter in params.items():
        parameter.wd_mult = 1.0 if decays(name) else 0.0
        parameter.lr_mult = lr_mult(name)


class Update:
    """One update of the parameters from a loss, and the state it carries from step to step.

    Args:
      trainer: from `comm.trainer`.
      net: Block that owns the trainer's parameters; its structural names name the state, so
        that a checkpoint fits any instance of the network.
    """

    def __init__(self, trainer, net):
        self._trainer = trainer
        structural = {id(parameter): name
                      for name, parameter in net._collect_params_with_prefix().items()}
        foreign = [parameter.name for parameter in trainer._params
                   if id(parameter) not in structural]
        if foreign:
            raise ValueError(f"the trainer updates {foreign[0]!r}, which the network does not own")
        self._names = [structural[id(parameter)] for parameter in trainer._params]

    def step(self, loss, lr):
        """Propagates `loss` back, averages gradients over the workers, updates once.

        Args:
          loss: scalar NDArray, recorded by autograd, a mean over the local batch.
          lr: learning rate of this update.
        """
        self._trainer.set_learning_rate(lr)
        loss.backward()
        self._trainer.step(1)

    def state(self):
        """Returns what a later `restore` needs to go on bit for bit.

        Returns:
          (arrays, numbers): {"<parameter>:<slot>": NDArray} such as "conv1.weight:0", the
          momentum; and a dict of plain JSON values.
        """
        optimizer, updater = self._optimizer(), self._trainer._updaters[0]
        arrays = {f"{self._names[index]}:{slot}": array
                  for index, state in updater.states.items()
                  for slot, array in enumerate(_slots(state))}
        counts = {self._names[index]: count
                  for index, count in optimizer._index_update_count.items()}
        return arrays, {"optimizer": type(optimizer).__name__.lower(),
                        "num_update": optimizer.num_update, "counts": counts}

    def restore(self, arrays, numbers):
        """Continues from `state()`'s values, arrays as numpy or NDArray.

        Raises:
          UserError: if they belong to another optimizer or network; nothing is changed then.
        """
        optimizer, updater = self._optimizer(), self._trainer._updaters[0]
        kind, counts = type(optimizer).__name__.lower(), numbers.get("counts", {})
        if numbers.get("optimizer") != kind:
            raise UserError(f"the checkpoint was made by optimizer {numbers.get('optimizer')!r}, "
                            f"this run uses {kind!r}; use the same, or another workdir")
        fresh = {index: optimizer.create_state_multi_precision(index, parameter.data())
                 for index, parameter in enumerate(self._trainer._params)
                 if self._names[index] in counts}
        slots = {f"{self._names[index]}:{slot}": array for index, state in fresh.items()
                 for slot, array in enumerate(_slots(state))}
        wrong = [name for name in counts if name not in self._names]
        wrong += [name for name in {**slots, **arrays} if name not in slots or name not in arrays
                  or slots[name].shape != arrays[name].shape]
        if wrong:
            raise UserError(f"the optimizer state of the checkpoint does not fit this network: "
                            f"{wrong[0]!r} is missing, unexpected or of another shape; use the "
                            "same network, or another workdir")
        for name, array in arrays.items():
            slots[name][:] = array
        updater.states.update(fresh)
        updater.states_synced.update(dict.fromkeys(fresh, True))
        # MXNet counts updates per device and forgets them when it meets another one.
        optimizer._set_current_context(self._trainer._contexts[0].device_id)
        optimizer.num_update = numbers["num_update"]
        optimizer._index_update_count.update(
            (index, counts[self._names[index]]) for index in fresh)

    def _optimizer(self):
        return self._trainer._optimizer


def _slots(state):
    """Returns the arrays of one parameter's optimizer state, a nest of NDArrays and None."""
    if state is None:
        return []
    if isinstance(state, mx.nd.NDArray):
        return [state]
    return [array for part in state for array in _slots(part)]


def _warmup(schedule, step):
    first = schedule.warmup_from
    return schedule.base_lr * (first + (1 - first) * step / schedule.warmup_steps)


def _progress(schedule, step):
    """Returns the share of the steps after the warm-up that is done, at most 1."""
    span = schedule.total_steps - schedule.warmup_steps
    return min(1.0, (step - schedule.warmup_steps) / span)


def _check_warmup(schedule):
    if not schedule.base_lr >= 0 or math.isinf(schedule.base_lr):
        raise UserError(f"base_lr must be a number >= 0, got {schedule.base_lr!r}")
    if schedule.warmup_steps < 0:
        raise UserError(f"warmup_steps must be at least 0, got {schedule.warmup_steps!r}")
    if not 0 <= schedule.warmup_from <= 1:
        raise UserError(f"warmup_from must lie in [0, 1], got {schedule.warmup_from!r}")


def _check_span(schedule):
    _check_warmup(schedule)
    if schedule.total_steps <= schedule.warmup_steps:
        raise UserError(f"total_steps (={schedule.total_steps}) must exceed warmup_steps "
                        f"(={schedule.warmup_steps}); train longer or warm up less")

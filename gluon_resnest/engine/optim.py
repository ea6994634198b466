"""Learning rate schedules as pure functions, the optimizers, and who learns how fast.

A schedule is called with the number of an update, counted from 1: `lr_at(k)` is the rate of the
k-th update. So the first update of a run of `total_steps` uses `lr_at(1)`, the last one
`lr_at(total_steps)`, and `lr_at(0)` is where the warm-up comes from (decision 0020).
"""
import math
from dataclasses import dataclass
from typing import Tuple

import mxnet as mx

from gluon_resnest.errors import UserError, check_choice, nearest


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


def scale_rates(net, factors):
    """Multiplies the learning rate of parts of a network.

    Args:
      net: Block.
      factors: "part=factor" with commas between, where a part is the beginning of structural
        names, such as "fc=10,layer1.0=0.1"; where several fit, the longest counts.

    Raises:
      UserError: if a part is not in the network, or a factor is no number >= 0.
    """
    params = net._collect_params_with_prefix()
    parts = sorted(_factors(factors).items(), key=lambda item: len(item[0]))
    chosen = {}
    for part, factor in parts:
        inside = [name for name in params if f"{name}.".startswith(f"{part}.")]
        if not inside:
            raise UserError(f"lr_factors names {part!r}, which is no part of the network"
                            f"{nearest(part, {name.partition('.')[0] for name in params})}")
        chosen.update(dict.fromkeys(inside, factor))
    for name, factor in chosen.items():
        params[name].lr_mult *= factor


def _factors(text):
    """Reads "a=1,b=2" as {"a": 1.0, "b": 2.0}."""
    factors = {}
    for word in filter(None, text.split(",")):
        part, _, number = word.partition("=")
        try:
            factors[part.strip()] = float(number)
        except ValueError:
            factors[part.strip()] = math.nan
        if not 0 <= factors[part.strip()] < math.inf:
            raise UserError(f"lr_factors must be part=factor with factors of at least 0, such as "
                            f"fc=10,layer1=0.1, got {word!r}")
    return factors


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

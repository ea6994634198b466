"""The update of the parameters from a batch, and the state it carries from step to step.

One update: loss and gradient of each part of the batch, sum over the workers, loss scale judged,
gradient clipped, optimizer, moving average (decision 0027).
"""
import contextlib

import mxnet as mx
from mxnet import autograd

from gluon_resnest.engine.amp import LossScaler
from gluon_resnest.engine.ema import Average
from gluon_resnest.engine.memory import address_of
from gluon_resnest.engine.optim import scale_rates
from gluon_resnest.errors import UserError


def make_update(recipe, net, comm, optimizer):
    """Makes the update a recipe asks for.

    Args:
      recipe: has the fields of `config.fields.with_update_settings`, and `batch`.
      net: initialised Block; its parameters learn as `optim.set_multipliers` has said.
      comm: this worker's Comm.
      optimizer: from `optim.optimizer`.

    Raises:
      UserError: if a worker's batch cannot be cut into `recipe.accumulate` equal parts, or
        `recipe.lr_factors` names no part of the network.
    """
    own = comm.split(recipe.batch)
    if own % recipe.accumulate:
        raise UserError(f"accumulate (={recipe.accumulate}) must divide the {own} images of a "
                        "worker's batch; choose a divisor, or another batch")
    scale_rates(net, recipe.lr_factors)
    trainer = comm.trainer(net.collect_params(), optimizer, compression=recipe.compression)
    return Update(trainer, net, parts=recipe.accumulate, clip_norm=recipe.clip_norm,
                  average=Average(net, recipe.ema_decay) if recipe.ema_decay else None,
                  scaler=LossScaler() if recipe.precision == "float16" else None)


class Update:
    """Changes the parameters of a network, one step a batch.

    Args:
      trainer: from `comm.trainer`.
      net: Block that owns the trainer's parameters; its structural names name the state, so
        that a checkpoint fits any instance of the network.
      parts: the batch goes through the network in so many equal parts, whose gradients add up to
        that of the whole if a loss is a mean over images. Batch norms look at one part each, and
        so do losses divided by what they count, such as a detector's (decision 0123).
      clip_norm: largest Euclidean norm of the whole gradient, averaged over the workers; 0: any.
      average: `ema.Average` of the network, or None.
      scaler: `amp.LossScaler`, or None.
    """

    def __init__(self, trainer, net, *, parts=1, clip_norm=0.0, average=None, scaler=None):
        self._trainer, self._parts, self._clip_norm = trainer, parts, clip_norm
        self._average, self._scaler = average, scaler
        structural = {id(parameter): name
                      for name, parameter in net._collect_params_with_prefix().items()}
        foreign = [parameter.name for parameter in trainer._params
                   if id(parameter) not in structural]
        if foreign:
            raise ValueError(f"the trainer updates {foreign[0]!r}, which the network does not own")
        self._names = [structural[id(parameter)] for parameter in trainer._params]
        self._settles = True
        if parts > 1:
            for parameter in self._trained():
                parameter.grad_req = "add"

    def step(self, losses, batch, lr):
        """Updates once.

        Args:
          losses: maps a batch to {name: scalar NDArray}, means over its images; their sum is
            what is made smaller. Called under autograd.record().
          batch: sequence of NDArrays or lists, the images along the first axis of each.
          lr: learning rate of this update.

        Returns:
          {name: scalar NDArray} of the whole local batch.
        """
        if self._average is not None:
            self._average.start()
        scale = self._scaler.scale if self._scaler is not None else 1.0
        terms = self._propagate(losses, batch, scale / self._parts)
        if self._settles:
            _leave_onednn_layouts(self._trained())
            self._settles = False
        self._trainer.allreduce_grads()
        gradients = [parameter.grad() for parameter in self._trained()]
        if self._scaler is None or self._scaler.accepts(gradients):
            if self._clip_norm:
                clip(gradients, self._clip_norm * scale / self._trainer._scale)
            self._trainer.set_learning_rate(lr)
            self._trainer.update(scale)
            if self._average is not None:
                self._average.follow()
        return terms

    def averaged(self):
        """Returns a context in which the network holds what is evaluated, saved and deployed:
        the average of its weights if there is one, else the weights."""
        self._settles = True
        return self._average.swapped() if self._average is not None else contextlib.nullcontext()

    def state(self):
        """Returns what a later `restore` needs to go on bit for bit; not to be called `averaged`.

        Returns:
          (arrays, numbers): {"<parameter>:<slot>": NDArray} such as "conv1.weight:0", the
          momentum, and with an average "trained:<parameter>"; and a dict of plain JSON values.
        """
        optimizer, updater = self._trainer._optimizer, self._trainer._updaters[0]
        arrays = {f"{self._names[index]}:{slot}": array
                  for index, state in updater.states.items()
                  for slot, array in enumerate(_slots(state))}
        if self._average is not None:
            arrays.update(self._average.state())
        counts = {self._names[index]: count
                  for index, count in optimizer._index_update_count.items()}
        numbers = {"optimizer": type(optimizer).__name__.lower(),
                   "num_update": optimizer.num_update,
                   "counts": counts}
        if self._scaler is not None:
            numbers["loss_scale"] = self._scaler.state()
        return arrays, numbers

    def restore(self, arrays, numbers):
        """Continues from `state()`'s values, arrays as numpy or NDArray.

        The network holds the checkpoint's model already.

        Raises:
          UserError: if they belong to another optimizer or network; nothing is changed then.
        """
        optimizer, updater = self._trainer._optimizer, self._trainer._updaters[0]
        kind, counts = type(optimizer).__name__.lower(), numbers.get("counts", {})
        if numbers.get("optimizer") != kind:
            raise UserError(f"the checkpoint was made by optimizer {numbers.get('optimizer')!r}, "
                            f"this run uses {kind!r}; use the same, or another workdir")
        if ("loss_scale" in numbers) != (self._scaler is not None):
            raise UserError("the checkpoint was made with another precision than this run's; use "
                            "the same, or another workdir")
        arrays = dict(arrays)
        own = self._average.take(arrays) if self._average is not None else None
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
        updater.states.clear()
        updater.states.update(fresh)
        updater.states_synced.update(dict.fromkeys(fresh, True))
        # MXNet counts updates per device and forgets them when it meets another one.
        optimizer._set_current_context(self._trainer._contexts[0].device_id)
        optimizer.num_update = numbers["num_update"]
        optimizer._index_update_count.clear()
        optimizer._index_update_count.update(
            (index, counts[self._names[index]]) for index in fresh)
        if own is not None:
            self._average.restore(own)
        if self._scaler is not None:
            self._scaler.restore(numbers["loss_scale"])

    def _trained(self):
        return [parameter for parameter in self._trainer._params if parameter.grad_req != "null"]

    def _propagate(self, losses, batch, factor):
        """Leaves the gradient of `factor` times the sum over the parts; returns the mean terms."""
        if self._parts > 1:
            gradients = [parameter.grad() for parameter in self._trained()]
            mx.nd.reset_arrays(*gradients, num_arrays=len(gradients))
        seen = []
        for part in _split(batch, self._parts):
            with autograd.record():
                terms = losses(part)
                loss = sum(terms.values()) * factor
            loss.backward()
            seen.append(terms)
        if self._parts == 1:
            return seen[0]
        return {name: mx.nd.add_n(*(terms[name] for terms in seen)) / self._parts
                for name in seen[0]}


def clip(gradients, norm):
    """Scales gradients in place, so that their common Euclidean norm is at most `norm`.

    Args:
      gradients: float32 NDArrays on one device; the device is not waited for.
      norm: positive number.
    """
    squares = mx.nd.multi_sum_sq(*gradients, num_arrays=len(gradients))
    factor = mx.nd.minimum(norm / mx.nd.sqrt(squares.sum()), 1)
    for gradient in gradients:
        mx.nd.broadcast_mul(gradient, factor.reshape((1,) * gradient.ndim), out=gradient)


def _leave_onednn_layouts(parameters):
    """Puts values back into the plain layout, which inference on a CPU takes them out of.

    A training pass may do so, too, or not, and some time later; `nag_mom_update` computes another
    last bit in the one layout than in the other, for it reads a weight after, or before, having
    written it.
    """
    mx.nd.waitall()             # an inference under way may still change the layout
    for parameter in parameters:
        for value in parameter.list_data():
            address_of(value)


def _split(batch, parts):
    """Yields equal parts of a batch; rows are views, nothing is copied."""
    if parts == 1:
        yield batch
        return
    size = len(batch[0]) // parts
    for start in range(0, size * parts, size):
        yield tuple(array[start:start + size] for array in batch)


def _slots(state):
    """Returns the arrays of one parameter's optimizer state, a nest of NDArrays and None."""
    if state is None:
        return []
    if isinstance(state, mx.nd.NDArray):
        return [state]
    return [array for part in state for array in _slots(part)]

"""Exponential moving average of a network's weights."""
import contextlib

import mxnet as mx

from gluon_resnest.errors import UserError

_KEY = "trained:"


class Average:
    """Follows a network: after each update, average += (1 - decay) * (weight - average).

    So after n updates from w_0 to w_n it is decay^n w_0 + (1 - decay) sum_i decay^(n-i) w_i.
    Running statistics are averaged too; what does not change stays as it is, bit for bit.

    Args:
      net: initialised Block.
      decay: 0 ... 1; 0.9999 looks back some 10 000 updates.
    """

    def __init__(self, net, decay):
        if not 0 <= decay < 1:
            raise UserError(f"ema_decay must be at least 0 and below 1, got {decay!r}")
        self._params, self._decay = net._collect_params_with_prefix(), decay
        self._arrays = {}

    def start(self):
        """Takes the weights of the network, unless it already follows them."""
        if not self._arrays:
            self._arrays = {name: weight.copy() for name, weight in self._weights()}

    def follow(self):
        """Takes one step after the network.

        The backward pass of a hybridized batch norm writes running statistics behind the back of
        MXNet's engine: they are read when all work is done, and before the next step begins.
        """
        mx.nd.waitall()
        for name, weight in self._weights():
            self._arrays[name] += (1 - self._decay) * (weight - self._arrays[name])
        for name, parameter in self._params.items():
            if parameter.grad_req == "null":
                self._arrays[name].wait_to_read()

    @contextlib.contextmanager
    def swapped(self):
        """Puts the average into the network, for the time of the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self):
        """Returns the network's own weights, "trained:<name>"; a checkpoint's model is the average.

        Not to be called inside `swapped`.
        """
        return {_KEY + name: weight for name, weight in self._weights()}

    def take(self, arrays):
        """Removes from `arrays` what `state` has added, and returns it by name.

        Raises:
          UserError: if it does not fit the network.
        """
        own = {name[len(_KEY):]: arrays.pop(name) for name in list(arrays)
               if name.startswith(_KEY)}
        for name, weight in self._weights():
            if name not in own or own[name].shape != weight.shape:
                raise UserError(f"the checkpoint has no trained weights of {name!r} beside their "
                                "average; use the same ema_decay and network, or another workdir")
        return own

    def restore(self, own):
        """Continues: the network holds the average now, `own` are its own weights from `take`."""
        self._arrays = {}
        self.start()
        for name, weight in self._weights():
            weight[:] = own[name]

    def _weights(self):
        return [(name, parameter.data()) for name, parameter in self._params.items()]

    def _swap(self):
        for name, weight in self._weights():
            if name in self._arrays:
                kept = weight.copy()
                weight[:] = self._arrays[name]
                self._arrays[name][:] = kept

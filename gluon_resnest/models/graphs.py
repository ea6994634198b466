"""One traced graph for training and one for inference (docs/decisions/0002-two-graphs.md)."""
from mxnet import autograd
from mxnet.gluon import nn

from gluon_resnest.models.dropblock import without_dropblock


class TwoGraphs(nn.HybridBlock):
    """A HybridBlock that, hybridized, infers and exports from a graph without DropBlock.

    DropBlock is the identity in inference, but its mask costs as much there as in training. MXNet
    traces a block once, for both modes; this one once for each. Inside another block's graph it
    has no say: the results are the same, the mask is computed.
    """

    _training = False   # whether the graph in `_cached_op` is the one for training
    _other = None       # the graph of the other mode: (_cached_graph, _cached_op, _cached_op_args)

    def export(self, path, epoch=0, remove_amp_cast=True):
        """Writes the inference graph and the parameters; see `HybridBlock.export`."""
        if self._cached_graph:
            self._turn_to(training=False)
            if not self._cached_graph:
                self._build_cache(*self._example)
        super().export(path, epoch, remove_amp_cast)

    def _call_cached_op(self, *args):
        self._turn_to(training=autograd.is_training())
        self._example = args
        return super()._call_cached_op(*args)

    def _turn_to(self, training):
        if training != self._training:
            other = self._other or ((), None, [])
            self._other = self._cached_graph, self._cached_op, self._cached_op_args
            self._cached_graph, self._cached_op, self._cached_op_args = other
            self._training = training

    def _get_graph(self, *args):
        if self._training:
            return super()._get_graph(*args)
        with without_dropblock(self):
            return super()._get_graph(*args)

    def _clear_cached_op(self):
        super()._clear_cached_op()
        self._other, self._training = None, False

"""One traced graph for training and one for inference (docs/decisions/0002-two-graphs.md)."""
from mxnet import autograd, nd
from mxnet.gluon import nn

from gluon_resnest.models.deform import fused_deformables
from gluon_resnest.models.dropblock import without_dropblock
from gluon_resnest.models.narrow_groups import free_narrow_groups
from gluon_resnest.models.small_maps import fit_small_maps
from gluon_resnest.models.sync_batch_norm import plain_batch_norm
from gluon_resnest.models.training_graph import training_form, wants_training_form


class TwoGraphs(nn.HybridBlock):
    """A HybridBlock that, hybridized, infers and exports from a graph without DropBlock.

    DropBlock is the identity in inference, but its mask costs as much there as in training. MXNet
    traces a block once, for both modes; this one once for each. Inside another block's graph it
    has no say: the results are the same, the mask is computed.
    """

    _tracing_training = False
    _training_graph = ((), None, [])    # _cached_graph, _cached_op, _cached_op_args of training;
    _inputs = 0                         # those names themselves are about inference
    _fits = None                        # shapes (H, W) that the training graph holds for; None: all
    _may_fit = True

    def export(self, path, epoch=0, remove_amp_cast=True):
        """Writes the inference graph and the parameters; see `HybridBlock.export`."""
        if self._inputs and not self._cached_graph:     # called in training only
            self._build_cache(*[nd.zeros(1)] * self._inputs)
        super().export(path, epoch, remove_amp_cast)

    def _call_cached_op(self, *args):
        self._inputs = len(args)
        if not autograd.is_training():
            return super()._call_cached_op(*args)
        if self._fits not in (None, _sides(args)):      # other sizes: from now on a graph for all
            self._training_graph, self._fits, self._may_fit = ((), None, []), None, False
        self._swap()
        self._tracing_training = True
        try:
            return super()._call_cached_op(*args)
        finally:
            self._tracing_training = False
            self._swap()

    def _swap(self):
        current = self._cached_graph, self._cached_op, self._cached_op_args
        self._cached_graph, self._cached_op, self._cached_op_args = self._training_graph
        self._training_graph = current

    def _get_graph(self, *args):
        if self._tracing_training:
            return self._get_training_graph(*args)
        with without_dropblock(self), plain_batch_norm(self), fused_deformables(self):
            return super()._get_graph(*args)

    def _get_training_graph(self, *args):
        if self._cached_graph or not wants_training_form(args):
            return super()._get_graph(*args)
        with training_form(self):
            inputs, outputs = super()._get_graph(*args)
        if _all_shapes_known(self, args):
            shapes = {variable.name: array.shape for variable, array in zip(inputs, args)}
            fitted = fit_small_maps(outputs, shapes) if self._may_fit else None
            if fitted is not None:
                outputs, self._fits = fitted, _sides(args)
            outputs = free_narrow_groups(outputs, shapes)
        self._cached_graph = inputs, outputs
        return self._cached_graph

    def _clear_cached_op(self):
        super()._clear_cached_op()
        self._training_graph, self._inputs = ((), None, []), 0
        self._fits, self._may_fit = None, True


def _sides(args):
    return [array.shape[2:] for array in args if isinstance(array, nd.NDArray)]


def _all_shapes_known(block, args):
    return all(isinstance(array, nd.NDArray) for array in args) and all(
        param.shape is not None and 0 not in param.shape
        for param in block.collect_params().values())

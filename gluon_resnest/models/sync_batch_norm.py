"""Batch normalisation with the statistics of all workers' images (used in the paper's section 6).

Each worker reduces its own images to a mean, a variance and a count per channel. One sum over the
workers brings these rows together, and every worker merges them in the same order, so that all
hold the same bits. In the backward pass, one sum carries the gradients of mean and variance.

Who may wait for whom decides whether this ever hangs: everything that reduces an array is an
operator of the graph; the custom operator itself only copies, does element-wise arithmetic and
sums over workers (docs/decisions/0026-sync-batch-norm.md).
"""
import contextlib
import functools
import logging
import os
import weakref

import mxnet as mx
from mxnet import autograd, nd
from mxnet.gluon import nn
from mxnet.name import NameManager

from gluon_resnest.errors import UserError

OPERATOR = "gluon_resnest_merge_statistics"
IMPERATIVE_CALLS = 16   # calls of one layer without a graph that may be under way at a time

_log = logging.getLogger(__name__)
_groups = []            # an operator's attributes are strings; this is how one finds its workers


class SyncBatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` over the batches of all workers together; its parameters have the same names.

    Input (N, C, ...) of 16 or 32 bits, where N and the sizes behind C may differ between workers;
    output of the same shape and type. Statistics are float32. Equals `nn.BatchNorm` of the
    concatenated batches, gradients included, where the loss is the sum of the workers' losses;
    gradients of gamma and beta are those of this worker's images. The running variance is the
    biased one, and running statistics change in the forward pass of training.

    Outside training, with `use_global_stats`, within `plain_batch_norm` and for a lone worker it
    is `nn.BatchNorm`. All workers must run every such layer equally often in training, and build
    their networks alike: a layer's prefix is its name among workers. Hybridize the outermost block;
    a graph inside it that is called twice would speak twice under one name.

    Args:
      workers: what has the `size`, `rank` and `sum_later` of `engine.comm.Comm`.
      batch_norm: arguments of `nn.BatchNorm`.

    Raises:
      UserError: the channels are not on axis 1; or, when called, the parameters lie on several
        devices of this process.
    """

    def __init__(self, *, workers, **batch_norm):
        super().__init__(**batch_norm)
        if self._kwargs["axis"] != 1:
            raise UserError("synchronised batch norm has its channels on axis 1, got axis="
                            f"{self._kwargs['axis']}; use layout NCHW")
        if not any(group is workers for group in _groups):
            _groups.append(workers)
        self._group = next(i for i, group in enumerate(_groups) if group is workers)
        self._plain = False
        self._calls, self._trace = 0, None

    def _alias(self):
        return "batchnorm"      # names of parameters outside of a name scope, too

    def cast(self, dtype):
        """Keeps the parameters float32; the output has the type of the input."""

    def hybrid_forward(self, F, x, gamma, beta, running_mean, running_var):
        parameters = gamma, beta, running_mean, running_var
        if self._plain or self._kwargs["use_global_stats"]:
            return super().hybrid_forward(F, x, *parameters)
        self._refuse_several_devices()
        if _groups[self._group].size == 1:
            return super().hybrid_forward(F, x, *parameters)
        maps = F.cast(F.reshape(x, shape=(0, 0, -1, 1)), dtype="float32")   # (N, C, pixels, 1)
        # Neither the variance nor the output depends on the point that maps are centred at, so
        # that none needs its gradient; near the mean, float32 loses nothing.
        centre = F.BlockGrad(_mean(F, maps))
        centred = maps - _spread(F, centre, maps)
        rest = _mean(F, centred)        # what rounding left of the mean
        local_mean, local_var = centre + rest, _mean(F, F.square(centred)) - F.square(rest)
        mean, var, _ = F.Custom(
            local_mean, local_var, _count(F, maps, centre), running_mean, running_var,
            op_type=OPERATOR, key=f"{self.prefix}{self._call_number()}", group=str(self._group),
            momentum=str(self._kwargs["momentum"]))
        scale = F.rsqrt(var + self._kwargs["eps"])
        if not self._kwargs["fix_gamma"]:
            scale = scale * gamma
        shift = beta - (mean - centre) * scale
        y = centred * _spread(F, scale, maps) + _spread(F, shift, maps)
        x = F.BlockGrad(x)     # from here on only its shape and type matter
        return _as_type_of(F, F.reshape_like(y, x), x)

    def _refuse_several_devices(self):
        try:
            devices = self.running_mean.list_ctx()
        except RuntimeError:    # no values yet: nothing runs, somebody looks at the graph
            return
        if len(devices) > 1:
            raise UserError(f"synchronised batch norm needs one worker process per device, but the "
                            f"parameters of {self.name} lie on {len(devices)} devices of this "
                            "process; start one worker for each device with horovodrun")

    def _call_number(self):
        """Returns which call of this layer in one forward pass this is, the same on all workers.

        Called by the main thread, in the order of the program. Calls in one trace are counted
        from 0, whatever else was traced before. Without a graph nothing tells where a pass
        begins, so calls in training, which all workers do, are counted round a ring.
        """
        trace = _outermost_scope()
        if trace is None:
            if not autograd.is_training():
                return 0
            self._trace = None
            self._calls = (self._calls + 1) % IMPERATIVE_CALLS
            return self._calls
        if self._trace is None or self._trace() is not trace:
            self._trace, self._calls = weakref.ref(trace), 0
        else:
            self._calls += 1
        return self._calls


@contextlib.contextmanager
def plain_batch_norm(net):
    """Traces and computes `net` with `nn.BatchNorm` in place of synchronised layers inside.

    For graphs that are exported or only infer: they hold no custom operator then. Graphs that
    were traced before stay as they are.
    """
    layers = []
    net.apply(lambda block: layers.append(block) if isinstance(block, SyncBatchNorm) else None)
    for layer in layers:
        layer._plain = True
    try:
        yield
    finally:
        for layer in layers:
            layer._plain = False


def merge(mean, var, count):
    """Merges statistics of disjoint sets, pairwise (Chan, Golub and LeVeque 1979).

    With w = n_b / (n_a + n_b), the share of the second set,

        mean = mean_a + w (mean_b - mean_a)
        var  = (1 - w) var_a + w var_b + w (1 - w) (mean_b - mean_a)^2

    which only averages, and so does not cancel, however far the mean is from zero. Rows are
    merged in halves: log2(rows) rounds of a few element-wise operations. The rounding error grows
    as slowly, and the order depends on the number of rows only.

    Args:
      mean, var, count: NDArrays (rows, C); overwritten.

    Returns:
      mean, var, count of the union, each (C,).
    """
    rows = len(count)
    while rows > 1:
        half = (rows + 1) // 2      # rows half ... are merged into rows 0 ..., an odd one stays
        (mean_a, mean_b), (var_a, var_b), (count_a, count_b) = (
            (part[:rows - half], part[half:rows]) for part in (mean, var, count))
        total = count_a + count_b
        share = count_b / total
        delta = mean_b - mean_a
        mean_a[:] = mean_a + share * delta
        var_a[:] = (1 - share) * var_a + share * var_b + share * (1 - share) * delta * delta
        count_a[:] = total
        rows = half
    return mean[0], var[0], count[0]


def _ends_the_process(method):
    """An exception in a custom operator would leave a process that hangs when it ends."""
    @functools.wraps(method)
    def guarded(self, *args, **kwargs):
        try:
            method(self, *args, **kwargs)
        except Exception:
            _log.exception("synchronised batch norm failed; this worker ends")
            os._exit(1)
    return guarded


class _MergeStatistics(mx.operator.CustomOp):
    """Statistics of this worker to those of all; outside training, to the running ones."""

    def __init__(self, key, workers, momentum):
        super().__init__()
        self._key, self._workers, self._momentum = key, workers, momentum

    @_ends_the_process
    def forward(self, is_train, req, in_data, out_data, aux):
        running_mean, running_var = aux
        if is_train:
            results = self._merged(*in_data)
            for running, new in zip(aux, results):
                running[:] = self._momentum * running + (1 - self._momentum) * new
        else:
            results = running_mean, running_var, in_data[2]
        for out, how, result in zip(out_data, req, results):
            self.assign(out, how, result)

    def _merged(self, *local):
        # Every worker fills its own row of zeros. Adding zeros is exact, so that the sum has the
        # bits of each worker, in whatever order it is made.
        rows = nd.zeros((len(local), self._workers.size) + local[0].shape, ctx=local[0].context)
        for part, value in zip(rows, local):
            part[self._workers.rank][:] = value
        return merge(*self._workers.sum_later(rows, f"{self._key}.statistics"))

    @_ends_the_process
    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        """With n of the N values of a channel here, and g summed over the workers' losses:

            d mean / d mean_i = n / N     d var / d mean_i = 2 (mean_i - mean) n / N
            d var  / d var_i  = n / N     (merge, differentiated)
        """
        local_mean, local_var, count = in_data
        mean, _, total = out_data
        grads = nd.zeros((2,) + mean.shape, ctx=mean.context)
        grads[0][:] = out_grad[0]
        grads[1][:] = out_grad[1]
        grads = self._workers.sum_later(grads, f"{self._key}.gradients")
        share = count / total
        self.assign(in_grad[0], req[0],
                    share * (grads[0] + 2 * grads[1] * (local_mean - mean)))
        self.assign(in_grad[1], req[1], share * grads[1])
        self.assign(in_grad[2], req[2], nd.zeros_like(count))


@mx.operator.register(OPERATOR)
class _MergeStatisticsProp(mx.operator.CustomOpProp):
    """As many outputs as inputs: with fewer inputs MXNet reads beyond its own arrays."""

    def __init__(self, key, group, momentum):
        super().__init__(need_top_grad=True)
        self._key, self._group, self._momentum = key, int(group), float(momentum)

    def list_arguments(self):
        return ["local_mean", "local_var", "local_count"]

    def list_auxiliary_states(self):
        return ["running_mean", "running_var"]

    def list_outputs(self):
        return ["mean", "var", "count"]

    def infer_shape(self, in_shape):
        return in_shape, [in_shape[0]] * 3, [in_shape[0]] * 2

    def create_operator(self, ctx, shapes, dtypes):
        return _MergeStatistics(self._key, _groups[self._group], self._momentum)


def _mean(F, maps):
    """Returns the mean per channel, (C,); on a CPU ten times as fast as `F.mean` of two axes."""
    return F.mean(F.contrib.AdaptiveAvgPooling2D(maps, output_size=1), axis=(0, 2, 3))


def _spread(F, values, maps):
    """Returns (C,) repeated to the shape of `maps`, by image first: a fast backward pass."""
    images = F.slice_axis(F.BlockGrad(maps), axis=2, begin=0, end=1)        # (N, C, 1, 1)
    images = F.broadcast_like(F.reshape(values, shape=(1, -1, 1, 1)), images)
    return F.broadcast_like(images, F.BlockGrad(maps))


def _count(F, maps, like):
    """Returns how many values a channel of `maps` (N, C, pixels, 1) has, shaped as `like`."""
    shape = F.cast(F.shape_array(maps), dtype="float32")
    values = F.slice_axis(shape, axis=0, begin=0, end=1) * \
        F.slice_axis(shape, axis=0, begin=2, end=3)
    return F.broadcast_mul(F.ones_like(like), values)


def _as_type_of(F, y, x):
    """Returns float32 `y` as 16 bits if `x` has 16, without a copy of `x`."""
    sample = x
    for axis in (0, 1):
        sample = F.slice_axis(sample, axis=axis, begin=0, end=1)
    return F.amp_multicast(y, sample, num_outputs=2, cast_narrow=True)[0]


def _outermost_scope():
    """Returns the name scope of the trace that is under way: one for each; None without one."""
    scope, outer = getattr(NameManager._current, "value", None), None
    while scope is not None and scope._old_manager is not None:
        scope, outer = scope._old_manager, scope
    return outer

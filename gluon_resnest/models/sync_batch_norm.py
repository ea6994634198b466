"""Batch normalisation with the statistics of all workers' images (used in the paper's section 6).

Each worker reduces its own images to a mean, a variance and a count per channel. One sum over the
workers brings these rows together, and every worker merges them in the same order, so that all
hold the same bits. In the backward pass, one sum carries the gradients of mean and variance.

Who may wait for whom decides whether this ever hangs: everything that reduces an array is an
operator of the graph; the two custom operators only copy, do element-wise arithmetic and sum over
workers (docs/decisions/0026-sync-batch-norm.md).
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

GATHER, FOLLOW = "gluon_resnest_gather_statistics", "gluon_resnest_follow_statistics"
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
        maps = F.cast(F.reshape(x, shape=(0, 0, -1)), dtype="float32")      # (N, C, pixels)
        # Neither the variance nor the output depends on the point that maps are centred at, so
        # that none needs its gradient; near the mean, float32 loses nothing.
        centre = F.BlockGrad(_mean(F, maps))
        centred = maps - F.BlockGrad(_spread(F, centre, maps))
        rest = _mean(F, centred)        # what rounding left of the mean
        local = F.stack(centre + rest, _mean(F, F.square(centred)) - F.square(rest), axis=0)
        mean, var = F.split(self._of_all(F, local, _count(F, maps), running_mean, running_var),
                            num_outputs=2, axis=0, squeeze_axis=True)
        scale = F.rsqrt(var + self._kwargs["eps"])
        if not self._kwargs["fix_gamma"]:
            scale = scale * gamma
        shift = beta - (mean - centre) * scale
        y = centred * _spread(F, scale, maps) + _spread(F, shift, maps)
        x = F.BlockGrad(x)     # from here on only its shape and type matter
        return _as_type_of(F, F.reshape_like(y, x), x)

    def _of_all(self, F, local, count, running_mean, running_var):
        """Returns mean and variance (2, C) of all workers from those of this one and its count.

        With n of the N values of a channel here, and gradients g summed over the workers' losses
        (`merge`, differentiated):

            d mean / d mean_i = n / N     d var / d mean_i = 2 (mean_i - mean) n / N
            d var  / d var_i  = n / N
        """
        key = f"{self.prefix}{self._call_number()}"
        known = F.BlockGrad(local)
        count = F.broadcast_like(count, F.slice_axis(known, axis=0, begin=0, end=1))
        rows = F.Custom(F.concat(known, count, dim=0), op_type=GATHER, key=key,
                        group=str(self._group))
        merged, total = _parts(F, merge(F, F.BlockGrad(rows), _groups[self._group].size), 2)
        share = count / total
        # Zero, but with the gradient of `local`: the sums above pass none on.
        moved_mean, moved_var = _parts(F, local - known, 1)
        apart = _parts(F, known - merged, 1)[0]
        moved = F.concat(share * moved_mean, share * (moved_var + 2 * apart * moved_mean), dim=0)
        return F.Custom(merged + moved, running_mean, running_var, op_type=FOLLOW, key=key,
                        group=str(self._group), momentum=str(self._kwargs["momentum"]))

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


def merge(F, statistics, rows):
    """Merges statistics of disjoint sets, pairwise (Chan, Golub and LeVeque 1979).

    With w = n_b / (n_a + n_b), the share of the second set,

        mean = mean_a + w (mean_b - mean_a)
        var  = (1 - w) var_a + w var_b + w (1 - w) (mean_b - mean_a)^2

    which only averages, and so does not cancel, however far the mean is from zero. Rows are
    merged in halves: log2(rows) rounds of a few element-wise operations. The rounding error grows
    as slowly, and the order depends on the number of rows only.

    Args:
      F: `mxnet.nd` or `mxnet.sym`.
      statistics: (rows, 3, C), mean, variance and count of each set.
      rows: their number.

    Returns:
      (3, C), those of the union.
    """
    while rows > 1:
        half = (rows + 1) // 2      # rows half ... are merged into rows 0 ..., an odd one stays
        first = F.slice_axis(statistics, axis=0, begin=0, end=rows - half)
        second = F.slice_axis(statistics, axis=0, begin=half, end=rows)
        (mean_a, var_a, count_a), (mean_b, var_b, count_b) = (
            F.split(part, num_outputs=3, axis=1) for part in (first, second))
        total = count_a + count_b
        share = count_b / total
        delta = mean_b - mean_a
        merged = F.concat(
            mean_a + share * delta,
            (1 - share) * var_a + share * var_b + share * (1 - share) * delta * delta,
            total, dim=1)
        if rows % 2:
            odd = F.slice_axis(statistics, axis=0, begin=half - 1, end=half)
            merged = F.concat(merged, odd, dim=0)
        statistics, rows = merged, half
    return F.reshape(statistics, shape=(3, -1))


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


# Both operators have as many outputs as inputs: with fewer inputs MXNet reads beyond its arrays.

class _Gather(mx.operator.CustomOp):
    """This worker's statistics (3, C) to those of each (workers, 3, C); no gradient."""

    def __init__(self, key, workers):
        super().__init__()
        self._key, self._workers = key, workers

    @_ends_the_process
    def forward(self, is_train, req, in_data, out_data, aux):
        # Every worker fills its own row of zeros. Adding zeros is exact, so that the sum has the
        # bits of each worker, in whatever order it is made.
        rows = nd.zeros(out_data[0].shape, ctx=in_data[0].context)
        rows[self._workers.rank] = in_data[0]
        if is_train:
            rows = self._workers.sum_later(rows, f"{self._key}.statistics")
        self.assign(out_data[0], req[0], rows)

    @_ends_the_process
    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        self.assign(in_grad[0], req[0], nd.zeros_like(in_data[0]))


@mx.operator.register(GATHER)
class _GatherProp(mx.operator.CustomOpProp):
    def __init__(self, key, group):
        super().__init__(need_top_grad=False)
        self._key, self._workers = key, _groups[int(group)]

    def list_arguments(self):
        return ["local"]

    def infer_shape(self, in_shape):
        return in_shape, [[self._workers.size] + list(in_shape[0])], []

    def create_operator(self, ctx, shapes, dtypes):
        return _Gather(self._key, self._workers)


class _Follow(mx.operator.CustomOp):
    """The running statistics follow mean and variance (2, C), which pass unchanged.

    Outside training it returns the running statistics. Backward, gradients are summed over the
    workers.
    """

    def __init__(self, key, workers, momentum):
        super().__init__()
        self._key, self._workers, self._momentum = key, workers, momentum

    @_ends_the_process
    def forward(self, is_train, req, in_data, out_data, aux):
        result = in_data[0]
        if is_train:
            rest = 1 - self._momentum
            for running, new in zip(aux, result):
                # (1 - lr wd) running - lr new, in one operation
                nd.sgd_update(running, new, lr=-rest, wd=-1.0, out=running)
        else:
            result = nd.zeros_like(result)
            for row, running in zip(result, aux):
                row[:] = running
        self.assign(out_data[0], req[0], result)

    @_ends_the_process
    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        grads = out_grad[0].copy()
        self.assign(in_grad[0], req[0],
                    self._workers.sum_later(grads, f"{self._key}.gradients"))


@mx.operator.register(FOLLOW)
class _FollowProp(mx.operator.CustomOpProp):
    def __init__(self, key, group, momentum):
        super().__init__(need_top_grad=True)
        self._key, self._workers = key, _groups[int(group)]
        self._momentum = float(momentum)

    def list_arguments(self):
        return ["merged"]

    def list_auxiliary_states(self):
        return ["running_mean", "running_var"]

    def infer_shape(self, in_shape):
        return in_shape, [in_shape[0]], [[in_shape[0][1]]] * 2

    def create_operator(self, ctx, shapes, dtypes):
        return _Follow(self._key, self._workers, self._momentum)


def _parts(F, rows, first):
    """Returns the first rows of (n, C), and the others."""
    return (F.slice_axis(rows, axis=0, begin=0, end=first),
            F.slice_axis(rows, axis=0, begin=first, end=None))


def _mean(F, maps):
    """Returns the mean per channel (C,) of (N, C, pixels), by a product with ones."""
    means = F.dot(maps, F.broadcast_div(_ones(F, maps), _pixels(F, maps)))
    return F.mean(means, axis=0)


def _spread(F, values, maps):
    """Returns (C,) repeated to (N, C, pixels): a product with ones, whose gradient is one too."""
    images = F.slice_axis(F.BlockGrad(maps), axis=2, begin=0, end=1)        # (N, C, 1)
    images = F.broadcast_like(F.reshape(values, shape=(1, -1, 1)), images)
    return F.dot(images, F.reshape(_ones(F, maps), shape=(1, -1)))


def _ones(F, maps):
    """Returns ones, as many as (N, C, pixels) has pixels."""
    pixel = F.BlockGrad(maps)
    for axis in (0, 1):
        pixel = F.slice_axis(pixel, axis=axis, begin=0, end=1)
    return F.reshape(F.ones_like(pixel), shape=(-1,))


def _pixels(F, maps):
    """Returns the number of pixels of (N, C, pixels), float32 (1,)."""
    return F.cast(F.slice_axis(F.shape_array(maps), axis=0, begin=2, end=3), dtype="float32")


def _count(F, maps):
    """Returns how many values a channel of (N, C, pixels) has, float32 (1, 1)."""
    images = F.cast(F.slice_axis(F.shape_array(maps), axis=0, begin=0, end=1), dtype="float32")
    return F.reshape(images * _pixels(F, maps), shape=(1, 1))


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

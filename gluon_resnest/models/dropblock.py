"""DropBlock (Ghiasi et al. 2018), free of input size and right in every mode of every graph."""
import contextlib

from mxnet.gluon import nn

from gluon_resnest.errors import UserError, check_choice

RULES = ("published", "exact")


class DropBlock(nn.HybridBlock):
    """Sets random squares of each channel to zero in training and rescales what is left.

    Identity outside training, also in a graph that was traced in training, and in exports.
    Input and output (N, C, H, W), any H and W. Drawn from MXNet's generator on the device, so
    `mx.random.seed` makes it repeatable. docs/decisions/0001-dropblock-rules.md compares the rules.

    Args:
      p: about the share of positions that is dropped, 0 <= p < 1; 0 adds nothing to the graph.
      rule: "published" draws block centres on the map, at the rate of the DropBlock paper's
        equation 1; "exact" draws them outside the border too, which drops every position with
        probability p at every size.
      per_sample: draw one mask for each sample instead of one for the batch (the published code).
      block: side of a square in pixels, odd.
    """

    def __init__(self, p=0.1, *, rule="published", per_sample=False, block=3):
        super().__init__()
        check_choice("DropBlock rule", rule, RULES)
        self._rule, self._per_sample, self._block = rule, per_sample, block
        self._dtype = "float32"
        self.set_drop_prob(p)

    def set_drop_prob(self, p):
        """Changes the probability of this block; `set_drop_prob` does it for a network."""
        if not 0 <= p < 1:
            raise UserError(f"a DropBlock probability lies in [0, 1), got {p!r}")
        self._p = float(p)

    def cast(self, dtype):
        super().cast(dtype)
        self._dtype = dtype

    def hybrid_forward(self, F, x):
        if self._p == 0:
            return x
        # Into the plain layout once: each reader of a oneDNN layout would convert it for itself.
        x = F.reshape(x, shape=(0, 0, 0, 0))
        like = F.BlockGrad(x if self._per_sample else _first(F, x, axes=(0,)))
        like = F.cast(like, dtype="float32")  # float16 cannot count the elements of a map
        kept = self._kept(F, like)
        share = F.mean(F.contrib.AdaptiveAvgPooling2D(kept, output_size=1), axis=(0, 1),
                       keepdims=True)
        scaled = F.cast(F.broadcast_div(kept, F.maximum(share, 1e-6)), dtype=self._dtype)
        if not self._per_sample:
            # One copy for each sample: a broadcast product has a backward ten times as dear.
            samples = F.reshape(F.BlockGrad(_first(F, x, axes=(1, 2, 3))), shape=(-1,))
            scaled = F.take(scaled, F.zeros_like(samples), axis=0)
        return x * scaled

    def _kept(self, F, like):
        """Returns 1 where `like` (N or 1, C, H, W) is kept and 0 where a square covers it."""
        side, margin = self._block, self._block // 2
        if self._rule == "exact":
            rate = 1 - (1 - self._p) ** (1 / side ** 2)
            around = F.pad(like, mode="constant", pad_width=(0,) * 4 + (margin,) * 4)
            pad = 0
        else:
            size = F.slice_axis(F.shape_array(like), axis=0, begin=2, end=4)
            size = F.cast(size, dtype="float32")
            rate = self._p / side ** 2 * F.prod(size / F.maximum(size - 2 * margin, 1))
            around = like
            pad = margin
        one = F.ones_like(_first(F, like, axes=(0, 1, 2, 3)))
        # Dropout makes 0 or 2 of the one while training and leaves it alone otherwise, when the
        # graph runs: in inference and in exports no centre is drawn.
        rate = F.reshape(F.Dropout(one, p=0.5) != 1, shape=(-1,)) * rate
        seeds = F.broadcast_lesser(F.random.uniform_like(around), F.reshape(rate, (1, 1, 1, 1)))
        # Centres in each window are counted by a convolution, five times as fast as max pooling.
        count = F.Convolution(F.reshape(seeds, shape=(-1, 1, 0, 0)),
                              F.broadcast_axis(one, axis=(2, 3), size=(side, side)),
                              kernel=(side, side), pad=(pad, pad), num_filter=1, no_bias=True)
        return F.reshape_like(count, like) == 0


def _first(F, x, axes):
    """Keeps the first entry along each axis; `F.slice` crashes on oneDNN's blocked layouts."""
    for axis in axes:
        x = F.slice_axis(x, axis=axis, begin=0, end=1)
    return x


def set_drop_prob(net, p):
    """Sets the probability of every DropBlock inside `net`, at a schedule's epoch for instance.

    Graphs that were traced with the old probability are dropped, options of `hybridize` kept.
    Call it on the outermost block that is hybridized: only that one knows its graph.
    """
    def update(block):
        if isinstance(block, DropBlock):
            block.set_drop_prob(p)
        if isinstance(block, nn.HybridBlock):
            block._clear_cached_op()

    net.apply(update)


def set_drop_rule(net, rule, *, per_sample):
    """Sets rule and mask, see `DropBlock`, of every DropBlock inside a net not yet called."""
    check_choice("DropBlock rule", rule, RULES)

    def update(block):
        if isinstance(block, DropBlock):
            block._rule, block._per_sample = rule, per_sample

    net.apply(update)


@contextlib.contextmanager
def without_dropblock(net):
    """Traces and computes `net` as if it had no DropBlock while the context lasts."""
    blocks = []
    net.apply(lambda block: blocks.append(block) if isinstance(block, DropBlock) else None)
    saved = [block._p for block in blocks]
    for block in blocks:
        block._p = 0.0
    try:
        yield
    finally:
        for block, p in zip(blocks, saved):
            block._p = p

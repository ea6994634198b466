"""DropBlock (Ghiasi et al. 2018), free of input size and right in every mode of every graph."""
from mxnet.gluon import nn

from gluon_resnest.errors import UserError, nearest

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
        if rule not in RULES:
            raise UserError(f"unknown DropBlock rule {rule!r}, expected one of {', '.join(RULES)}"
                            f"{nearest(rule, RULES)}")
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
        like = F.BlockGrad(x)  # first of all: nothing below is differentiated, or costs backward
        if not self._per_sample:
            like = F.slice_axis(like, axis=0, begin=0, end=1)
        like = F.cast(like, dtype="float32")  # shares of many elements do not fit float16
        kept = 1 - self._dropped(F, like)
        scaled = F.broadcast_div(kept, F.maximum(F.mean(kept, keepdims=True), 1e-6))
        return F.broadcast_mul(x, F.BlockGrad(F.cast(scaled, dtype=self._dtype)))

    def _dropped(self, F, like):
        """Returns 1 where `like` (N or 1, C, H, W) is dropped and 0 elsewhere."""
        margin = self._block // 2
        window = dict(kernel=(self._block,) * 2, pool_type="max")
        if self._rule == "exact":
            like = F.pad(like, mode="constant", pad_width=(0,) * 4 + (margin,) * 4)
            rate = 1 - (1 - self._p) ** (1 / self._block ** 2)
            seeds = F.broadcast_lesser(F.random.uniform_like(like), rate * self._training(F, like))
            return F.Pooling(seeds, **window)
        size = F.cast(F.slice_axis(F.shape_array(like), axis=0, begin=2, end=4), dtype="float32")
        spread = F.prod(size / F.maximum(size - 2 * margin, 1))
        rate = self._p / self._block ** 2 * spread
        rate = F.broadcast_mul(F.reshape(rate, shape=(1, 1, 1, 1)), self._training(F, like))
        seeds = F.broadcast_lesser(F.random.uniform_like(like), rate)
        return F.Pooling(seeds, pad=(margin, margin), **window)

    @staticmethod
    def _training(F, like):
        """Returns (1, 1, 1, 1): 1 while training, 0 otherwise, decided when the graph runs.

        Dropout turns a one into 0 or 2 in training and leaves it alone in inference.
        """
        one = F.ones_like(F.slice(like, begin=(0, 0, 0, 0), end=(1, 1, 1, 1)))
        return F.Dropout(one, p=0.5) != 1


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

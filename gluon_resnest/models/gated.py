"""The product of maps with gates of their channels, the last step of every attention here."""
from mxnet.gluon import nn


class Gated(nn.HybridBlock):
    """A block that weights each channel of maps by a gate.

    Attributes:
      trains: whether the graph of training is traced, see `models.training_graph`.
    """

    trains = False

    def weighted(self, F, x, gate):
        """Multiplies maps (N, C, H, W) by gates (N, C, 1, 1)."""
        if not self.trains:
            return x * F.broadcast_like(gate, x)
        # Copied to all pixels by a product with ones, whose backward pass is a product too.
        flat = F.reshape(x, shape=(-3, -3))                           # (N*C, H*W)
        ones = F.ones_like(F.BlockGrad(F.slice_axis(flat, axis=0, begin=0, end=1)))
        return F.reshape_like(flat * F.dot(F.reshape(gate, shape=(-1, 1)), ones), x)

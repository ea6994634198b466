"""Split-Attention convolution (paper, section 3 and appendix A), in its radix-major form."""
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.models.gated import Gated


class SplitAttention(Gated):
    """Convolves into `radix` splits and adds them up, each weighted per channel by what all see.

    Input (N, C_in, H, W), output (N, C, H', W'). Letters as in the paper: radix r splits in each
    of `cardinality` g groups; the channels of the convolution are ordered radix-major, those of
    `fc2` cardinality-major, which is what the published weights hold.

    Args:
      channels: C, channels of the output.
      in_channels: C_in.
      norm: constructor of a normalisation layer, called with `in_channels`.
      radix: r >= 1; r = 1 is squeeze-and-excitation with a normalised squeeze.
      cardinality: g >= 1.
      strides, dilation: of the 3x3 convolution.
      conv: constructor of the 3x3 convolution, called like `nn.Conv2D`.

    Raises:
      UserError: if the channels cannot be divided into these groups.
    """

    def __init__(self, channels, *, in_channels, norm, radix=2, cardinality=1, strides=1,
                 dilation=1, conv=nn.Conv2D):
        super().__init__()
        self._radix, self._cardinality = radix, cardinality
        hidden = max(in_channels * radix // 4, 32)
        if in_channels % (radix * cardinality) or channels % cardinality or hidden % cardinality:
            raise UserError(
                f"split attention with radix {radix} and cardinality {cardinality} cannot divide "
                f"{in_channels} input, {channels} output and {hidden} hidden channels evenly; "
                "choose another bottleneck width")
        self.conv = conv(channels * radix, 3, strides, dilation, dilation,
                         groups=cardinality * radix, use_bias=False, in_channels=in_channels)
        self.bn = norm(in_channels=channels * radix)
        self.relu = nn.Activation("relu")
        self.fc1 = nn.Conv2D(hidden, 1, in_channels=channels, groups=cardinality)
        self.bn1 = norm(in_channels=hidden)
        self.relu1 = nn.Activation("relu")
        self.fc2 = nn.Conv2D(channels * radix, 1, in_channels=hidden, groups=cardinality)

    def hybrid_forward(self, F, x):
        r = self._radix
        x = self.relu(self.bn(self.conv(x)))                          # (N, r*c, H, W), radix-major
        if r == 1:
            return self.weighted(F, x, F.sigmoid(self._logits(F, x)))
        splits = F.split(x, num_outputs=r, axis=1)                    # r times (N, c, H, W)
        logits = self._logits(F, F.add_n(*splits))                    # (N, r*c, 1, 1), radix-major
        gates = F.softmax(F.reshape(logits, shape=(0, r, -1, 1, 1)), axis=1)  # over splits, eq. 2
        gates = F.split(F.reshape(gates, shape=(0, -1, 1, 1)), num_outputs=r, axis=1)
        # The gates sum to one, so the last split needs none: cheaper by one product, which is the
        # dearest step of the backward pass (docs/performance.md).
        last = splits[r - 1]
        return F.add_n(last, *[self.weighted(F, splits[i] - last, gates[i])
                               for i in range(r - 1)])

    def _logits(self, F, total):
        """Returns the gates' logits, radix-major (N, r*c, 1, 1), from the sum of the splits."""
        pooled = F.contrib.AdaptiveAvgPooling2D(total, output_size=1)
        logits = self.fc2(self.relu1(self.bn1(self.fc1(pooled))))     # (N, g*r*(c/g), 1, 1)
        if self._cardinality == 1 or self._radix == 1:                # the two orders agree
            return logits
        logits = F.reshape(logits, shape=(0, self._cardinality, self._radix, -1))
        return F.reshape(F.swapaxes(logits, dim1=1, dim2=2), shape=(0, -1, 1, 1))

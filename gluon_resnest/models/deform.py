"""Modulated deformable convolution, DCNv2 (Zhu et al. 2019), in place of a 3x3 convolution."""
import contextlib

from mxnet.gluon import nn

from gluon_resnest.errors import UserError, check_choice

FORMS = ("fused", "composed")
KERNEL = 3
_POSITIONS = KERNEL ** 2


class DeformableConv2D(nn.HybridBlock):
    """A 3x3 convolution that samples its input where a second convolution says, and how strongly.

    Input (N, C_in, H, W), output (N, channels, H', W'). Takes the arguments of `nn.Conv2D` that
    `SplitAttention` gives, and its weight has the same name and shape. The second convolution,
    `offset`, begins at zero: samples lie on the grid, each weighted sigmoid(0) = 1/2, so that a
    fresh layer is half the plain convolution, as in Detectron2. A norm behind it takes the half
    away; docs/decisions/0080-fresh-deformable-convolution.md.

    `offset` has 27 * deformable_groups channels: first the offsets of each group, (y, x) of each
    of the 9 positions, then the logits of the weights of each group's positions.

    Args:
      channels, kernel_size, strides, padding, dilation, groups, use_bias, in_channels: as in
        `nn.Conv2D`, but the kernel is 3, the padding the dilation, and there is no bias.
      deformable_groups: groups of input channels that share their samples.

    Raises:
      UserError: if the arguments ask for something else.
    """

    def __init__(self, channels, kernel_size=KERNEL, strides=1, padding=1, dilation=1, groups=1, *,
                 in_channels, use_bias=False, deformable_groups=1):
        super().__init__()
        if kernel_size != KERNEL or padding != dilation or use_bias:
            raise UserError(f"a deformable convolution has a 3x3 kernel, padding equal to dilation "
                            f"and no bias, got kernel {kernel_size}, padding {padding}, dilation "
                            f"{dilation}, use_bias={use_bias}")
        if in_channels % deformable_groups or in_channels % groups or channels % groups:
            raise UserError(f"cannot divide {in_channels} input and {channels} output channels "
                            f"into {groups} groups and {deformable_groups} deformable groups")
        self._geometry = dict(kernel=(KERNEL, KERNEL), stride=(strides, strides),
                              dilate=(dilation, dilation))
        self._padding = dilation
        self._channels, self._in_channels, self._groups = channels, in_channels, groups
        self._deformable_groups = deformable_groups
        self._form, self._dtype = "fused", "float32"
        self.weight = self.params.get("weight", shape=(channels, in_channels // groups,
                                                       KERNEL, KERNEL))
        self.offset = nn.Conv2D(27 * deformable_groups, KERNEL, strides, padding, dilation,
                                groups=deformable_groups, in_channels=in_channels,
                                weight_initializer="zeros")

    def set_form(self, form):
        """Chooses "fused", one operator, or "composed", whose gradients a CPU can compute."""
        check_choice("form of deformable convolutions", form, FORMS)
        self._form = form
        self._clear_cached_op()

    def cast(self, dtype):
        super().cast(dtype)
        self._dtype = dtype

    def hybrid_forward(self, F, x, weight):
        groups = self._deformable_groups
        said = self.offset(x)
        offset = F.slice_axis(said, axis=1, begin=0, end=2 * _POSITIONS * groups)
        mask = F.sigmoid(F.slice_axis(said, axis=1, begin=2 * _POSITIONS * groups, end=None))
        if self._form == "fused":
            return F.contrib.ModulatedDeformableConvolution(
                x, offset, mask, weight, num_filter=self._channels, num_group=self._groups,
                num_deformable_group=groups, pad=(self._padding,) * 2, no_bias=True,
                **self._geometry)
        return self._composed(F, x, offset, mask, weight)

    def _composed(self, F, x, offset, mask, weight):
        """The same from operators with a backward pass on every device, at nine times the memory.

        The first version's operator samples with a kernel of zeros and ones, one output channel
        for each input channel and position; they are weighted and go through a 1x1 convolution.
        That operator drops samples less than a pixel outside of the input, where the second
        version interpolates with zeros; a border of zeros makes them the same.
        """
        groups, samples = self._deformable_groups, self._in_channels * _POSITIONS
        bordered = F.pad(x, mode="constant", pad_width=(0,) * 4 + (1,) * 4, constant_value=0)
        one_each = F.reshape(
            F.one_hot(F.arange(_POSITIONS), depth=_POSITIONS, dtype=self._dtype),
            shape=(_POSITIONS, 1, KERNEL, KERNEL))
        columns = F.contrib.DeformableConvolution(
            bordered, offset, F.tile(one_each, reps=(self._in_channels, 1, 1, 1)),
            num_filter=samples, num_group=self._in_channels, num_deformable_group=groups,
            pad=(self._padding - 1,) * 2, no_bias=True, **self._geometry)
        shape = (0, groups, self._in_channels // groups, _POSITIONS, -1)
        weighted = F.broadcast_mul(F.reshape(columns, shape=shape),
                                   F.reshape(mask, shape=(0, groups, 1, _POSITIONS, -1)))
        return F.Convolution(F.reshape_like(weighted, columns),
                             F.reshape(weight, shape=(0, -1, 1, 1)), kernel=(1, 1),
                             num_filter=self._channels, num_group=self._groups, no_bias=True)


def set_deformable_form(net, form):
    """Sets the form, see `DeformableConv2D.set_form`, of every deformable convolution in a net.

    Graphs that were traced before are dropped. Training on a CPU needs "composed", GPUs want
    "fused"; `fused_deformables` makes exports fused. Both have the same parameters.
    """
    check_choice("form of deformable convolutions", form, FORMS)

    def update(block):
        if isinstance(block, DeformableConv2D):
            block.set_form(form)
        elif isinstance(block, nn.HybridBlock):
            block._clear_cached_op()

    net.apply(update)


@contextlib.contextmanager
def fused_deformables(net):
    """Traces and computes `net` with the fused form while the context lasts, for inference."""
    layers = []
    net.apply(lambda block: layers.append(block) if isinstance(block, DeformableConv2D) else None)
    saved = [layer._form for layer in layers]
    for layer in layers:
        layer._form = "fused"
    try:
        yield
    finally:
        for layer, form in zip(layers, saved):
            layer._form = form

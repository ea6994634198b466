"""Dropout whose masks follow from the seed on every device."""
from mxnet.gluon import nn

from gluon_resnest.errors import UserError


class Dropout(nn.Dropout):
    """Gluon's layer without cuDNN's kernel, whose state `mx.random.seed` does not reach.

    So it is in MXNet 1.9.1 (apache/mxnet#15662), which lacks the mending, #19209.

    Raises:
      UserError: if the rate, the share that is dropped, is not in [0, 1).
    """

    def __init__(self, rate, axes=()):
        if not 0 <= rate < 1:
            raise UserError(f"a dropout rate lies in [0, 1), got {rate!r}; give such a number")
        super().__init__(rate, axes)

    def hybrid_forward(self, F, x):
        if self._rate == 0:
            return F.identity(x)
        return F.Dropout(x, p=self._rate, axes=self._axes, name="fwd", cudnn_off=True)

"""Cuts RoIs out of the pyramid (He et al. 2017, ROIAlign; Lin et al. 2017, eq. 1)."""
import math

from mxnet.gluon import nn

from gluon_resnest.models.detection import boxes as box

CANONICAL_SIDE, CANONICAL_STRIDE = 224, 16      # a RoI of 224 pixels is pooled at stride 16
# Narrower RoIs count as empty: MXNet aborts the process at a width of 0 after rounding.
SMALLEST_SIDE = 1e-2
FAR = 100       # positions of a map


class RoIPooling(nn.HybridBlock):
    """RoIs (N, R, 4) and maps p2, ..., p5 of N images to (N * R, C, size, size).

    Each RoI is pooled from one level, which its area chooses; an empty one gives zeros. There is
    no gradient with respect to RoIs.

    Args:
      size: positions on each side.
      strides: of the maps, each twice the one before.
      conventions: tells alignment and sampling.
    """

    def __init__(self, size, strides, conventions):
        super().__init__()
        self._size, self._strides, self._conventions = size, tuple(strides), conventions

    def hybrid_forward(self, F, rois, *maps):
        conventions = self._conventions
        rois = F.BlockGrad(rois)
        width, height = box.sides(F, rois)
        there = (width >= SMALLEST_SIDE) * (height >= SMALLEST_SIDE)
        levels = self._levels(F, width, height)
        image = F.broadcast_like(F.reshape(F.contrib.arange_like(rois, axis=0), shape=(-1, 1, 1)),
                                 width)
        rows = F.concat(image, rois, dim=2)                                       # (N, R, 5)
        nowhere = F.ones_like(F.concat(width, height, dim=2))
        pooled = []
        for level, (feature_map, stride) in enumerate(zip(maps, self._strides)):
            # Far outside of the map, where ROIAlign samples zeros. An image number of -1, which is
            # said to mean padding, leaves the output uninitialised on CPU.
            outside = F.concat(image, nowhere * -FAR * stride, nowhere * (1 - FAR) * stride, dim=2)
            here = F.broadcast_like((levels == level) * there, rows)
            chosen = F.reshape(F.where(here, rows, outside), shape=(-1, 5))
            pooled.append(F.contrib.ROIAlign(
                feature_map, chosen, pooled_size=(self._size, self._size),
                spatial_scale=1 / stride, sample_ratio=conventions.sampling_ratio or -1,
                aligned=conventions.aligned))
        return F.add_n(*pooled)

    def _levels(self, F, width, height):
        """Returns the index (N, R, 1) of the level that each RoI is pooled from."""
        if self._conventions.legacy_pixels:
            width, height = width + 1, height + 1
        scale = F.sqrt(width * height) / CANONICAL_SIDE + 1e-8
        canonical = math.log2(CANONICAL_STRIDE / self._strides[0])
        levels = F.floor(F.log(scale) / math.log(2) + canonical)
        return F.clip(levels, 0, len(self._strides) - 1)

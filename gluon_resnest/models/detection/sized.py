"""Networks of padded images: the second input says how large each is without its padding."""
from mxnet import nd

from gluon_resnest.models.graphs import TwoGraphs


class SizedImages(TwoGraphs):
    """Base of networks that are called with images (N, 3, H, W) and maybe their `sizes` (N, 2).

    `sizes` holds (height, width) of each image in a padded batch; without it, all images are as
    large as the batch. One that is exported has the images as its only input.
    """

    def __call__(self, x, sizes=None):
        if sizes is None and isinstance(x, nd.NDArray):     # one signature, one cached graph
            sizes = nd.array([x.shape[2:]], ctx=x.context)
        return super().__call__(*([x] if sizes is None else [x, sizes]))

    def export(self, path, epoch=0, remove_amp_cast=True):
        """Writes the inference graph, whose one input is the images, and the parameters."""
        self._clear_cached_op()
        self._build_cache(nd.zeros(1))
        super().export(path, epoch, remove_amp_cast)
        self._clear_cached_op()


def sizes_of(F, x, sizes):
    """Returns `sizes`, or where there are none (1, 2), the height and width of the batch."""
    if sizes is not None:
        return sizes
    shape = F.slice_axis(F.shape_array(x), axis=0, begin=2, end=4)
    return F.reshape(F.cast(shape, dtype="float32"), shape=(1, 2))

"""Times the pixel loss against the same one over enlarged logits; prints medians and ratios.

    python tests/pixel_loss_speed.py [--mining]

In turns, forward and backward; the twin enlarges by MXNet's operator, takes log-softmax with the
classes last, hybridized, and picks the true class.
"""
import argparse
import statistics
import time

from mxnet import autograd, nd
from mxnet.gluon import HybridBlock

from gluon_resnest.models.pixel_loss import PixelCrossEntropy

# name -> (images, classes, height, width, stride of the logits)
CASES = {"ADE20K, 480 pixels": (2, 150, 480, 480, 8),
         "Cityscapes, 768 pixels": (1, 19, 768, 768, 8),
         "panoptic, 800 x 1088": (1, 54, 800, 1088, 4)}


class Whole(HybridBlock):
    """The twin: all pixels and classes at once."""

    def __init__(self, keep):
        super().__init__()
        self._keep = keep

    def hybrid_forward(self, F, logits, labels, like):
        enlarged = F.contrib.BilinearResize2D(logits, like, mode="like").transpose((0, 2, 3, 1))
        chosen = F.pick(F.log_softmax(enlarged, axis=-1), F.relu(labels), axis=-1)
        losses = -chosen * (labels >= 0)
        if self._keep:
            flat = F.reshape(F.BlockGrad(losses), shape=(0, -1))
            least = F.min(F.topk(flat, axis=1, k=self._keep, ret_typ="value"), axis=1)
            losses = losses * F.broadcast_greater_equal(
                F.BlockGrad(losses), F.reshape(F.clip(least, 0, 0.5), shape=(-1, 1, 1)))
        return F.sum(losses)


def seconds(loss, logits, *arguments):
    """Returns how long a loss and its gradient take."""
    start = time.perf_counter()
    with autograd.record():
        total = loss(logits, *arguments)
    total.backward()
    nd.waitall()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mining", action="store_true", help="leave out easy pixels")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    arguments = parser.parse_args()
    keep = 256 if arguments.mining else None
    strips, whole = PixelCrossEntropy(0.6 if keep else None, keep or 1), Whole(keep)
    whole.hybridize()
    for name, (images, classes, height, width, stride) in CASES.items():
        logits = nd.random.normal(shape=(images, classes, height // stride, width // stride))
        labels = nd.random.randint(-1, classes, shape=(images, height, width)).astype("float32")
        like = nd.zeros((1, 1, height, width))
        logits.attach_grad()
        times = [(seconds(whole, logits, labels, like), seconds(strips, logits, labels))
                 for _ in range(arguments.rounds + 1)][1:]
        before, after = (statistics.median(each) for each in zip(*times))
        print(f"{name}: {1e3 * before:.0f} ms whole, {1e3 * after:.0f} ms in strips, "
              f"{before / after:.2f} times as fast")


if __name__ == "__main__":
    main()

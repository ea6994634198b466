"""Times a detector stage by stage on one image, and one training step; prints peak memory.

    OMP_NUM_THREADS=1 python tests/detection_speed.py --size 800x1216
    OMP_NUM_THREADS=1 python tests/detection_speed.py --size 400x608 --training
"""
import argparse
import resource
import time

import numpy as np
from mxnet import autograd, nd

from gluon_resnest import get_model
from gluon_resnest.models.deform import set_deformable_form
from gluon_resnest.models.detection.inference import in_originals
from gluon_resnest.models.detection.targets import Objects
from gluon_resnest.models.resnest import initialize
from gluon_resnest.tasks.detection_evaluation import coco_results


class Clock:
    """Wall and own time of named pieces of work; the last of several rounds is shown."""

    def __init__(self, rounds):
        self._rounds, self.rows = rounds, []

    def __call__(self, name, work):
        for _ in range(self._rounds):
            wall, own = time.perf_counter(), time.process_time()
            outputs = work()
            nd.waitall()
            spent = time.perf_counter() - wall, time.process_time() - own
        self.rows.append((name, *spent))
        return outputs

    def show(self, title):
        total = sum(wall for _, wall, _ in self.rows)
        print(f"{title}: {total:.3f} s of wall time")
        for name, wall, own in self.rows:
            print(f"  {name:24s} {wall:8.3f} s {100 * wall / total:5.1f} %   own {own:8.3f} s")


def inference(net, images, clock):
    """Times what a detection consists of."""
    size = np.array([images.shape[2:]])
    maps = clock("backbone and pyramid", lambda: net.features(images))
    said = clock("RPN", lambda: net.rpn(*maps))
    rois, _ = clock("proposals", lambda: net.test_proposals(nd.array(size), *said))
    probabilities, boxes = clock("box heads", lambda: net._boxes(nd, rois, maps[:-1],
                                                                 nd.array(size)))
    found = clock("final NMS", lambda: net._detect(nd, probabilities, boxes))
    if len(net.mask_heads):
        found = (*found, clock("mask heads",
                               lambda: net._masks(nd, found[0], found[2], maps[:-1])))
    arrays = [each.asnumpy() for each in found]
    clock("results, masks coded", lambda: coco_results(
        in_originals(arrays, size, size)[0], 1, size[0], np.arange(1, len(net.classes) + 1)))
    clock.show("inference")


def training(net, images, clock):
    """Times one step without its update, on an image with ten objects.

    The backbone and the pyramid are timed alone, with a loss of their own; the rest is what the
    whole step takes longer.
    """
    set_deformable_form(net, "composed")
    height, width = images.shape[2:]
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, (width, height), (10, 2, 2)), axis=1).reshape(10, 4)
    objects = Objects(corners.astype(np.float32), np.arange(10),
                      np.ones((10, height, width), np.uint8))

    def maps():
        with autograd.record():
            total = sum(each.mean() for each in net.features(images))
        total.backward()

    def step():
        with autograd.record():
            losses = net.losses(images, np.array([[height, width]]), [objects],
                                [np.random.default_rng(0)])
            total = sum(loss.mean() for loss in losses.values())
        total.backward()

    clock("backbone and pyramid", maps)
    clock("RPN, heads, losses", step)
    (_, *first), (name, *both) = clock.rows
    clock.rows[1] = (name, *(whole - part for whole, part in zip(both, first)))
    clock.show("training, batch of one")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mask_rcnn_fpn_resnest50_coco", metavar="NAME")
    parser.add_argument("--size", default="800x1216", metavar="HxW", help="of the image")
    parser.add_argument("--rounds", type=int, default=2, metavar="N")
    parser.add_argument("--training", action="store_true", help="instead of inference")
    flags = parser.parse_args()
    net = get_model(flags.network)
    initialize(net)
    net.hybridize()
    images = nd.random.normal(shape=(1, 3, *map(int, flags.size.split("x"))))
    (training if flags.training else inference)(net, images, Clock(flags.rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
    print(f"peak memory of the process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()

"""Fits free logits of a coarse grid to label maps: the mIoU that no network of that stride exceeds.

    OMP_NUM_THREADS=1 python tests/resolution_limit.py ade20k_sample/annotations --px 400 --stride 4

The maps are resized as for training (longer side to --px), the fitted probabilities back to the
maps' own size, bilinearly; 0 counts as unlabelled, as in ADE20K.
"""
import argparse
from pathlib import Path

import numpy as np
from mxnet import autograd, gluon, nd
from PIL import Image

from gluon_resnest.data.segmentation_transforms import scaled_size

STEPS, RATE = 200, 0.3


def fitted(labels, stride):
    """Returns the bilinearly enlarged logits (1, K, H, W) fitted to labels (H, W) in 0..K-1."""
    height, width = labels.shape
    grid = gluon.Parameter("grid", shape=(1, int(labels.max()) + 1, -(-height // stride),
                                          -(-width // stride)), init="zeros")
    grid.initialize()
    trainer = gluon.Trainer({"grid": grid}, "adam", {"learning_rate": RATE}, kvstore=None)
    entropy, target = gluon.loss.SoftmaxCrossEntropyLoss(axis=1), nd.array(labels[None])

    def enlarged():
        return nd.contrib.BilinearResize2D(grid.data(), height=height, width=width)

    for _ in range(STEPS):
        with autograd.record():
            loss = entropy(enlarged(), target)
        loss.backward()
        trainer.step(1)
    return enlarged()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of label maps, *.png")
    parser.add_argument("--px", type=int, default=400, help="longer side (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=4, help="of the grid (default: %(default)s)")
    flags = parser.parse_args()
    hits, union = np.zeros(256), np.zeros(256)
    for file in sorted(flags.folder.glob("*.png")):
        image = Image.open(file)
        height, width = scaled_size(*image.size[::-1], flags.px)
        kinds, labels = np.unique(np.asarray(image.resize((width, height), Image.NEAREST)),
                                  return_inverse=True)
        logits = fitted(labels.reshape(height, width), flags.stride)
        truth = np.asarray(image)
        own = nd.contrib.BilinearResize2D(nd.softmax(logits, axis=1), height=truth.shape[0],
                                          width=truth.shape[1])
        found = kinds[own.argmax(axis=1).asnumpy()[0].astype(int)]
        for kind in range(1, 256):
            both = (found == kind) & (truth == kind)
            hits[kind] += both.sum()
            union[kind] += (((found == kind) | (truth == kind)) & (truth > 0)).sum()
    for kind in np.flatnonzero(union):
        print(f"{kind:4d}  {100 * hits[kind] / union[kind]:5.1f} %")
    print(f"mIoU {100 * np.mean(hits[union > 0] / union[union > 0]):.1f} %")


if __name__ == "__main__":
    main()

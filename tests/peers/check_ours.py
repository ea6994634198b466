"""Converts what `write_timm.py` wrote, compares logits, converts back: check_ours.py FOLDER.

Runs in the environment of the package. Exits with 1 if any file disagrees.
"""
import sys
from pathlib import Path

import mxnet as mx
import numpy as np

from gluon_resnest import zoo
from gluon_resnest.interop import checkpoints, convert
from gluon_resnest.interop.weights import load_parameters

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from numpy_resnest import ruled_image  # noqa: E402

SIZES = ((64, 96), (97, 65))
TOLERANCE = 1e-4


def main(folder):
    failed = False
    for golden in sorted(folder.glob("*.npz")):
        for ending in (".pth", "-old.pth", ".safetensors"):
            source = golden.stem + ending
            error, model = compare(folder / source, golden)
            failed |= not error <= TOLERANCE
            print(f"{source:32} {model:24} largest error / largest logit {error:.1e}")
    sys.exit(1 if failed else 0)


def compare(source, golden):
    """Converts one file there and back; returns the relative error of its logits and the model."""
    done = convert.to_gluon(checkpoints.read_weights(str(source)).tensors, file_name=source.name)
    converted = source.parent / "converted.params"
    checkpoints.write_weights(str(converted), convert.from_gluon(done.tensors, "gluon"), "params",
                              {})
    classes = len(done.tensors["fc.weight"])
    net = zoo.get_model(done.model, classes=classes)
    load_parameters(net, str(converted))
    net.hybridize()
    expected = np.load(golden)
    error = max(
        np.abs(net(mx.nd.array(ruled_image(*size)))[0].asnumpy() - logits).max()
        / np.abs(logits).max()
        for size, logits in zip(SIZES, (expected[name] for name in expected.files)))
    again = convert.to_gluon(checkpoints.read_weights(str(converted)).tensors, model=done.model)
    back = source.parent / f"{source.stem}.back{source.suffix}"
    container = "torch" if source.suffix == ".pth" else "safetensors"
    checkpoints.write_weights(str(back), convert.from_gluon(again.tensors, "torch"), container, {})
    return error, done.model


if __name__ == "__main__":
    main(Path(sys.argv[1]))

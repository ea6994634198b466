"""Compares our ONNX files in OpenVINO with the networks in MXNet: check_openvino.py FOLDER.

Exits with 1 if any answer differs by more than TOLERANCE of the largest.
"""
import sys
from pathlib import Path

import numpy as np
import openvino

TOLERANCE = 1e-4


def main(folder):
    failed = False
    for file in sorted(folder.glob("*.onnx")):
        model = openvino.Core().compile_model(str(file), "CPU")
        stored = np.load(file.with_suffix(".npz"))
        arrays = [stored[name] for name in stored.files]
        inputs, expected = arrays[:len(arrays) // 2], arrays[len(arrays) // 2:]
        error = max(np.abs(next(iter(model(x).values())) - y).max() / np.abs(y).max()
                    for x, y in zip(inputs, expected))
        failed |= not error <= TOLERANCE
        print(f"{file.stem:32} largest difference / largest output {error:.1e}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

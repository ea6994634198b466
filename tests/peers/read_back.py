"""Loads what `check_ours.py` converted back, with PyTorch and strictly: read_back.py FOLDER.

Exits with 1 unless timm's model takes every file and all its tensors are bit for bit the original.
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm_models import CLASSES, timm


def main(folder):
    failed = False
    for path in sorted(folder.glob("*.back.*")):
        name = path.name.split(".")[0].replace("-old", "")
        original = torch.load(folder / f"{name}.pth", weights_only=True)
        if path.suffix == ".pth":
            weights = torch.load(path, weights_only=True)
        else:
            weights = load_file(str(path))
        model = timm.create_model(name, num_classes=CLASSES)
        model.load_state_dict(weights)
        loaded = model.state_dict()
        equal = loaded.keys() == original.keys() and all(
            torch.equal(loaded[key], value) for key, value in original.items())
        failed |= not equal
        print(f"{path.name:48} {'bit for bit the original' if equal else 'DIFFERS'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

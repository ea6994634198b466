"""Writes timm's weight files and logits for `check_ours.py`: write_timm.py FOLDER [NAME...].

With --golden FILE instead of FOLDER: writes the golden logits of the test suite.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from timm_models import NAMES, SIZES, logits, ruled_model, with_published_dilation

GOLDEN = ("resnest14d", "resnest26d", "resnest50d_1s4x24d", "resnest50d_4s2x40d")


def main(argv):
    if argv[0] == "--golden":
        np.savez(argv[1], **golden())
        return
    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in argv[1:] or NAMES:
        model = ruled_model(name)
        weights = model.state_dict()
        torch.save(weights, folder / f"{name}.pth")
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}},
                   folder / f"{name}-old.pth", _use_new_zipfile_serialization=False)
        save_file(weights, str(folder / f"{name}.safetensors"))
        np.savez(folder / f"{name}.npz", *[logits(model, size) for size in SIZES])
        print(f"wrote {name}")


def golden():
    """Returns "name/HxW" to logits, and those of the dilated resnest14d before and after repair."""
    result = {}
    for name in GOLDEN:
        model = ruled_model(name)
        for size in SIZES:
            result[f"{name}/{size[0]}x{size[1]}"] = logits(model, size)
    dilated = ruled_model("resnest14d", output_stride=8)
    result["resnest14d-dilated/64x96"] = logits(dilated, SIZES[0])
    repaired = with_published_dilation(dilated)
    result["resnest14d-dilated-repaired/64x96"] = logits(repaired, SIZES[0])
    return result


if __name__ == "__main__":
    main(sys.argv[1:])

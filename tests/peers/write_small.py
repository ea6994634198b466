"""Writes the small files of the reader's tests with the real libraries: write_small.py FOLDER."""
import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def tensors():
    """Returns every kind of tensor: views into one storage, strides, other types, a scalar."""
    grid = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    return {"grid": grid, "transposed": grid.t(), "window": grid[1:3, 2:5],
            "half": (grid / 4).half(), "brain": grid.bfloat16(), "double": grid.double() / 3,
            "count": torch.tensor(7), "parameter": torch.nn.Parameter(grid + 1)}


def main(folder):
    named = tensors()
    wrapped = {"state_dict": named, "state_dict_ema": {"grid": named["grid"] * 2}, "epoch": 3,
               "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}, "param_groups": []}}
    torch.save(wrapped, folder / "torch_zip.pth")
    torch.save(wrapped, folder / "torch_old.pth", _use_new_zipfile_serialization=False)
    save_file({name: value.detach().clone().contiguous() for name, value in named.items()},
              str(folder / "torch.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

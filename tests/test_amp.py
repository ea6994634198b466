"""Laws of mixed precision on whole networks.

MXNet rewrites its operators for the whole process, so this file is also the program of a process
of its own: `python tests/test_amp.py types|train|others FILE`, `python tests/test_amp.py run
WORKDIR`.
"""
import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, nd

from gluon_resnest import cli, execution
from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.engine import amp
from gluon_resnest.engine.checkpoint import State, snapshot
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import UserError
from gluon_resnest.losses import Distillation, SoftCrossEntropy
from gluon_resnest.models.deform import set_deformable_form
from gluon_resnest.models.detection.roi_heads import MaskHead
from gluon_resnest.models.resnest import initialize
from gluon_resnest.tasks.classification import Classification
from gluon_resnest.zoo import get_model, pose_model, segmentation_model

NETWORKS = ("resnest_tiny", "resnest14", "resnest50_fast_4s2x40d", "resnet50d", "senet50",
            "sknet50")
RECIPE = ClassificationRecipe(
    network="resnest_tiny", source="a test", classes=5, epochs=3, batch=8, warmup_epochs=0.0,
    crop_px=32, eval_px=32, auto_augment="none", precision="bfloat16", lr=0.05)
RANDOM = dataclasses.replace(RECIPE, epochs=2, mixup_alpha=0.2, dropblock=0.1, ema_decay=0.8)
RUN = argparse.Namespace(data="synthetic", synthetic_steps=6, data_workers=0, device="cpu",
                         weights=None, eval_only=False, eval_batch=2, rec_train=None, rec_val=None,
                         workdir=None, teacher_weights=None)


needs_bfloat16 = pytest.mark.skipif(
    not amp.supported("bfloat16", mx.cpu()),
    reason="this CPU has no AVX-512, which bfloat16 needs")


def is_16_bits(dtype):
    return np.dtype(dtype).itemsize == 2


def types_of(name):
    """Returns {operator: [whether its output has 16 bits]} of a network and its loss."""
    net, loss = get_model(name, classes=5), SoftCrossEntropy()
    symbol = loss(net(mx.sym.var("data")), mx.sym.var("targets"))
    given, _, auxiliary = symbol.infer_type(data="float32", targets="float32")
    internals = symbol.get_internals()
    types = dict(zip(internals.list_outputs(),
                     internals.infer_type(data="float32", targets="float32")[1]))
    seen = {"parameters": sorted({is_16_bits(kind) for kind in given + auxiliary})}
    for node in json.loads(symbol.tojson())["nodes"]:
        if node["op"] in ("Convolution", "FullyConnected", "softmax", "log_softmax", "mean"):
            seen.setdefault(node["op"], set()).add(is_16_bits(types[node["name"] + "_output"]))
    return {operator: sorted(kinds) for operator, kinds in seen.items()}


def gradient_norm(net, shape):
    """Returns the size of the gradients of a hybridized network's outputs, a finite number."""
    initialize(net)
    net.hybridize(static_alloc=True)
    with autograd.record():
        outputs = net(nd.random.uniform(shape=shape))
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        loss = sum(each.astype("float32").square().mean() for each in outputs)
    loss.backward()
    return float(sum(parameter.grad().square().sum() for parameter in net.collect_params().values()
                     if parameter.grad_req != "null").asscalar())


def others():
    """Returns {kind: size of its gradients} of networks that are no plain classifiers."""
    deformable = get_model("resnest_tiny", classes=5, deform_stages=(3,))
    set_deformable_form(deformable, "composed")
    found = {"deformable": gradient_norm(deformable, (2, 3, 40, 48)),
             "pose": gradient_norm(pose_model("resnest_tiny"), (2, 3, 64, 32)),
             "masks": gradient_norm(MaskHead(8, 3, convs=1, channels=8), (4, 8, 7, 7))}
    for head in ("deeplab", "deeplabplus", "psp"):
        net = segmentation_model(f"{head}_resnest_tiny", 5, head_channels=8)
        found[head] = gradient_norm(net.before_enlarging(), (2, 3, 41, 50))
    return found


def program(job, file):
    if job == "types":
        mx.contrib.amp.init("bfloat16")              # types need no processor that computes in it
        result = {name: types_of(name) for name in NETWORKS}
    elif job == "run":
        recipe, run = cli.parse({"tiny": RANDOM}, Classification, [
            "--workdir", file, "--data", "synthetic", "--synthetic-steps", "4", "--save-every", "1",
            "--keep", "99", "--data-workers", "0"])
        execution.train(recipe, run, Classification, Comm())
        return
    elif job == "others":
        amp.enable("bfloat16", mx.cpu())
        result = others()
    else:
        task = Classification(RECIPE, RUN, Comm())
        losses = [float(task.update.step(task.losses, batch, 0.05)["loss"].asscalar())
                  for batch, _ in zip(task.batches(0), range(12))]
        taken = snapshot(task.net, task.update, State())
        try:
            amp.enable("float16", mx.cpu())
            refusal = None
        except UserError as error:
            refusal = str(error)
        result = {"losses": losses, "images": task.evaluate()["images"], "refusal": refusal,
                  "kinds": sorted({array.dtype.name for array in taken.model.values()})}
    Path(file).write_text(json.dumps(result))


def started(job, tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    subprocess.run([sys.executable, __file__, job, str(tmp_path / "result")], check=True,
                   env=environ, timeout=240)
    return json.loads((tmp_path / "result").read_text())


def trained(workdir):
    """Trains RANDOM, or goes on, in a process of its own; returns its last checkpoint's bits."""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    subprocess.run([sys.executable, __file__, "run", str(workdir)], check=True, env=environ,
                   timeout=240)
    found = Checkpoints(workdir / "checkpoints").latest()
    assert found.state.step == 8
    return found.numbers, {name: array.tobytes() for part in (found.model, found.arrays)
                           for name, array in part.items()}


def test_products_have_16_bits_and_softmax_and_parameters_32(tmp_path):
    for name, seen in started("types", tmp_path).items():
        assert seen["parameters"] == [False], name
        assert seen["Convolution"] == seen["FullyConnected"] == [True], name
        assert seen["log_softmax"] == seen["mean"] == [False], name
        assert seen.get("softmax", [False]) == [False], name


@needs_bfloat16
def test_a_whole_network_trains_in_bfloat16(tmp_path):
    seen = started("train", tmp_path)
    assert np.isfinite(seen["losses"]).all()
    assert np.mean(seen["losses"][-3:]) < np.mean(seen["losses"][:3])
    assert seen["kinds"] == ["float32"]
    assert seen["images"] == 6
    assert "already computes in bfloat16" in seen["refusal"]


@needs_bfloat16
def test_networks_with_deconvolutions_joined_maps_and_deformable_convolutions_learn(tmp_path):
    for kind, size in started("others", tmp_path).items():
        assert 0 < size < np.inf, kind


@needs_bfloat16
def test_a_resumed_run_in_bfloat16_equals_the_undisturbed_bit_for_bit(tmp_path):
    """In the middle and at the end of an epoch, with mixup, DropBlock and a moving average."""
    expected = trained(tmp_path / "whole")
    for step in (3, 4):
        folder = f"checkpoints/step-{step:08d}"
        shutil.copytree(tmp_path / "whole" / folder, tmp_path / str(step) / folder)
        shutil.copy(tmp_path / "whole/config.json", tmp_path / str(step))
        assert trained(tmp_path / str(step)) == expected, step


def test_float32_changes_nothing():
    before = mx.nd.Convolution
    amp.enable("float32", mx.cpu())
    assert mx.nd.Convolution is before


@pytest.mark.skipif(amp.supported("bfloat16", mx.cpu()), reason="this CPU has AVX-512")
def test_a_cpu_without_bfloat16_is_a_sentence():
    with pytest.raises(UserError, match=r"cpu\(0\) cannot compute in bfloat16: CPUs take bfloat16 "
                       "if they have AVX-512, never float16; use --precision float32"):
        Classification(RECIPE, RUN, Comm())


def test_a_probe_leaves_the_process_sound():
    amp.supported("bfloat16", mx.cpu())
    assert not amp.supported("float16", mx.cpu())
    loss = Distillation(2.0, 0.5)(nd.ones((2, 3)), nd.ones((2, 3)) / 3, nd.ones((2, 3)))
    nd.waitall()
    assert np.isfinite(loss.asscalar())


if __name__ == "__main__":
    program(*sys.argv[1:])

"""A resumed training of a network equals the uninterrupted one, bit for bit, whatever is random.

Mixup, AutoAugment and DropBlock are on; tests/test_loop.py has the same law for all of the state.
"""
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from horovod_job import launch

from gluon_resnest import cli, execution
from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.data.recordio import RecordWriter
from gluon_resnest.engine.checkpoint import read
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.tasks.classification import Classification

ROOT = Path(__file__).resolve().parents[1]
STEPS_PER_EPOCH, EPOCHS, BATCH = 4, 3, 6
RECIPE = ClassificationRecipe(
    network="resnest_tiny", source="a test", classes=3, epochs=EPOCHS, batch=BATCH, base_lr=2.0,
    warmup_epochs=1.0, crop_px=32, eval_px=32, auto_augment="authors", mixup_alpha=0.2,
    dropblock=0.1, ema_decay=0.8, eval_every=2)
SAVES = ("--save-every", 1, "--keep", 99)


def train(workdir, rec, *flags, recipe=RECIPE, comm=None, stop_epoch=None):
    """Trains in `workdir`."""
    words = ["--workdir", workdir, "--rec-train", rec, "--rec-val", rec, "--log-every", 1,
             "--data-workers", 0, *flags]
    recipe, run = cli.parse({"tiny": recipe}, Classification, [str(word) for word in words])
    execution.train(recipe, run, Classification, comm or Comm(), stop_epoch=stop_epoch)


@pytest.fixture(scope="module")
def rec(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "some.rec"
    with RecordWriter(path) as writer:
        for number in range(STEPS_PER_EPOCH * BATCH - 3):       # the last batch is filled up
            image = np.random.RandomState(number).randint(0, 60, (40, 52, 3), np.uint8)
            image[..., number % 3] += 150
            writer.write(number % 3, cv2.imencode(".jpg", image)[1].tobytes())
    return path


def bits(workdir, step=None):
    """Returns what a checkpoint holds, without the clock."""
    checkpoints = Checkpoints(Path(workdir) / "checkpoints")
    found = read(checkpoints.path(step)) if step else checkpoints.latest()
    arrays = {name: array.tobytes() for part in (found.model, found.arrays)
              for name, array in part.items()}
    return dataclasses.replace(found.state, seconds=0.0), found.numbers, arrays


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, rec):
    workdir = tmp_path_factory.mktemp("undisturbed")
    train(workdir, rec, *SAVES)
    return workdir


@pytest.mark.parametrize("step, data_workers", [(1, 1), (6, 2), (8, 0), (11, 1)])
def test_resume_at_a_step_equals_the_uninterrupted_run(step, data_workers, undisturbed, rec,
                                                       tmp_path):
    """In the first, a middle and the last epoch; with 0, 1 and 2 loader processes."""
    shutil.copytree(undisturbed / "checkpoints" / f"step-{step:08d}",
                    tmp_path / f"checkpoints/step-{step:08d}")
    shutil.copy(undisturbed / "config.json", tmp_path)
    train(tmp_path, rec, *SAVES, "--data-workers", data_workers)
    for later in range(step + 1, STEPS_PER_EPOCH * EPOCHS + 1):
        assert bits(tmp_path, later) == bits(undisturbed, later), later


def test_everything_random_is_on(undisturbed, rec, tmp_path):
    """Else the law above would say little: leaving one out changes the parameters."""
    for name, off in (("auto_augment", "none"), ("mixup_alpha", 0.0), ("dropblock", 0.0)):
        recipe = dataclasses.replace(RECIPE, **{name: off})
        train(tmp_path / name, rec, recipe=recipe, stop_epoch=1)
        assert bits(tmp_path / name)[2] != bits(undisturbed, STEPS_PER_EPOCH)[2], name


SUPERVISED = ["-m", "gluon_resnest.engine.supervise", "-np", "2", "--"]


def start(workdir, rec, before=()):
    """Starts a long training in a process of its own; `before`: words in front of the recipe."""
    words = ["--network", "resnest_tiny", "--classes", "3", "--crop-px", "32", "--eval-px", "32",
             "--batch", str(BATCH), "--epochs", "500", "--lr", "0.05", "--eval-every", "500",
             "--data-workers", "1", "--expect-top1", "none", "--rec-train", str(rec), "--rec-val",
             str(rec), "--workdir", str(workdir)]
    process = subprocess.Popen(
        [sys.executable, *before, str(ROOT / "recipes/imagenet.py"), *words], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 120
    while not list(workdir.glob("checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_a_saved_step_and_a_sentence(number, rec, tmp_path):
    with start(tmp_path, rec) as process:
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = Checkpoints(tmp_path / "checkpoints").latest().state.step
    assert f"stopped by {number.name} after step {step}; the same command continues" in output
    assert "Traceback" not in output


@pytest.mark.horovod
def test_two_supervised_workers_stop_after_the_same_saved_step(rec, tmp_path):
    with start(tmp_path, rec, SUPERVISED) as process:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    state = Checkpoints(tmp_path / "checkpoints").latest().state
    assert state.workers == 2
    assert f"stopped by SIGTERM after step {state.step}; the same command continues" in output
    assert output.rstrip().endswith("stopped by SIGTERM; the same command continues")


def worker(folder):
    """One of three workers: trains twice deterministically; says whether the bits are equal."""
    folder = Path(folder)
    os.environ.update({name: value for name, (value, _) in cli.DETERMINISTIC_ENVIRONMENT.items()})
    comm = connect()
    for name in ("first", "second"):
        train(folder / name, folder / "some.rec", comm=comm)
    (folder / f"{comm.rank}.json").write_text(json.dumps("done"))
    comm.shutdown()


@pytest.mark.horovod
def test_three_workers_are_deterministic(rec, tmp_path):
    shutil.copy(rec, tmp_path / "some.rec")
    shutil.copy(rec.with_suffix(".idx"), tmp_path / "some.idx")
    code, output, _ = launch(3, __file__, tmp_path)
    assert code == 0, output
    assert bits(tmp_path / "first") == bits(tmp_path / "second")


if __name__ == "__main__":
    worker(sys.argv[1])

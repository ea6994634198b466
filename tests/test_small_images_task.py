"""The CIFAR-10 recipes: the report's rows as data, trained on images in memory."""
import argparse
import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from gluon_resnest import cli, execution, zoo
from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.data import cifar10
from gluon_resnest.data.in_memory import Images
from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import UserError
from gluon_resnest.interop.analysis import analyze
from gluon_resnest.tasks.small_images import SmallImages

SPEC = importlib.util.spec_from_file_location(
    "recipe_cifar10", Path(__file__).resolve().parents[1] / "recipes/cifar10.py")
cifar10_recipe = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cifar10_recipe)
RECIPES = cifar10_recipe.RECIPES
ROWS = {**cifar10_recipe.TABLE_1, **cifar10_recipe.TABLE_2}

TINY = dataclasses.replace(RECIPES["resnest14_2s1x64d"], network="resnest_tiny", classes=3,
                           batch=4, epochs=2)
RUN = argparse.Namespace(data="cifar", synthetic_steps=3, data_workers=0, device="cpu",
                         weights=None, eval_only=False, eval_batch=4, workdir=None,
                         teacher_weights=None)


@pytest.fixture
def parts(monkeypatch):
    """Stands for the files: 12 training images of 3 classes, 6 for the test."""
    random = np.random.RandomState(0)
    sets = {part: Images(random.randint(0, 256, (count, 32, 32, 3)).astype("uint8"),
                         np.arange(count) % 3, ("bird", "cat", "ship"))
            for part, count in (("train", 12), ("test", 6))}
    monkeypatch.setattr(cifar10, "read", lambda path: sets)
    return sets


def make_task(recipe=TINY, **run):
    return SmallImages(recipe, argparse.Namespace(**{**vars(RUN), **run}), Comm())


@pytest.mark.parametrize("entry", ROWS)
def test_parameters_are_the_reported_ones(entry):
    network, reported, accuracy = ROWS[entry]
    params = analyze(zoo.get_model(network, classes=10), size=(32, 32)).total().params
    # The report's 8.03 M of ResNet-14 is 8.036 M here: one digit of rounding.
    assert params / 1e6 == pytest.approx(reported, abs=0.0065)
    assert RECIPES[entry].network == network and RECIPES[entry].expected == accuracy


def test_settings_are_the_reported_ones():
    for entry in ROWS:
        recipe = RECIPES[entry]
        assert (recipe.batch, recipe.epochs, recipe.wd, recipe.momentum, recipe.final_drop) == (
            256, 20, 1e-4, 0.9, 0.2)
        assert (recipe.optimizer, recipe.crop_rule, recipe.flip, recipe.crop_px) == (
            "sgd", "whole", False, 32)
        assert "assumed" in recipe.source


def test_the_small_stem_keeps_twice_the_resolution():
    nets = [zoo.get_model(name, classes=10) for name in ("cifar_resnest14", "resnest14_2s1x64d")]
    maps = []
    for net in nets:
        net.initialize()
        maps.append([c.shape[2] for c in net.features(cli_images())])
    assert maps == [[16, 8, 4, 2], [8, 4, 2, 1]]
    assert nets[0].feature_strides == (2, 4, 8, 16)


def cli_images():
    import mxnet as mx
    return mx.nd.zeros((1, 3, 32, 32))


def test_a_constant_schedule_is_constant(parts):
    task = make_task()
    assert {task.lr_at(step) for step in range(1, 7)} == {TINY.lr}


def test_batches_are_the_images_in_memory(parts):
    task = make_task()
    images, targets = next(task.batches(0))
    indices = task._train._plan.indices(0, 0)
    np.testing.assert_array_equal(targets.asnumpy().argmax(1), parts["train"].labels[indices])
    assert images.shape == (4, 3, 32, 32) and task.class_names == ("bird", "cat", "ship")
    assert task.evaluate()["images"] == 6


def test_held_out_images_are_evaluated_and_never_trained_on(parts):
    task = make_task(dataclasses.replace(TINY, hold_out=3))
    train, held = task._train.dataset, task._val.dataset
    assert len(train) == 9 and sorted(held.labels) == [0, 1, 2]
    rows = [image.tobytes() for image in (*train.pixels, *held.pixels)]
    assert sorted(rows) == sorted(image.tobytes() for image in parts["train"].pixels)


def test_augmentation_is_what_the_recipe_says(parts):
    assert make_task()._train._augment is None
    stronger = dataclasses.replace(TINY, crop_rule="pad", flip=True)
    assert tuple(vars(make_task(stronger)._train._augment).values()) == (4, True)


@pytest.mark.parametrize("changes, message", [
    ({"jitter": 0.4}, r"jitter \(=0.4\) is not offered for images in memory"),
    ({"auto_augment": "authors"}, "auto_augment"),
    ({"eval_protocol": "gluon"}, r"eval_protocol \(=gluon\) is not offered .* set it to whole"),
    ({"crop_rule": "gluon"}, "take pad or whole"),
    ({"crop_px": 224}, "crop_px .* for --plan only")])
def test_what_images_in_memory_do_not_get_is_refused(parts, changes, message):
    with pytest.raises(UserError, match=message):
        make_task(dataclasses.replace(TINY, **changes))


def test_a_path_is_needed(parts):
    with pytest.raises(UserError, match="--data PATH is missing"):
        make_task(data=None)


def test_a_run_says_its_parameters_and_goes_on(parts, tmp_path):
    words = ["--model", "tiny", "--data", "cifar", "--workdir", str(tmp_path), "--seed", "3"]
    recipe, run = cli.parse({"tiny": TINY}, SmallImages, words)
    result = execution.execute(recipe, run, SmallImages)
    net = zoo.get_model("resnest_tiny", classes=3)
    assert result["parameters"] == analyze(net, size=(32, 32)).total().params
    assert result["measured"]["images"] == 6 and result["images_per_second"] > 0
    assert execution.execute(recipe, run, SmallImages)["measured"] == result["measured"]


def test_the_full_resolution_preset_is_planned():
    recipe, run = cli.parse(RECIPES, SmallImages, [
        "--model", "resnest14@224", "--plan", "images=50000,workers=8,images_per_second=250"])
    assert "20 epochs x 196 steps" in execution.plan(recipe, run, SmallImages)


def test_every_entry_is_a_recipe_of_a_network():
    for entry, recipe in RECIPES.items():
        assert isinstance(recipe, ClassificationRecipe) and zoo.variant(recipe.network), entry

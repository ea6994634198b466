import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from mxnet import nd
from PIL import Image

from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.data.detection import stack
from gluon_resnest.data.detection_transforms import MEAN, STD, EvalTransform
from gluon_resnest.interop import batch_drawing
from gluon_resnest.interop.batch_drawing import (
    class_panels, draw_batch, joint_panels, object_panels, pixel_panels, to_pixels)
from gluon_resnest.models.detection.targets import Objects
from gluon_resnest.models.simple_pose import encode

ROOT = Path(__file__).resolve().parents[1]


class Recipe:
    classes, conventions = 3, "detectron2"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("show_batch", ROOT / "tools/show_batch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(height=20, width=28):
    return np.random.randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_pixels_come_back_from_the_normalised_batch():
    image = picture()
    batch, _ = stack([image], EvalTransform(), 1)
    np.testing.assert_array_equal(to_pixels(batch, MEAN, STD)[0], image)


def test_classes_are_named_with_their_shares():
    targets = nd.array([[0.25, 0.01, 0.74], [0, 1, 0]])
    panels = class_panels(None, (nd.zeros((2, 3, 4, 5)), targets), ["cat", "dog", "cow"], 8)
    assert [panel.title for panel in panels] == ["74 % cow\n25 % cat", "100 % dog"]
    assert panels[0].image.shape == (4, 5, 3)
    nameless = class_panels(None, (nd.zeros((2, 3, 4, 5)), targets), None, 1)
    assert [panel.title for panel in nameless] == ["74 % class 2\n25 % class 0"]


def test_unlabelled_pixels_are_not_tinted():
    labels = np.array([[-1, -1, 0], [2, 2, 1]])
    panel, = pixel_panels(Recipe, (nd.zeros((1, 3, 2, 3)), nd.array(labels[None])), None, 8)
    plain = panel.image[0, 0]
    assert panel.title == "67 % labelled"
    assert (panel.image[labels == -1] == plain).all()
    colours = {tuple(panel.image[labels == number][0]) for number in (0, 1, 2)}
    assert len(colours) == 3 and tuple(plain) not in colours


def test_joints_are_where_the_maps_are_highest():
    joints = np.zeros((1, 17, 3), np.float32)
    joints[0, :2] = [(20, 36, 2), (45, 8, 1)]
    maps, weights = encode(nd.array(joints), 16, 16, 2.0)
    panel, = joint_panels(None, (nd.zeros((1, 3, 64, 64)), maps, weights), None, 8)
    assert panel.title == "2 joints"
    drawn = []

    class Axes:
        @staticmethod
        def scatter(x, y, **_):
            drawn.extend(zip(x, y))

        @staticmethod
        def plot(*_, **__):
            pass

    panel.paint(Axes)
    np.testing.assert_allclose(drawn, joints[0, :2, :2], atol=3)


def test_masks_tint_their_objects_and_padding_is_white():
    images, sizes = stack([np.full((20, 28, 3), 120, np.uint8)], EvalTransform(), 32)
    mask = np.zeros((1, 20, 28), np.uint8)
    mask[0, 4:9, 5:12] = 1
    objects = Objects(np.array([[5, 4, 12, 9]], np.float32), np.array([1]), mask,
                      np.array([False]))
    panel, = object_panels(Recipe, (nd.array(images), sizes, [objects], None), ["a", "b", "c"], 8)
    assert panel.title == "20 x 28, 1 object" and panel.image.shape == (32, 32, 3)
    assert (panel.image[20:] == 255).all() and (panel.image[:, 28:] == 255).all()
    tinted = (panel.image[:20, :28] != 120).any(axis=2)
    np.testing.assert_array_equal(tinted, mask[0].astype(bool))


def test_the_picture_shows_as_many_images_as_wanted(tmp_path):
    batch = nd.zeros((5, 3, 8, 8)), nd.ones((5, 2)) / 2
    assert draw_batch(tmp_path / "a.png", ClassificationRecipe("resnest14", source=""), batch,
                      most=3) == 3
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size[0] == 3 * drawn.size[1] > 900


@pytest.mark.parametrize("words", [
    ["imagenet", "--model", "resnest14", "--classes", "3", "--crop-px", "32", "--eval-px", "32"],
    ["deeplabv3", "--model", "shapes"],
    ["simple_pose", "--network", "resnest14", "--height", "64", "--width", "64"],
    ["mask_rcnn", "--model", "shapes"],
])
def test_every_kind_of_recipe_is_drawn(tool, tmp_path, capsys, words):
    target = tmp_path / "batch.png"
    tool.main(words + ["--data", "synthetic", "--synthetic-steps", "2", "--data-workers", "0",
                       "--save", str(target), "--pictures", "4", "--step", "1"])
    assert capsys.readouterr().out == f"drew 4 pictures of step 1 in {target}\n"
    with Image.open(target) as drawn:
        assert len(np.unique(np.asarray(drawn))) > 50


def test_a_batch_that_is_given_stays(tool, capsys, monkeypatch):
    monkeypatch.setattr(batch_drawing, "draw_batch", lambda file, recipe, *_, **__: recipe.batch)
    words = ["imagenet", "--model", "resnest14", "--crop-px", "32", "--data", "synthetic",
             "--synthetic-steps", "2", "--data-workers", "0", "--pictures", "4"]
    for given, drawn in (([], 4), (["--batch=5"], 5)):
        tool.main(words + given)
        assert capsys.readouterr().out.startswith(f"drew {drawn} pictures")


@pytest.mark.parametrize("words, message", [
    (["mask_rcn"], "recipe must be one of .* did you mean 'mask_rcnn'"),
    (["imagenet", "--save", "a.txt"], "expected a name ending in .png"),
    (["imagenet", "--step", "-1"], "expected a step from 0 on"),
    (["imagenet", "--pictures", "99"], "1 to 24 pictures"),
    (["mask_rcnn"], "--root DIR is missing"),
    (["imagenet", "--eval-only"], "--eval-only is not training, whose batches are drawn; leave"),
    (["imagenet", "--smoke"], "--smoke is not training"),
    (["imagenet", "--test-io", "3"], "--test-io is not training"),
    (["imagenet", "--plan", "workers=2"], "--plan is not training"),
])
def test_mistakes_end_with_one_sentence(tool, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        tool.main(words)
    assert re.search(message, capsys.readouterr().err)


def test_help_teaches(tool, capsys):
    with pytest.raises(SystemExit, match="0"):
        tool.main(["--help"])
    text = capsys.readouterr().out
    assert "python tools/show_batch.py mask_rcnn --root coco" in text and "simple_pose" in text

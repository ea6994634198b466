"""What all drawings share: names stand in them as they are, and pictures may be left out."""
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mxnet import nd

from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.errors import UserError
from gluon_resnest.interop import batch_drawing, detection, panoptic, pose, segmentation
from gluon_resnest.interop.detection_drawing import draw_detected
from gluon_resnest.interop.drawing import draw_answers, literal
from gluon_resnest.interop.evaluation_drawing import Mistake, draw_confusion, draw_mistakes
from gluon_resnest.interop.explanation_drawing import draw_explanations
from gluon_resnest.interop.panoptic_drawing import draw_segments
from gluon_resnest.interop.pose_drawing import draw_poses
from gluon_resnest.interop.predictor import Answer, Guess
from gluon_resnest.interop.segmentation_drawing import draw_labelled
from gluon_resnest.models.detection.merging import Segment
from gluon_resnest.models.detection.targets import Objects
from gluon_resnest.tasks.comparison import Run, draw_comparison

ODD = "a$_$b^{"         # half a formula, which matplotlib cannot draw
LABELS = np.zeros((20, 28), np.int32)
FOUND = detection.Found(np.array([[4, 4, 20, 16]], np.float32), np.array([0]),
                        np.array([0.9], np.float32), None)
JOINTS = np.random.RandomState(0).uniform(2, 18, (1, 17, 3))


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / f"{ODD}.png"
    noise = np.random.RandomState(0).randint(0, 256, (20, 28, 3), np.uint8)
    file.write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    return file


def explained(title):
    return (title, np.zeros((8, 8, 3), "uint8"), np.array([[1.0, -1.0], [0.0, 2.0]]),
            {"layer1": np.array([[0.2, 0.8], [0.8, 0.2]])})


def draw_panels(path, panels):
    batch_drawing._draw(path, panels)


def recipe(**fields):
    return SimpleNamespace(conventions="detectron2", **fields)


IMAGES = nd.zeros((1, 3, 20, 28))
OBJECTS = Objects(np.array([[5, 4, 12, 9]], np.float32), np.array([0]), None, np.array([False]))

DRAWINGS = {
    "classes": lambda path, photo: draw_answers(path, [Answer(photo, (Guess(0, ODD, 0.9),))]),
    "evidence": lambda path, photo: draw_explanations(path, [explained(f"{photo.name}\n{ODD}")]),
    "confusion": lambda path, photo: draw_confusion(path, np.eye(2, dtype=int), [ODD, "b"]),
    "mistakes": lambda path, photo: draw_mistakes(path, [Mistake(str(photo), ODD, "b", 0.5)]),
    "objects": lambda path, photo: draw_detected(
        path, [detection.Detected(photo, (20, 28), FOUND)],
        detection.DetectionCard("faster", 1, class_names=(ODD,))),
    "labels": lambda path, photo: draw_labelled(
        path, [segmentation.Labelled(photo, LABELS)],
        segmentation.SegmentationCard("deeplab", 1, class_names=(ODD,))),
    "segments": lambda path, photo: draw_segments(
        path, [panoptic.Merged(photo, LABELS + 1, [Segment(1, False, 0, 560, None)])],
        panoptic.PanopticCard("panoptic", 1, 1, class_names=("b", ODD))),
    "runs": lambda path, photo: draw_comparison(
        path, [Run(ODD, "a", [{"epoch": 1.0, "losses": {"loss": 1.0}}], [], {})], []),
    "batch of classes": lambda path, photo: batch_drawing.draw_batch(
        path, ClassificationRecipe("resnest14", source=""), (IMAGES, nd.ones((1, 1))), names=[ODD]),
    "batch of pixels": lambda path, photo: draw_panels(path, batch_drawing.pixel_panels(
        recipe(classes=1), (IMAGES, nd.array(LABELS[None])), [ODD], 1)),
    "batch of objects": lambda path, photo: draw_panels(path, batch_drawing.object_panels(
        recipe(classes=1), (IMAGES, [(20, 28)], [OBJECTS]), [ODD], 1)),
    "batch of segments": lambda path, photo: draw_panels(path, batch_drawing.segment_panels(
        recipe(classes=1, stuff=1), (IMAGES, [(20, 28)], [OBJECTS], None, LABELS[None] + 1),
        ["b", ODD], 1))}


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_any_name_can_be_drawn(drawing, photo, tmp_path):
    path = tmp_path / "drawn.png"
    DRAWINGS[drawing](path, photo)
    assert cv2.imread(str(path)) is not None


@pytest.mark.parametrize("name", [ODD, "$5_$", "$x^2$", "1 $", r"a\$b$", r"\frac$1$", "plain"])
def test_names_are_drawn_as_they_are(name):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    drawn = []
    for text, options in ((name, {"parse_math": False}), (literal(name), {})):
        canvas = FigureCanvasAgg(Figure(figsize=(2, 1)))
        canvas.figure.text(0.1, 0.5, text, **options)
        canvas.draw()
        drawn.append(np.asarray(canvas.buffer_rgba()).copy())
    assert (drawn[0] == drawn[1]).all() and (drawn[0] < 255).any()


def test_no_image_to_explain_is_said(tmp_path):
    with pytest.raises(UserError, match="nothing to draw in .*: no image could be classified"):
        draw_explanations(tmp_path / "x.png", [])


def colours(path):
    drawn = cv2.imread(str(path)).reshape(-1, 3)
    return len(np.unique(drawn, axis=0))


@pytest.mark.parametrize("draw", [
    lambda path, photo, opacity: draw_explanations(
        path, [(*explained("a")[:1], cv2.imread(str(photo)), *explained("a")[2:])], opacity),
    lambda path, photo, opacity: draw_poses(
        path, [pose.PoseAnswer(photo, np.array([[1.0, 1, 18, 18]]), JOINTS)],
        pose.PoseCard("simple_pose_resnest14"), opacity)], ids=["evidence", "joints"])
def test_full_opacity_leaves_the_picture_itself_out(tmp_path, photo, draw):
    counts = []
    for opacity in (0.5, 1):
        draw(tmp_path / "x.png", photo, opacity)
        counts.append(colours(tmp_path / "x.png"))
    assert counts[1] < 0.7 * counts[0]
    with pytest.raises(UserError, match="must be within 0..1, got 2"):
        draw(tmp_path / "x.png", photo, 2)

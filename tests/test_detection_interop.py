"""Exported detectors: the files repeat the network at any size and batch; objects are drawn."""
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mxnet import nd
from test_detection_task import RECIPE, set_parameters

from gluon_resnest.engine.checkpoint import State
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError
from gluon_resnest.interop import deployed, detection
from gluon_resnest.interop.export import export_network
from gluon_resnest.models.resnest import initialize
from gluon_resnest.tasks.detector import build_detector

ROOT = Path(__file__).resolve().parents[1]
CASCADE = dataclasses.replace(
    RECIPE, network="cascade_mask_rcnn_fpn_resnest_tiny_dcn_coco", conventions="mmdetection")
FASTER = dataclasses.replace(
    RECIPE, network="faster_rcnn_fpn_resnest_tiny_coco", conventions="gluoncv")
NAMES = ("cat", "dog")


def network(recipe):
    net = build_detector(recipe, class_names=NAMES)
    initialize(net)
    set_parameters(net)
    return net


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    net = network(RECIPE)
    prefix = tmp_path_factory.mktemp("export") / "mask"
    card = detection.card_of(net, RECIPE.network, short_px=96, max_px=128, class_names=NAMES)
    return net, prefix, export_network(net, prefix, card)


@pytest.mark.parametrize("recipe", [CASCADE, FASTER], ids=["cascade", "faster"])
def test_every_form_is_exported_and_found_equal(recipe, tmp_path):
    net = network(recipe)
    card = export_network(net, tmp_path / "x", detection.card_of(net, recipe.network))
    assert detection.read_card(tmp_path / "x") == card and len(card.sha256["params"]) == 64


def test_the_card_counts_the_rows_that_the_network_returns(tmp_path):
    net = network(FASTER)
    net.set_nms(post_nms=3)
    assert detection.card_of(net, FASTER.network).detections == 3
    net.set_nms(nms_topk=2)
    card = export_network(net, tmp_path / "x", detection.card_of(net, FASTER.network))
    assert card.detections == 2
    with pytest.raises(UserError, match="do not make a detector: for one image the output has"):
        deployed.load_pair(tmp_path / "x", dataclasses.replace(card, detections=3))


@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (3, 3, 80, 64)], ids=str)
def test_the_files_compute_what_the_network_does_at_any_size_and_batch(exported, shape):
    net, prefix, card = exported
    images = nd.random.normal(shape=shape)
    block = deployed.load_pair(prefix, card)
    for ours, theirs in zip(block(images), net(images)):
        assert ours.shape[0] == shape[0]
        np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), atol=1e-4)
    assert (block(images)[0].asnumpy() >= 0).any()


@pytest.mark.parametrize("change, field", [
    ({"classes": 0}, "classes"), ({"mask_px": -1}, "mask_px"), ({"max_px": 8}, "max_px"),
    ({"resize": "x"}, "resize"), ({"std": [1, 0, 1]}, "std"),
    ({"class_names": ["a"]}, "class_names")])
def test_cards_that_cannot_be_true_are_refused(exported, change, field):
    with pytest.raises(UserError, match=f"the card says {field}="):
        dataclasses.replace(exported[2], **change).check("the card")


def test_files_that_are_no_detectors_cards_are_refused(exported, tmp_path):
    values = json.loads(deployed.paths(exported[1])[2].read_text())
    for change, sentence in (({"task": "pose"}, "is not the card of a detector"),
                             ({"mean": 5}, "must hold mean, std as lists")):
        (tmp_path / "x.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(UserError, match=sentence):
            detection.read_card(tmp_path / "x")


def test_objects_are_in_pixels_of_the_image(exported):
    """The same picture at twice the size has the same objects at twice the places."""
    net, _, card = exported
    predictor = detection.DetectionPredictor(net, card, threshold=0.0)
    small = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    large = cv2.resize(small, (256, 192), interpolation=cv2.INTER_NEAREST)
    one, other = predictor.predict(small), predictor.predict(large)
    assert len(one.scores) and one.masks.shape[1:] == (28, 28)
    for found, (height, width) in ((one, (48, 64)), (other, (192, 256))):
        assert (found.boxes >= 0).all() and (found.boxes[:, 2:] <= (width, height)).all()
        assert (np.diff(found.scores) <= 0).all()
    assert other.boxes[:, 2:].max() > 64


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_is_exported_and_its_objects_are_told_and_drawn(tmp_path, capsys):
    net = network(RECIPE)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(
        {"kind": "DetectionRecipe", "recipe": RECIPE.to_json()}))
    (run / "classes.txt").write_text("cat\ndog\n")
    trainer = Comm().trainer(net.collect_params(), optimizer("sgd", wd=0))
    Checkpoints(run / "checkpoints").save(net, Update(trainer, net), State(step=1))
    tool("export_model").main([str(run), "--out", str(tmp_path / "out")])
    assert "2 classes, images of any size" in capsys.readouterr().out
    assert detection.read_card(tmp_path / "out").class_names == NAMES
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    cv2.imwrite(str(pictures / "a.png"), image)
    words = [str(tmp_path / "out"), str(pictures), "--threshold", "0.1"]
    tool("predict").main([*words, "--json", "--save", str(tmp_path / "drawn.png")])
    answer, = json.loads(capsys.readouterr().out)
    assert answer["problem"] is None and answer["objects"]
    assert {each["name"] for each in answer["objects"]} <= set(NAMES)
    assert answer["objects"][0]["mask"]["size"] == [60, 80]
    assert (tmp_path / "drawn.png").stat().st_size > 1000
    tool("predict").main(words)
    assert "a.png" in capsys.readouterr().out


def test_mistakes_of_the_tools_are_sentences(tmp_path, exported):
    for words, sentence in (
            (["tools/predict.py", "faster_rcnn_fpn_resnest50_coco", "setup.py"],
             "no weights are published"),
            (["tools/predict.py", exported[1], "setup.py", "--protocol", "gluon"],
             "does not apply to"),
            (["tools/predict.py", exported[1], "setup.py", "--threshold", "50"],
             "--threshold must be from 0 to 1, got 50.0"),
            (["tools/predict.py", exported[1], "setup.py", "--threshold", "nan"],
             "--threshold must be from 0 to 1, got nan"),
            (["tools/predict.py", exported[1], "setup.py", "--boxes", "x"],
             "--boxes does not apply to"),
            (["tools/export_model.py", "--model", "faster_rcnn_fpn_resnest50_coco", "--out",
              tmp_path / "x"], "no weights are published")):
        done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, text=True,
                              capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 2 and sentence in done.stderr, done.stderr


@pytest.mark.parametrize("opacity, colours", [(0.6, range(100, 2240)), (1, [3])])
def test_full_opacity_leaves_the_picture_itself_out(tmp_path, opacity, colours):
    from matplotlib.figure import Figure

    from gluon_resnest.interop.detection_drawing import draw_objects
    cv2.imwrite(str(tmp_path / "a.png"),
                np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    found = detection.Found(np.array([[4, 4, 20, 20], [30, 8, 50, 36]], np.float32),
                            np.array([0, 1]), np.array([0.9, 0.8], np.float32),
                            np.ones((2, 28, 28), np.float32))
    axes = Figure().subplots()
    draw_objects(axes, detection.Detected(tmp_path / "a.png", (40, 56), found),
                 detection.DetectionCard("faster", 2, class_names=NAMES), opacity)
    shown = np.unique(axes.images[0].get_array().reshape(-1, 3), axis=0)
    assert len(shown) in colours


def test_an_opacity_out_of_range_is_refused(tmp_path):
    from gluon_resnest.interop.detection_drawing import draw_detected
    with pytest.raises(UserError, match="opacity of the colours must be within 0..1, got 2"):
        draw_detected(tmp_path / "x.png", [], None, 2)


def test_a_detector_has_no_engine_and_says_so(exported):
    with pytest.raises(UserError, match="a detector, has no deploy graph that an engine could run"):
        detection.DetectionPredictor.load(exported[1], engine="mxnet")

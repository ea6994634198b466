"""Exported segmentation networks: card, prediction, overlays, and the tools around them."""
import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from mxnet import nd
from PIL import Image

from gluon_resnest.data import images
from gluon_resnest.errors import UserError
from gluon_resnest.interop import segmentation
from gluon_resnest.interop.deploy.export import Plan, export_deployment
from gluon_resnest.interop.export import export_network
from gluon_resnest.interop.segmentation import SegmentationCard, SegmentationPredictor, read_card
from gluon_resnest.interop.segmentation_drawing import overlay, palette
from gluon_resnest.interop.weights import save_parameters
from gluon_resnest.models.segmentation import initialize
from gluon_resnest.zoo import get_model

ROOT = Path(__file__).resolve().parents[1]
CARD = SegmentationCard("deeplab_resnest_tiny", 4, 32, 48, (0.5, 1.0), True, "exp",
                        class_names=("sky", "road", "tree", "car"))


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(capsys, module, *words):
    code = 0
    try:
        module.main([str(word) for word in words])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def net():
    net = get_model("deeplab_resnest_tiny", classes=4)
    initialize(net)
    net(nd.zeros((1, 3, 32, 32)))
    return net.without_auxiliary()


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("deploy") / "seg"
    export_network(net, prefix, CARD)
    return prefix


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(40, 60), (50, 30)]):
        image = np.random.RandomState(number).randint(0, 256, size + (3,), np.uint8)
        Image.fromarray(image).save(tmp_path / f"photos/{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("name", ["deeplab", "deeplabplus", "fcn", "psp"])
def test_every_head_is_exported_and_found_equal(name, tmp_path):
    net = get_model(f"{name}_resnest_tiny", classes=4, aux=False)
    initialize(net)
    export_network(net, tmp_path / "net", dataclasses.replace(CARD, model=name))
    assert read_card(tmp_path / "net").model == name


def test_card_survives_its_file(exported):
    card = read_card(exported)
    assert dataclasses.replace(card, commit="", sha256=None) == CARD


def test_exported_pair_labels_as_the_network_does(net, exported, photos):
    one, other = SegmentationPredictor(net, CARD), SegmentationPredictor.load(exported)
    for answer, again in zip(one.answer(sorted(photos.iterdir())),
                             other.answer(sorted(photos.iterdir()))):
        np.testing.assert_array_equal(answer.labels, again.labels)
        assert answer.labels.shape == images.load(answer.file).shape[:2]
        assert sum(share for _, share in answer.shares()) == pytest.approx(1)


def test_a_file_that_is_no_image_has_a_problem(exported, photos):
    (photos / "2.png").write_bytes(b"no picture")
    answers = list(SegmentationPredictor.load(exported).answer([photos / "2.png"]))
    assert answers[0].labels is None and "2.png" in answers[0].problem


@pytest.mark.parametrize("change", [
    {"classes": 0}, {"crop_px": 4}, {"base_px": 10 ** 6}, {"scales": ()}, {"scales": (0.0,)},
    {"flip": 1}, {"rule": "max"}, {"std": (0, 1, 1)}, {"class_names": ("one",)}, {"model": 3},
    {"sha256": {"symbol": 1}}])
def test_cards_that_cannot_be_true_are_refused(change):
    name = next(iter(change))
    with pytest.raises(UserError, match=f"the card says {name}="):
        dataclasses.replace(CARD, **change).check("the card")


@pytest.mark.parametrize("change", [{"task": "pose"}, {"format": 99}, {"scales": 1.0}])
def test_damaged_cards_are_refused(exported, tmp_path, change):
    values = json.loads(exported.with_name("seg.json").read_text())
    (tmp_path / "seg.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match="export the network again"):
        read_card(tmp_path / "seg")


def test_colours_tell_classes_apart():
    colors = palette(200)
    assert len({tuple(color) for color in colors.tolist()}) == 200
    assert colors[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_overlay_tints_each_pixel_with_its_class():
    image = np.full((2, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, 1], [0, 0, 1]])
    drawn = overlay(image, labels, np.array([[0, 0, 0], [200, 0, 0]], np.uint8))
    assert drawn[0, 0].tolist() == [40, 40, 40] and drawn[0, 1].tolist() == [160, 40, 40]


def test_predict_prints_shares_and_draws(capsys, exported, photos, tmp_path):
    pytest.importorskip("matplotlib")
    predict = tool("predict")
    code, out, _ = run(capsys, predict, exported, photos, "--save", tmp_path / "overlay.png")
    assert code == 0 and "%  " in out and any(name in out for name in CARD.class_names)
    wide = images.load(tmp_path / "overlay.png").shape[1]
    code, _, err = run(capsys, predict, exported, photos, "--opacity", "1", "--save",
                       tmp_path / "labels.png")
    assert code == 0, err
    assert images.load(tmp_path / "labels.png").shape[1] < 0.75 * wide      # no column of photos
    code, out, _ = run(capsys, predict, exported, photos, "--json")
    answers = json.loads(out)
    assert len(answers) == 2
    assert sum(row["share"] for row in answers[0]["classes"]) == pytest.approx(1)


@pytest.mark.parametrize("target, engine", [("mxnet", "mxnet"), ("onnx", "onnxruntime")])
def test_a_deploy_graph_labels_as_the_network_does(capsys, net, photos, tmp_path, target, engine):
    pytest.importorskip("onnxruntime")
    export_deployment(net, tmp_path / "seg", CARD, Plan(target))
    files = sorted(photos.iterdir())
    for given in (None, engine):
        answers = list(SegmentationPredictor.load(tmp_path / "seg", engine=given).answer(files))
        assert len(answers) == 2
        for answer, expected in zip(answers, SegmentationPredictor(net, CARD).answer(files)):
            assert (answer.labels == expected.labels).mean() > 0.999
    code, out, err = run(capsys, tool("predict"), tmp_path / "seg", photos, "--engine", engine)
    assert code == 0 and "%  " in out, err


def test_export_tool_takes_parameter_files(capsys, tmp_path):
    net = get_model("deeplab_resnest_tiny_citys")
    initialize(net)
    net(nd.zeros((1, 3, 32, 32)))
    save_parameters(net, tmp_path / "net.params")
    (tmp_path / "names.txt").write_text("".join(f"thing {number}\n" for number in range(19)))
    code, out, err = run(capsys, tool("export_model"), "--model", "deeplab_resnest_tiny_citys",
                         "--weights", tmp_path / "net.params", "--out", tmp_path / "seg",
                         "--classes-file", tmp_path / "names.txt")
    assert code == 0, err
    assert "19 classes" in out
    assert segmentation.read_card(tmp_path / "seg").class_names[3] == "thing 3"


@pytest.mark.parametrize("words, message", [(["--protocol", "gluon"], "--protocol"),
                                            (["--weights", "x"], "--weights belongs"),
                                            (["--crop", "0"], "--crop must be at least 1 px"),
                                            (["--save", "x.png", "--opacity", "2"],
                                             "--opacity must be from 0 to 1, got 2.0")])
def test_flags_of_classifiers_are_refused(capsys, exported, photos, words, message):
    code, _, err = run(capsys, tool("predict"), exported, photos, *words)
    assert code == 2 and message in err and "Traceback" not in err


def test_report_prints_each_class_and_draws(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "confusion.npy", np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]]))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    code, out, _ = run(capsys, tool("segmentation_report"), tmp_path, "--save",
                       tmp_path / "confusion.png")
    assert code == 0 and "66.67" in out and "mIoU 58.33 %" in out
    assert (tmp_path / "confusion.png").exists()
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    code, _, err = run(capsys, tool("segmentation_report"), tmp_path)
    assert code == 2 and "has 2 names in classes.txt and 3 classes in confusion.npy" in err


def test_report_of_no_run_is_one_sentence(capsys, tmp_path):
    code, _, err = run(capsys, tool("segmentation_report"), tmp_path)
    assert code == 2 and "confusion.npy cannot be read" in err


def test_packing_tool(capsys, tmp_path):
    for kind, array in (("images", np.zeros((4, 5, 3), np.uint8)),
                        ("masks", np.ones((4, 5), np.uint8))):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "a.png")
    pack = tool("pack_masks")
    code, _, err = run(capsys, pack, "folder", tmp_path)
    assert code == 2 and "--classes K is missing" in err
    for layout, count in (("folder", -1), ("ade20k", 0)):
        code, _, err = run(capsys, pack, layout, tmp_path, "--classes", count)
        assert code == 2 and f"--classes must be at least 1, got {count}" in err
    words = ["folder", tmp_path, "--classes", 2, "--out", tmp_path / "packed"]
    code, out, _ = run(capsys, pack, *words)
    assert code == 0 and "1 pairs" in out
    code, _, err = run(capsys, pack, *words)
    assert code == 2 and "exists already" in err

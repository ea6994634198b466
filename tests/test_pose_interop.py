"""Exported pose networks: the files repeat the network, cards are checked, persons are drawn."""
import dataclasses
import importlib.util
import json
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from mxnet import nd

from gluon_resnest import zoo
from gluon_resnest.config import PoseRecipe
from gluon_resnest.data.keypoints import JOINTS
from gluon_resnest.engine.checkpoint import State
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError
from gluon_resnest.interop import deployed, pose
from gluon_resnest.interop.deploy.export import Plan, export_deployment
from gluon_resnest.interop.export import export_network
from gluon_resnest.interop.pose import PoseCard, PosePredictor, read_boxes, read_card
from gluon_resnest.interop.weights import save_parameters
from gluon_resnest.models.resnest import initialize
from gluon_resnest.models.simple_pose import decode

ROOT = Path(__file__).resolve().parents[1]
CARD = PoseCard("simple_pose_resnest_tiny", 96, 64)


def tool(name):
    """Imports a file of tools/."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_net():
    net = zoo.pose_model("resnest_tiny")
    initialize(net)
    net.final_layer.weight.set_data(nd.random.normal(shape=net.final_layer.weight.shape))
    return net


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns (net, prefix) of an exported pair."""
    net, prefix = random_net(), tmp_path_factory.mktemp("deploy") / "pose"
    export_network(net, prefix, CARD)
    return net, prefix


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.random.randint(0, 256, (70, 90, 3), np.uint8))
    return path


def test_the_files_compute_what_the_network_does(exported):
    net, prefix = exported
    card = read_card(prefix)
    assert dataclasses.replace(card, sha256=None, commit="") == CARD
    assert deployed.task_of(prefix) == "pose"
    block = deployed.load_pair(prefix, card)
    images = nd.random.normal(shape=(2, 3, 96, 64))
    expected = net(images).asnumpy()
    assert expected.shape[1:] == card.output_shape[1:]
    np.testing.assert_allclose(block(images).asnumpy(), expected, atol=1e-5 * abs(expected).max())


def test_joints_are_those_of_the_crop_moved_into_the_image(exported):
    """By hand: a box of the input's own size and no margin is cut out as it is."""
    net, _ = exported
    predictor = PosePredictor.of_block(
        net, dataclasses.replace(CARD, margin=1.0, flip="none"))
    image = np.random.randint(0, 256, (130, 90, 3), np.uint8)
    found = predictor.predict(image, [[11, 17, 64, 96]])
    cut = (image[17:113, 11:75] / 255 - CARD.mean) / CARD.std
    heat = net(nd.array(cut.transpose(2, 0, 1)[None])).asnumpy()
    np.testing.assert_allclose(found, decode(heat) + [11, 17, 0], atol=1e-3)


def test_a_diverging_image_leaves_the_others_their_answers(photo):
    def forward(images):
        return np.full((len(images), 17, 24, 16), next(values), np.float32)

    values = iter([np.nan, 1, 1])
    card = dataclasses.replace(CARD, flip="none")
    broken, sound = PosePredictor(forward, card).answer([photo, photo])
    assert "NaN" in broken.problem and broken.joints.size == 0
    assert sound.problem is None and sound.joints.shape == (1, 17, 3)


def test_no_box_is_no_person(exported):
    net, _ = exported
    image = np.zeros((20, 20, 3), np.uint8)
    assert PosePredictor.of_block(net, CARD).predict(image, []).shape == (0, 17, 3)


@pytest.mark.parametrize("change, field", [
    ({"height": 100}, "height"), ({"width": "64"}, "width"), ({"margin": 0}, "margin"),
    ({"joints": []}, "joints"), ({"partners": [0] * 17}, "partners"),
    ({"skeleton": [[0, 17]]}, "skeleton"), ({"flip": "sometimes"}, "flip"),
    ({"mean": [0, 0, 0]}, "mean"), ({"sha256": {"symbol": "x"}}, "sha256")])
def test_cards_that_cannot_be_true_are_refused(exported, tmp_path, change, field):
    values = json.loads(deployed.paths(exported[1])[2].read_text())
    (tmp_path / "x.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=f"says {field}="):
        read_card(tmp_path / "x")


@pytest.mark.parametrize("text, message", [
    ("{", "is not the card of an exported network"), ("[]", "is not the card of a pose network"),
    ('{"format": 1, "task": "classification"}', "is not the card of a pose network")])
def test_files_that_are_no_cards_are_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_card(tmp_path / "x")
    with pytest.raises(UserError, match="must hold joints"):
        values = json.loads(CARD.to_json())
        (tmp_path / "x.json").write_text(json.dumps({**values, "joints": 5}))
        read_card(tmp_path / "x")


def test_a_damaged_parameter_file_is_noticed(exported, tmp_path):
    for file in deployed.paths(exported[1]):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "pose-0000.params").read_bytes())
    data[-200] ^= 1
    (tmp_path / "pose-0000.params").write_bytes(data)
    with pytest.raises(UserError, match="is not the file that was exported"):
        PosePredictor.load(tmp_path / "pose")


@pytest.mark.parametrize("content", [[], {"a.png": [[1, 2, 0, 4]]}, {"a.png": "x"},
                                     {"a.png": [[1, 2, 3]]}, {"a.png": [[1, 2, 3, 4, 0.9]] * 4},
                                     {"a.png": [[1, 2], [3, 4]]}])
def test_box_files_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="must hold"):
        read_boxes(tmp_path / "boxes.json")


def test_predict_draws_skeletons_and_tells_joints(exported, photo, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    boxes = {photo.name: [[5, 5, 30, 50], [40, 9, 30, 50]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    picture = tmp_path / "skeletons.png"
    tool("predict").main([str(exported[1]), str(photo), "--boxes", str(tmp_path / "boxes.json"),
                          "--save", str(picture), "--json"])
    answers = json.loads(capsys.readouterr().out)
    persons = answers[0]["persons"]
    assert len(persons) == 2 and list(persons[0]["joints"]) == list(JOINTS)
    drawn = cv2.imread(str(picture))
    assert drawn is not None and drawn.std() > 0
    tool("predict").main([str(exported[1]), str(photo)])
    out = capsys.readouterr().out
    assert out.count("person") == 1 and "left_knee" in out


def test_drawing_shows_the_joints(exported, photo, tmp_path):
    """The picture of a person with certain joints differs from that without."""
    pytest.importorskip("matplotlib")
    from gluon_resnest.interop.pose import PoseAnswer
    from gluon_resnest.interop.pose_drawing import draw_poses
    pictures = []
    for score in (0.0, 1.0):
        joints = np.random.RandomState(0).uniform(10, 60, (1, 17, 3))
        joints[..., 2] = score
        answer = PoseAnswer(photo, np.array([[5.0, 5, 60, 60]]), joints)
        draw_poses(tmp_path / "p.png", [answer], CARD)
        pictures.append(cv2.imread(str(tmp_path / "p.png")).astype(int))
    assert abs(pictures[0] - pictures[1]).sum() > 1e5


@pytest.mark.parametrize("words, message", [
    (["--crop", "224"], "--crop does not apply"), (["--protocol", "torch"], "--protocol does not"),
    (["--classes-file", "x"], "--classes-file does not"), (["--topk", "3"], "--topk does not"),
    (["--threshold", "0.2"], "--threshold does not"), (["--explain", "x.png"], "--explain does"),
    (["--weights", "x"], "--weights belongs to a zoo name")])
def test_flags_of_other_networks_are_refused(exported, photo, capsys, words, message):
    assert refused(capsys, exported[1], photo, *words).startswith(f"error: {message}")
    if words[0] != "--weights":
        assert message in refused(capsys, "simple_pose_resnest50", photo, *words)


def refused(capsys, *words):
    with pytest.raises(SystemExit) as exit:
        tool("predict").main([str(word) for word in words])
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_boxes_of_other_images_are_refused(exported, photo, tmp_path, capsys):
    (tmp_path / "boxes.json").write_text(json.dumps({"folder/photo.png": [[1, 2, 3, 4]]}))
    error = refused(capsys, exported[1], photo, "--boxes", tmp_path / "boxes.json")
    assert "has boxes for none of the 1 images, such as 'photo.png'" in error


def test_a_crowd_is_looked_at_in_parts(exported, photo, monkeypatch):
    predictor = PosePredictor.of_block(exported[0], CARD)
    image = cv2.imread(str(photo))[..., ::-1]
    boxes = np.random.RandomState(0).uniform(5, 40, (7, 4))
    together = predictor.predict(image, boxes)
    monkeypatch.setattr(pose, "_PERSONS", 3)
    np.testing.assert_allclose(predictor.predict(image, boxes), together, atol=1e-4)


def test_zoo_names_need_weights(photo, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        tool("predict").main(["simple_pose_resnest50", str(photo)])
    assert exit.value.code == 2 and "give a file with --weights" in capsys.readouterr().err
    save_parameters(random_net(), tmp_path / "w.params")
    tool("predict").main(["simple_pose_resnest_tiny", str(photo), "--weights",
                          str(tmp_path / "w.params")])
    assert "nose" in capsys.readouterr().out


def test_the_size_of_a_file_is_given_by_hand(exported, photo, tmp_path, capsys):
    weights = tmp_path / "w.params"
    save_parameters(exported[0], weights)
    name, size = "simple_pose_resnest_tiny", ["--height", "96", "--width", "64"]
    tool("predict").main([name, str(photo), "--weights", str(weights), "--json", *size])
    joints = json.loads(capsys.readouterr().out)[0]["persons"][0]["joints"]
    expected, = PosePredictor.of_block(exported[0], CARD).answer([photo])
    np.testing.assert_allclose(list(joints.values()), expected.joints[0], atol=2e-3)
    tool("export_model").main(["--model", name, "--weights", str(weights), "--out",
                               str(tmp_path / "out"), *size])
    assert dataclasses.replace(read_card(tmp_path / "out"), sha256=None, commit="") == CARD
    capsys.readouterr()
    for height in ("100", "0"):
        assert f"the command line says height={height}" in refused(
            capsys, name, photo, "--weights", weights, "--height", height)
    assert "--width belongs to a zoo name" in refused(capsys, exported[1], photo, "--width", "64")


@pytest.mark.parametrize("target, engine", [("mxnet", "mxnet"), ("onnx", "onnxruntime")])
def test_a_deploy_graph_finds_the_same_joints(exported, photo, tmp_path, capsys, target, engine):
    pytest.importorskip("onnxruntime")
    net, _ = exported
    export_deployment(net, tmp_path / "pose", CARD, Plan(target))
    expected, = PosePredictor.of_block(net, CARD).answer([photo])
    for given in (None, engine):
        answer, = PosePredictor.load(tmp_path / "pose", engine=given).answer([photo])
        np.testing.assert_allclose(answer.joints, expected.joints, atol=1e-3)
    tool("predict").main([str(tmp_path / "pose"), str(photo), "--engine", engine])
    assert "person 1" in capsys.readouterr().out


def test_a_run_is_exported_with_its_recipe(tmp_path, photo, capsys):
    recipe = PoseRecipe(network="resnest_tiny", source="a test", height=64, width=96,
                        eval_flip="coordinates")
    net = random_net()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(
        {"kind": "PoseRecipe", "recipe": recipe.to_json()}))
    trainer = Comm().trainer(net.collect_params(), optimizer("adam", wd=0))
    Checkpoints(tmp_path / "run/checkpoints").save(net, Update(trainer, net), State(step=1))
    tool("export_model").main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert "found equal to the network" in capsys.readouterr().out
    card = read_card(tmp_path / "out")
    assert (card.height, card.width, card.flip) == (64, 96, "coordinates")
    block = deployed.load_pair(tmp_path / "out", card)
    images = nd.random.normal(shape=(1, 3, 64, 96))
    np.testing.assert_array_equal(block(images).asnumpy(), net(images).asnumpy())
    with pytest.raises(SystemExit) as exit:
        tool("export_model").main([str(tmp_path / "run"), "--out", "x", "--crop", "64"])
    assert exit.value.code == 2 and "a pose network" in capsys.readouterr().err


def test_the_exported_files_need_nothing_of_this_package(exported):
    symbol, params, _ = map(str, deployed.paths(exported[1]))
    block = mx.gluon.SymbolBlock.imports(symbol, ["data"], params)
    assert block(nd.zeros((3, 3, 64, 64))).shape == (3, 17, 16, 16)

"""interop.deploy: int8 is judged, and refused where it is too far off."""
import json
import math
from collections import Counter

import mxnet as mx
import numpy as np
import pytest
from deploy_case import CARD, noise, tiny_network
from mxnet import nd

from gluon_resnest.errors import UserError
from gluon_resnest.interop import deployed
from gluon_resnest.interop import export as plain_export
from gluon_resnest.interop.deploy import calibration, judging, lowering
from gluon_resnest.interop.deploy.export import Plan, export_deployment
from gluon_resnest.interop.deploy.onnx_file import to_onnx
from gluon_resnest.interop.deploy.rewriting import deploy_graph
from gluon_resnest.interop.pose import PoseCard


@pytest.fixture(scope="module")
def tiny():
    return tiny_network()


@pytest.fixture(scope="module")
def images():
    """Stands for the user's images: noise, labelled by nobody."""
    def batches(seed):
        return tuple((noise((16, 3, 32, 32), seed + i), np.zeros(16, np.int64)) for i in range(2))
    return calibration.Images(batches(0), batches(10))


@pytest.mark.parametrize("target", ["mxnet", "onnx"])
def test_int8_is_close_and_its_judgement_is_in_the_card(tiny, images, tmp_path, target):
    if target == "onnx":
        pytest.importorskip("onnxruntime.quantization")
    prefix = tmp_path / target
    export_deployment(tiny, prefix, CARD, Plan(target, "int8", force=True), lambda: images)
    network = deployed.load(prefix)
    assert network.precision == "int8"
    x = images.judging[0][0]
    expected = tiny(nd.array(x)).asnumpy()
    centred = network(x) - expected
    # A random network magnifies rounding; a range or a scale that is wrong gives 1 and more.
    assert 0 < np.linalg.norm(centred) < 0.75 * np.linalg.norm(expected)
    checks = json.loads(deployed.paths(prefix)[2].read_text())["deploy"]["checks"]
    assert checks["images"] == 32 and 0 < checks["logit_error"] < 0.7


def test_too_little_agreement_is_refused_unless_forced(tiny, images, tmp_path, monkeypatch):
    wrong = judging.Comparison(32, 0.5, 0.9)
    monkeypatch.setattr(judging, "compare", lambda *args: wrong)
    with pytest.raises(UserError, match="too far from the float32 one: 50.00 % of 32 images.*97 %"):
        export_deployment(tiny, tmp_path / "x", CARD, Plan("mxnet", "int8"), lambda: images)
    assert list(tmp_path.iterdir()) == []
    export_deployment(tiny, tmp_path / "x", CARD, Plan("mxnet", "int8", force=True),
                      lambda: images)
    assert deployed.is_exported(tmp_path / "x")


def test_first_and_last_layer_stay_float32(tiny, images):
    graph, arrays = deploy_graph(*plain_export.trace(tiny))
    symbol = mx.sym.load_json(graph.to_json())
    args = {name[4:]: nd.array(array) for name, array in arrays.items()}
    batches = [images.calibration[0][0]]
    sizes = {layers: len(lowering.calibrate(symbol, args, {}, batches, float_layers=layers))
             for layers in ((), (0, -1))}
    assert sizes[0, -1] < sizes[()]


def not_called():
    raise AssertionError("read before the plan was checked")


@pytest.mark.parametrize("target", ["mxnet", "onnx"])
@pytest.mark.parametrize("number", [36, -37])
def test_a_layer_that_is_absent_is_refused_before_images_are_read(tiny, tmp_path, target, number):
    """The tiny network has 35 convolutions and a dense layer."""
    plan = Plan(target, "int8", float_layers=(0, -36, 35, number))
    with pytest.raises(UserError, match=f"no layer {number} to keep .* numbers from -36 to 35"):
        export_deployment(tiny, tmp_path / "x", CARD, plan, not_called)
    assert list(tmp_path.iterdir()) == []


def test_both_engines_number_the_layers_alike(tiny):
    """Numbers are checked against the graph, and used on what the engines make of it."""
    graph, arrays = deploy_graph(*plain_export.trace(tiny))
    symbol = lowering.fused(mx.sym.load_json(graph.to_json()), lowering._INT8_BACKEND)
    args = {name[4:]: nd.array(array) for name, array in arrays.items()}
    lowering._quantized(symbol, args, (0, -36, 35, -1))
    with pytest.raises(UserError, match="no layer 36 .* has 36 convolutions and dense layers"):
        lowering._quantized(symbol, args, (36,))
    pytest.importorskip("onnx")
    kinds = Counter(node.op_type for node in to_onnx(
        graph, arrays, inputs=("data", 3), output_rank=2).graph.node)
    assert (kinds["Conv"], kinds["Gemm"], kinds["ConvTranspose"]) == (35, 1, 0)


def test_images_judge_classifiers_only(tmp_path):
    card = PoseCard("simple_pose_resnest_tiny", 96, 64)
    with pytest.raises(UserError, match="judge a classifier, but simple_pose.*leave --calibration"):
        export_deployment(None, tmp_path / "x", card, Plan("mxnet"), not_called)


@pytest.mark.parametrize("counts, message", [
    ({"judging": 0}, "number of judging images must be a whole number from 1 .* got 0"),
    ({"judging": -3}, "number of judging images must be a whole number from 1 .* got -3"),
    ({"calibration": -5}, "batches of 16 images and needs at least one, got -5 images"),
    ({"calibration": 15}, "batches of 16 images and needs at least one, got 15 images")])
def test_counts_of_images_that_cannot_be_are_refused(tmp_path, counts, message):
    with pytest.raises(UserError, match=message):
        calibration.read_images(tmp_path / "absent.rec", CARD, **counts)


@pytest.mark.parametrize("judging, least", [(None, 32), ("others", 16)])
def test_too_few_images_are_told_how_many_suffice(monkeypatch, judging, least):
    monkeypatch.setattr(calibration, "_open", lambda source, card: range(least - 1))
    with pytest.raises(UserError, match=f"needs at least {least} images, 'some' has {least - 1}"):
        calibration.read_images("some", CARD, judging_source=judging)


def test_comparison_by_hand():
    logits = np.array([[1, 0], [0, 1], [3, 0], [0, 2]], np.float32)
    other = logits.copy()
    other[3] = [2, 0]
    found = judging.compare(lambda x: other, lambda x: logits, [(None, np.array([0, 1, 0, 1]))])
    assert (found.images, found.agreement, found.top1, found.float_top1) == (4, 0.75, 0.75, 1.0)
    assert found.logit_error == pytest.approx(math.sqrt(8 / 7.5))   # mean of each row taken off


@pytest.mark.parametrize("plan, message", [
    (Plan("onnx", "bf16"), "onnxruntime has no bf16 convolutions"),
    (Plan("mxnet", "int8"), "needs images to calibrate with.*--calibration")])
def test_plans_that_cannot_be_are_one_sentence(tiny, tmp_path, plan, message):
    with pytest.raises(UserError, match=message):
        export_deployment(tiny, tmp_path / "x", CARD, plan)


@pytest.mark.parametrize("values, message", [
    ({"target": "tensorrt"}, "target must be one of mxnet, onnx"),
    ({"target": "onnx", "precision": "int4"}, "precision must be one of fp32, bf16, int8"),
    ({"target": "onnx", "mode": "best"}, "calibration mode must be one of naive, entropy"),
    ({"target": "onnx", "min_agreement": 2}, "least agreement must be from 0 to 1, got 2")])
def test_impossible_plans_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Plan(**values)

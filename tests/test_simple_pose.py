"""SimplePose: shapes, heat maps and joints as inverse functions, mirrors, names of GluonCV's."""
import numpy as np
import pytest
from mxnet import autograd, gluon, nd

from gluon_resnest import zoo
from gluon_resnest.data.keypoints import PARTNERS
from gluon_resnest.errors import UserError
from gluon_resnest.interop import gluoncv as bridge
from gluon_resnest.interop.weights import load_parameters
from gluon_resnest.losses import JointHeatmapLoss
from gluon_resnest.models import simple_pose
from gluon_resnest.models.resnest import initialize
from gluon_resnest.models.simple_pose import (
    decode, encode, mirror_heatmaps, mirror_joints, predict_joints)


def everywhere(height, width, step=0.37):
    """Returns one joint at each place of a grid over the input: (N, 1, 3)."""
    y, x = np.mgrid[0:4 * (height - 1) + 1e-6:step * 4, 0:4 * (width - 1) + 1e-6:step * 4]
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)[:, None].astype(np.float32)


def randomise(net):
    """Gives every parameter of a network random values, statistics included."""
    for parameter in net.collect_params().values():
        low, high = (0.5, 1.5) if parameter.name.endswith(("gamma", "var")) else (-0.2, 0.2)
        parameter.set_data(nd.random.uniform(low, high, shape=parameter.shape))


@pytest.mark.parametrize("sigma", [2.0, 3.0])
@pytest.mark.parametrize("exact", [False, True])
def test_decode_inverts_encode_within_half_a_pixel(sigma, exact):
    joints = everywhere(13, 10)
    maps, weights = encode(nd.array(joints), 13, 10, sigma, exact=exact)
    found = decode(maps.asnumpy())
    away = abs(found - joints)[..., :2] / simple_pose.STRIDE
    assert weights.asnumpy().min() == 1
    assert away.max() <= 0.5 + 1e-5
    assert away.max() > 0.4                                 # the grid does visit the worst places
    if exact:
        inner = ((joints[..., :2] >= 4) & (joints[..., :2] <= [4 * 8, 4 * 11])).all(axis=2)
        assert away[inner].max() <= 0.25 + 1e-5


@pytest.mark.parametrize("exact", [False, True])
def test_joints_behind_the_last_pixel_of_the_map_are_found_on_its_border(exact):
    """A crop of 40 pixels ends at 39.5, its map of 10 at 36."""
    edge = np.array([[[39.5, 20, 1]]], np.float32)
    found = decode(encode(nd.array(edge), 13, 10, 2.0, exact=exact)[0].asnumpy())
    assert found[0, 0, 0] == 36 and (39.5 - 36) / simple_pose.STRIDE == 7 / 8


@pytest.mark.parametrize("exact", [False, True])
def test_encode_equals_its_definition(exact):
    joints = np.random.uniform(-30, 80, (2, 5, 3)).astype(np.float32)
    joints[..., 2] = [[0, 1, 1, 2, 2], [1, 1, 1, 1, 0]]
    maps, weights = (array.asnumpy() for array in encode(nd.array(joints), 9, 14, 2, exact=exact))
    expected = np.zeros((2, 5, 9, 14))
    for n, j in np.ndindex(2, 5):
        x, y = joints[n, j, :2] / 4 if exact else np.floor(joints[n, j, :2] / 4 + 0.5)
        for row, column in np.ndindex(9, 14):
            if max(abs(row - y), abs(column - x)) <= 6 and joints[n, j, 2] > 0:
                away = (row - y) ** 2 + (column - x) ** 2
                expected[n, j, row, column] = np.exp(-away / 8)
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    np.testing.assert_array_equal(weights[..., 0, 0], expected.max(axis=(2, 3)) > 0)


def test_a_gaussian_by_hand():
    maps, weights = encode(nd.array([[[8.0, 4.0, 2.0]]]), 3, 4, 1.0)
    np.testing.assert_allclose(maps.asnumpy()[0, 0, 1], np.exp([-2, -0.5, 0, -0.5]), rtol=1e-6)
    assert weights.shape == (1, 1, 1, 1) and weights.asscalar() == 1


def test_joints_without_label_or_outside_have_no_weight():
    joints = nd.array([[[8, 8, 0], [-27, 8, 1], [8, 61, 1], [-22, 8, 1]]])
    maps, weights = encode(joints, 9, 10, 2.0)
    assert weights.asnumpy().ravel().tolist() == [0, 0, 0, 1]
    assert (maps.asnumpy()[0, :3] == 0).all()


def test_quarter_pixel_goes_to_the_higher_neighbour():
    maps = np.zeros((1, 1, 5, 6), np.float32)
    maps[0, 0, 2, 3], maps[0, 0, 2, 4], maps[0, 0, 1, 3] = 1, 0.5, 0.2
    np.testing.assert_allclose(decode(maps), [[[4 * 3.25, 4 * 1.75, 1]]])
    np.testing.assert_allclose(decode(np.roll(maps, 2, axis=3))[0, 0], [20, 4 * 1.75, 1])


def test_flip_of_flip_is_the_identity():
    maps = np.random.rand(2, 17, 4, 6)
    np.testing.assert_array_equal(mirror_heatmaps(mirror_heatmaps(maps, PARTNERS), PARTNERS), maps)
    joints = np.random.rand(2, 17, 3)
    np.testing.assert_allclose(
        mirror_joints(mirror_joints(joints, PARTNERS, 24), PARTNERS, 24), joints)


def test_shift_moves_the_mirrored_map_right_by_one():
    maps = np.random.rand(1, 17, 2, 5)
    shifted = mirror_heatmaps(maps, PARTNERS, shift=True)
    np.testing.assert_array_equal(shifted[..., 1:], mirror_heatmaps(maps, PARTNERS)[..., :-1])


def perfect(joints, sigma=2.0):
    """Returns a network that knows where the joints are in images (N, 3, 64, 48) or mirrored ones.

    Images are told apart by their first pixel.
    """
    def forward(images):
        seen = joints if images[0, 0, 0, 0] > 0 else mirror_joints(joints, PARTNERS, 48)
        return encode(nd.array(seen), 16, 12, sigma, exact=True)[0].asnumpy()
    images = np.zeros((len(joints), 3, 64, 48), np.float32)
    images[:, :, :, 0] = 1
    return forward, images


def test_every_flip_test_finds_the_joints():
    joints = np.random.uniform(9, 38, (3, 17, 3)).astype(np.float32)
    joints[..., 2] = 1
    forward, images = perfect(joints)
    away = {flip: abs(predict_joints(forward, images, PARTNERS, flip) - joints)[..., :2]
            for flip in simple_pose.FLIP_TESTS}
    for flip, distance in away.items():
        assert distance.max() <= 4, flip
    # Two mirrors move a heat map by 3/4 pixel; moving it back is better, and coordinates know.
    assert away["shifted"].mean() < away["heatmaps"].mean()
    assert away["coordinates"].mean() < away["none"].mean()


def test_loss_is_the_weighted_mean_of_squares(hybridize):
    maps, targets, weights = (np.random.rand(*shape).astype(np.float32)
                              for shape in [(2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 1, 1)])
    loss = JointHeatmapLoss()
    if hybridize:
        loss.hybridize()
    value = loss(nd.array(maps), nd.array(targets), nd.array(weights)).asscalar()
    np.testing.assert_allclose(value, (weights * (maps - targets) ** 2).mean() / 2, rtol=1e-5)


def test_heat_maps_have_a_quarter_of_the_image(hybridize):
    net = zoo.pose_model("resnest_tiny", joints=5)
    initialize(net)
    if hybridize:
        net.hybridize()
    assert net(nd.zeros((2, 3, 64, 96))).shape == (2, 5, 16, 24)
    with autograd.record():
        loss = net(nd.random.normal(shape=(2, 3, 32, 64))).sum()
    loss.backward()
    assert all(abs(p.grad().asnumpy()).sum() > 0 for name, p in net.collect_params().items()
               if name.endswith("deconv0_weight") or name.endswith("bias"))


def test_a_backbone_of_another_stride_is_refused():
    features = zoo.get_model("resnest_tiny", features_only=True)
    with pytest.raises(UserError, match="one feature map of stride 32"):
        simple_pose.SimplePose(features)


def test_zoo_knows_pose_names_and_refuses_what_they_do_not_have():
    net = zoo.get_model("simple_pose_resnest_tiny")
    assert isinstance(net, simple_pose.SimplePose) and net.final_layer.weight.shape[0] == 17
    assert "simple_pose_resnest50" in zoo.list_models()
    with pytest.raises(UserError, match="which has no classes"):
        zoo.get_model("simple_pose_resnest50", classes=10)
    with pytest.raises(UserError, match="unknown model"):
        zoo.get_model("simple_pose_resnest51")


@pytest.mark.parametrize("theirs, ours", [("resnest50", "resnest50"),
                                          ("resnet18_v1b", "resnet18")])
def test_gluoncv_files_fit_and_compute_the_same(tmp_path, theirs, ours):
    gluoncv = pytest.importorskip("gluoncv")
    from gluoncv.model_zoo.simple_pose.simple_pose_resnet import SimplePoseResNet
    original = SimplePoseResNet(theirs)
    initialize(original)
    if theirs == "resnest50":
        gluoncv.nn.dropblock.set_drop_prob(0, original)
    images = nd.random.normal(shape=(1, 3, 64, 96))
    original(images)                                        # completes deferred shapes
    randomise(original)
    original.save_parameters(str(tmp_path / "theirs.params"))
    net = zoo.get_model("simple_pose_" + ours)
    load_parameters(net, tmp_path / "theirs.params")
    expected = original(images).asnumpy()
    np.testing.assert_allclose(net(images).asnumpy(), expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("layers", [50, 101])
def test_a_file_of_gluoncvs_classifier_has_all_names_of_a_backbone(layers):
    model_zoo = pytest.importorskip("gluoncv.model_zoo")
    theirs = set(model_zoo.get_model(f"resnet{layers}_v1b")._collect_params_with_prefix())
    ours = set(zoo.pose_model(f"resnet{layers}").backbone._collect_params_with_prefix())
    assert theirs - ours == {"fc.weight", "fc.bias"} and ours <= theirs


def test_gluoncv_zoo_knows_our_pose_networks_after_register():
    pytest.importorskip("gluoncv")
    from gluoncv import model_zoo
    bridge.register()
    try:
        net = model_zoo.get_model("simple_pose_resnest50", num_joints=3)
        assert isinstance(net, simple_pose.SimplePose)
        assert net.final_layer.weight.shape[0] == 3
    finally:
        bridge.unregister()
    with pytest.raises(ValueError):
        model_zoo.get_model("simple_pose_resnest50")


def test_the_backbone_learns_without_a_classifier():
    net = zoo.pose_model("resnest_tiny")
    initialize(net)
    trainer = gluon.Trainer(net.collect_params(), "adam")
    with autograd.record():
        loss = (net(nd.random.normal(shape=(2, 3, 32, 32))) ** 2).mean()
    loss.backward()
    trainer.step(1)                                         # complains of unused parameters
    learned = [param for param in net.collect_params().values() if param.grad_req != "null"]
    assert all(np.isfinite(param.grad().asnumpy()).all() for param in learned)
    assert net.backbone.conv1[0].weight.grad().asnumpy().any()

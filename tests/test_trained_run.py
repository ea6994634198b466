"""tasks.trained_run: a finished run gives back the network it trained."""
import contextlib
import dataclasses
import json

import numpy as np
import pytest
from mxnet import nd

from gluon_resnest import zoo
from gluon_resnest.config import ClassificationRecipe, PoseRecipe
from gluon_resnest.engine.checkpoint import State
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.errors import UserError
from gluon_resnest.interop.weights import save_parameters
from gluon_resnest.models.resnest import initialize
from gluon_resnest.tasks import trained_run
from gluon_resnest.tasks.trained_run import load_backbone, open_run

RECIPE = ClassificationRecipe(network="resnest_tiny", source="a test", classes=3, eval_px=32)


class NoUpdate:
    """An optimizer without state."""

    @staticmethod
    def state():
        return {}, {}

    @staticmethod
    def averaged():
        return contextlib.nullcontext()


def make_run(directory, best_step):
    """Writes a run of two checkpoints, whose biases are their steps; `best_step` may be None."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"recipe": RECIPE.to_json()}))
    checkpoints = Checkpoints(directory / "checkpoints")
    net = zoo.get_model(RECIPE.network, classes=RECIPE.classes)
    initialize(net)
    for step in (1, 2):
        net.fc.bias.set_data(nd.full((3,), step))
        best = best_step if best_step is not None and best_step <= step else None
        checkpoints.save(net, NoUpdate, State(step=step, best=best and 50.0, best_step=best))


@pytest.mark.parametrize("best_step, taken", [(1, 1), (2, 2), (None, 2)])
def test_the_best_checkpoint_is_taken_and_the_newest_where_none_was_evaluated(
        tmp_path, best_step, taken):
    make_run(tmp_path / "run", best_step)
    net, recipe = open_run(tmp_path / "run")
    assert recipe == RECIPE
    assert np.array_equal(net.fc.bias.data().asnumpy(), np.full(3, taken))


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run directory.*give the --workdir of a recipe"):
        open_run(tmp_path / "absent")
    for text in ("{", "[]", "{}", '{"recipe": {"networc": 1}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="is not the config.json|no field 'networc'"):
            open_run(tmp_path)


def test_a_run_without_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"recipe": RECIPE.to_json()}))
    with pytest.raises(UserError, match="no whole checkpoint yet"):
        open_run(tmp_path)


def deformable_backbone():
    """Returns a backbone whose every parameter is 3, so that what is loaded differs."""
    net = zoo.get_model(RECIPE.network, features_only=True, deform_stages=(3, 4))
    net.initialize()
    for param in net.collect_params().values():     # norms have initialisers of their own
        param.set_data(nd.full(param.shape, 3))
    return net


def test_a_plain_run_starts_a_deformable_backbone_with_offsets_at_zero(tmp_path):
    make_run(tmp_path / "run", 2)
    trained, _ = open_run(tmp_path / "run")
    net, values = deformable_backbone(), trained._collect_params_with_prefix()
    load_backbone(net, tmp_path / "run", network=RECIPE.network)
    for name, param in net._collect_params_with_prefix().items():
        expected = 0 if ".offset." in name else values[name].data().asnumpy()
        assert np.array_equal(param.data().asnumpy(), np.broadcast_to(expected, param.shape)), name


def test_offsets_are_kept_where_the_file_has_them_and_must_be_complete(tmp_path):
    trained = zoo.get_model(RECIPE.network, deform_stages=(3, 4))
    initialize(trained)
    trained.layer2[0].conv2.conv.offset.bias.set_data(nd.full((54,), 7))
    save_parameters(trained, tmp_path / "deformable.params")
    net = deformable_backbone()
    load_backbone(net, tmp_path / "deformable.params", network=RECIPE.network)
    assert (net.layer2[0].conv2.conv.offset.bias.data().asnumpy() == 7).all()
    more = zoo.get_model(RECIPE.network, features_only=True, deform_stages=(3, 4, 5))
    with pytest.raises(UserError, match="2 missing: layer4.0.conv2.conv.offset.weight"):
        load_backbone(more, tmp_path / "deformable.params", network=RECIPE.network)


def write_config(directory, recipe):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(
        {"kind": type(recipe).__name__, "recipe": recipe.to_json()}))
    return directory


@pytest.mark.parametrize("found, network, wanted", [
    ("resnet50", "mask_rcnn_fpn_resnet50_coco", "resnet50_msra"),
    ("resnet101_v1s", "panoptic_fpn_resnet101_coco", "resnet101_msra"),
    ("resnet50", "deeplab_resnet50_ade", "resnet50_v1s"),
    ("resnet50_msra", "resnet50", "resnet50"),
    ("resnest50_fast_2s1x64d", "faster_rcnn_fpn_resnest50_dcn_coco", "resnest50"),
    ("cifar_resnest14", "resnest14_2s1x64d", "resnest14_2s1x64d")])
def test_a_run_or_a_zoo_name_of_another_variant_is_refused(tmp_path, found, network, wanted):
    """Their parameters have equal names and shapes, so that nothing else would notice."""
    run = write_config(tmp_path / "run", dataclasses.replace(RECIPE, network=found))
    for source in (run, found):
        with pytest.raises(UserError, match=f"has weights of {found}, expected those of {wanted}.* "
                                            f"give a run or a .params file of {wanted}"):
            load_backbone(None, source, network=network)


@pytest.mark.parametrize("found, network", [
    ("resnest50", "Cascade_Mask_RCNN_FPN_resnest50_dcn_coco"),
    ("ResNeSt50", "simple_pose_resnest50"),
    ("resnest50_2s1x64d", "panoptic_cascade_fpn_resnest50_coco"),
    ("resnet50d", "deeplab_resnest50_fast_0s1x64d_citys"),
    ("resnet50_msra", "faster_rcnn_fpn_resnet50_lvis"), ("resnet50_v1s", "psp_resnet50"),
    ("resnet50_v1b", "resnet50")])
def test_a_run_of_the_same_network_is_taken_whatever_its_dropout_and_dilation(
        tmp_path, found, network):
    run = write_config(tmp_path / "run", dataclasses.replace(RECIPE, network=found))
    with pytest.raises(UserError, match="no whole checkpoint yet"):
        load_backbone(None, run, network=network)


@pytest.mark.parametrize("opener, found", [
    (trained_run.open_run, PoseRecipe(network="resnest14", source="a test", sigma=1.5)),
    (trained_run.open_classifier, PoseRecipe(network="resnest14", source="a test")),
    (trained_run.open_pose_run, RECIPE), (trained_run.open_segmentation_run, RECIPE),
    (trained_run.open_detection_run, RECIPE), (trained_run.open_panoptic_run, RECIPE)])
def test_every_opener_says_what_a_run_of_another_kind_is(tmp_path, opener, found):
    run = write_config(tmp_path / "run", found)
    with pytest.raises(UserError, match=f"'.*run' holds a run of a {type(found).__name__}, not of "
                                        "a .*Recipe; export it with tools/export_model.py"):
        opener(run)


def test_a_run_that_is_no_classifiers_is_refused(tmp_path):
    run = write_config(tmp_path / "run", PoseRecipe(network="resnest50", source="a test"))
    with pytest.raises(UserError, match="run of a PoseRecipe, not of a Class.*; a backbone starts"):
        load_backbone(None, run, network="resnest50")

"""Segmentation as a task: losses, whole images, and the same result for any number of workers.

Started by horovodrun, this file is the worker: it takes a gradient, evaluates, writes both down.
"""
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from horovod_job import launch
from mxnet import autograd, nd
from mxnet.gluon import nn
from PIL import Image

from gluon_resnest import cli
from gluon_resnest.config import ClassificationRecipe, SegmentationRecipe
from gluon_resnest.data.mask_packing import pack_masks
from gluon_resnest.data.segmentation_layouts import open_segmentation
from gluon_resnest.engine.checkpoint import State
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import connect
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError
from gluon_resnest.interop.weights import save_parameters
from gluon_resnest.models import pixel_loss
from gluon_resnest.models.pixel_loss import PixelCrossEntropy
from gluon_resnest.models.resnest import initialize as initialize_classifier
from gluon_resnest.models.segmentation import initialize
from gluon_resnest.tasks.segmentation import CONFUSION, Segmentation
from gluon_resnest.zoo import get_model

RECIPES = {"tiny": SegmentationRecipe(
    network="deeplab_resnest_tiny", source="test", dataset="folder", classes=3, epochs=1, batch=6,
    base_px=40, crop_px=32, eval_scales="0.75,1", eval_every=1, lr=0.02)}
SIZES = [(40, 48), (36, 36), (30, 52), (44, 40), (20, 30), (64, 33), (33, 64)]
ATOL = 5e-6      # oneDNN's exponential is good to some 3e-6


def draw_folder(root):
    """Seven pairs of different sizes; the lower part of some is ignored."""
    for number, (height, width) in enumerate(SIZES):
        rng = np.random.RandomState(number)
        labels = np.zeros((height, width), np.uint8)
        labels[5:15, 4:20] = 1
        labels[12:, 15:25] = 2
        if number % 2:
            labels[height // 2:] = 255
        image = rng.randint(0, 60, (height, width, 3)) + 60 * np.minimum(labels, 2)[..., None]
        for kind, array in (("images", image.astype(np.uint8)), ("masks", labels)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(root / kind / f"{number}.png")


def make_task(folder, comm, *words, workdir=None):
    words = ["--root", folder, "--data-workers", 0, "--weights", Path(folder) / "net.params",
             *words]
    if workdir:
        words += ["--workdir", workdir]
    recipe, run = cli.parse(RECIPES, Segmentation, [str(word) for word in words])
    task = Segmentation(recipe, run, comm)
    # What is drawn on the device differs between workers.
    task.net.apply(lambda block: setattr(block, "_rate", 0) if isinstance(block, nn.Dropout)
                   else None)
    return task


def observe(folder, comm):
    """Returns loss and gradients of the first batch over all workers, and the evaluation."""
    task = make_task(folder, comm, workdir=folder)
    batch = next(task.batches(0))
    with autograd.record():
        losses = task.losses(batch)
        loss = sum(losses.values())
    loss.backward()
    mean = comm.total({
        "loss": {name: float(value.asscalar()) for name, value in losses.items()},
        "gradients": {name: param.grad().asnumpy().astype(float).ravel()[:50]
                      for name, param in task.net._collect_params_with_prefix().items()
                      if param.grad_req != "null"}})
    metrics = task.evaluate()
    task.close()
    return {"loss": {name: value / comm.size for name, value in mean["loss"].items()},
            "gradients": {name: (value / comm.size).tolist()
                          for name, value in mean["gradients"].items()},
            "metrics": metrics,
            "confusion": np.load(Path(folder) / CONFUSION).tolist() if comm.is_main else None}


def work(folder):
    comm = connect()
    seen = observe(folder, comm)
    (Path(folder) / f"{comm.rank}.json").write_text(json.dumps(seen))
    comm.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    draw_folder(folder)
    net = get_model("deeplab_resnest_tiny", classes=3)
    mx.random.seed(1)
    initialize(net)
    net(nd.zeros((1, 3, 32, 32)))
    save_parameters(net, folder / "net.params")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return observe(folder, connect({}))


def test_the_backbone_starts_from_a_classification_run(folder, tmp_path):
    trained = get_model("resnest_tiny", classes=2)
    initialize_classifier(trained)
    recipe = ClassificationRecipe(network="resnest_tiny", source="test", classes=2)
    (tmp_path / "config.json").write_text(json.dumps({"recipe": recipe.to_json()}))
    trainer = connect({}).trainer(trained.collect_params(), optimizer("sgd", wd=0))
    Checkpoints(tmp_path / "checkpoints").save(trained, Update(trainer, trained), State(step=1))
    words = ["--root", folder, "--data-workers", 0, "--backbone-weights", tmp_path]
    task = Segmentation(*cli.parse(RECIPES, Segmentation, list(map(str, words))), connect({}))
    expected = trained._collect_params_with_prefix()
    for name, param in task.net.stages()._collect_params_with_prefix().items():
        assert (param.data() == expected[name].data()).min() == 1, name
    task.close()


# Any number of workers ----------------------------------------------------------------------------

@pytest.mark.horovod
@pytest.mark.parametrize("workers", [2, 3])
def test_loss_gradients_and_evaluation_do_not_depend_on_the_workers(folder, alone, workers):
    code, text, seen = launch(workers, __file__, folder)
    assert code == 0, text
    assert seen[0]["confusion"] == alone["confusion"]
    for one in seen:
        assert one["metrics"] == alone["metrics"]
        assert one["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        for name, values in alone["gradients"].items():
            scale = max(abs(np.array(values)).max(), 1e-3)
            np.testing.assert_allclose(one["gradients"][name], values, rtol=1e-3,
                                       atol=2e-3 * scale, err_msg=name)


def test_every_image_is_evaluated_at_full_size(alone):
    labelled = sum(height * width if number % 2 == 0 else height // 2 * width
                   for number, (height, width) in enumerate(SIZES))
    assert alone["metrics"]["images"] == len(SIZES)
    assert np.sum(alone["confusion"]) == labelled


def test_loss_is_the_mean_over_the_labelled_pixels(folder, alone):
    task = make_task(folder, connect({}))
    images, labels, _ = next(task.batches(0))
    with autograd.train_mode():
        logits = [output.asnumpy().astype(float) for output in task.net(images)]
    labels = labels.asnumpy().astype(int)
    for name, output, weight in zip(("loss", "auxiliary"), logits, (1, 0.5)):
        expected = weight * cross_entropy(output, labels).sum() / (labels >= 0).sum()
        assert alone["loss"][name] == pytest.approx(expected, rel=1e-4)


# Losses -------------------------------------------------------------------------------------------

def cross_entropy(logits, labels):
    """Cross entropy of each pixel, 0 where it is ignored; numpy, float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    own = np.take_along_axis(shifted, np.maximum(labels, 0)[:, None], axis=1)[:, 0]
    return np.where(labels >= 0, log_sums - own, 0)


def cross_entropy_gradient(logits, labels):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient = shifted / shifted.sum(axis=1, keepdims=True)
    hot = np.arange(logits.shape[1])[None, :, None, None] == labels[:, None]
    return np.where(labels[:, None] >= 0, gradient - hot, 0)


def example():
    rng = np.random.RandomState(0)
    return rng.standard_normal((2, 4, 5, 6)) * 2, rng.randint(-1, 4, (2, 5, 6))


def gradient_of(loss, logits, labels, dtype="float32"):
    x = nd.array(logits, dtype=dtype)
    x.attach_grad()
    with autograd.record():
        total = loss(x, nd.array(labels))
    total.backward()
    return total.asscalar(), x.grad.asnumpy()


@pytest.fixture(params=[1 << 20, 50, 1], ids=["whole", "strips of two rows", "of one row"])
def strips(request, monkeypatch):
    monkeypatch.setattr(pixel_loss, "_NUMBERS", {"cpu": request.param})
    monkeypatch.setattr(pixel_loss, "_COLUMNS", max(1, request.param // 10))


def test_loss_and_gradient_equal_the_numpy_twin(strips):
    loss, (logits, labels) = PixelCrossEntropy(), example()
    total, gradient = gradient_of(loss, logits, labels)
    assert total == pytest.approx(cross_entropy(logits, labels).sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, cross_entropy_gradient(logits, labels), atol=ATOL)


@pytest.mark.parametrize("size", [(5, 6), (17, 11), (9, 24), (1, 6), (3, 2)])
def test_logits_are_enlarged_as_by_the_operator(size, strips):
    """The twin enlarges by MXNet's operator and has MXNet's gradient of it."""
    rng = np.random.RandomState(1)
    logits, labels = example()[0], rng.randint(-1, 4, (2, *size))
    x = nd.array(logits)
    x.attach_grad()
    with autograd.record():
        enlarged = nd.contrib.BilinearResize2D(x, height=size[0], width=size[1])
    enlarged.backward(nd.array(cross_entropy_gradient(enlarged.asnumpy().astype(float), labels)))
    total, gradient = gradient_of(PixelCrossEntropy(), logits, labels)
    assert total == pytest.approx(cross_entropy(enlarged.asnumpy(), labels).sum(), rel=1e-4)
    np.testing.assert_allclose(gradient, x.grad.asnumpy(), atol=2e-5)


def test_value_needs_no_recording_and_the_gradient_follows_what_arrives():
    loss, (logits, labels) = PixelCrossEntropy(), example()
    total, gradient = gradient_of(loss, logits, labels)
    assert loss(nd.array(logits), nd.array(labels)).asscalar() == total
    _, thrice = gradient_of(lambda *arrays: 3 * loss(*arrays), logits, labels)
    np.testing.assert_allclose(thrice, 3 * gradient, rtol=1e-6)


def test_hopeless_pixels_have_the_exact_gradient_and_a_finite_loss():
    logits, labels = np.zeros((1, 3, 1, 2)), np.array([[[1, 2]]])
    logits[0, :, 0, 0] = 500, -500, 0
    total, gradient = gradient_of(PixelCrossEntropy(), logits, labels)
    assert total == pytest.approx(-np.log(np.finfo(np.float32).tiny) + np.log(3), rel=1e-5)
    np.testing.assert_allclose(gradient[0, :, 0, 0], (1, -1, 0), atol=1e-7)


def test_what_is_not_finite_is_not_hidden():
    logits, labels = example()
    logits[0, 1, 2, 3], labels[0, 2, 3] = np.nan, 1
    assert np.isnan(gradient_of(PixelCrossEntropy(), logits, labels)[0])


def test_half_precision_logits_are_summed_up_in_float32():
    logits, labels = example()
    total, gradient = gradient_of(PixelCrossEntropy(), logits, labels, "float16")
    assert total.dtype == np.float32 and gradient.dtype == np.float16
    assert total == pytest.approx(cross_entropy(logits, labels).sum(), rel=1e-3)
    np.testing.assert_allclose(gradient, cross_entropy_gradient(logits, labels), atol=2e-3)
    logits[0, :, 0, 0] = 1e4, 6e4, 6e4, 6e4         # sums of them are beyond float16
    assert np.isfinite(gradient_of(PixelCrossEntropy(), logits, labels, "float16")[0])


@pytest.mark.parametrize("options", [{}, {"easy": 0.5, "keep": 3}])
def test_ignored_pixels_have_exactly_zero_gradient(options, strips):
    loss, (logits, labels) = PixelCrossEntropy(**options), example()
    _, gradient = gradient_of(loss, logits, labels)
    assert (gradient.transpose(0, 2, 3, 1)[labels < 0] == 0).all()
    total, gradient = gradient_of(loss, logits, np.full_like(labels, -1))
    assert total == 0 and (gradient == 0).all()


@pytest.mark.parametrize("easy, keep", [(0.3, 1), (0.3, 12), (0.9, 30), (0.01, 5)])
def test_mining_keeps_hard_pixels_and_the_hardest_of_each_image(easy, keep, strips):
    loss, (logits, labels) = PixelCrossEntropy(easy, keep), example()
    losses = cross_entropy(logits, labels)
    kept = np.zeros_like(labels, bool)
    for number, image in enumerate(losses):
        hardest = np.sort(image.ravel())[-keep]
        kept[number] = (image >= min(hardest, -np.log(easy))) & (labels[number] >= 0)
    total, gradient = gradient_of(loss, logits, labels)
    assert total == pytest.approx(losses[kept].sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, np.where(
        kept[:, None], cross_entropy_gradient(logits, labels), 0), atol=ATOL)


@pytest.mark.parametrize("options", [{"easy": 1.0}, {"easy": 0.5, "keep": 0}])
def test_impossible_mining_is_refused(options):
    with pytest.raises(ValueError, match="0 < easy < 1 and keep >= 1"):
        PixelCrossEntropy(**options)


def name_classes(root, *names, split=None):
    (root / (f"{split}.classes.txt" if split else "classes.txt")).write_text("\n".join(names))


def test_train_and_val_must_have_the_same_classes(folder, tmp_path):
    for split in ("train", "val"):
        list(pack_masks(open_segmentation("folder", folder, split, classes=3),
                        tmp_path / f"{split}.rec"))
    name_classes(tmp_path, "sky", "road", "tree", split="train")
    name_classes(tmp_path, "sky", "tree", "road", split="val")
    shutil.copy(folder / "net.params", tmp_path)
    with pytest.raises(UserError, match="class 1 is 'road' in train and 'tree' in val; number "):
        make_task(tmp_path, connect({}))


@pytest.mark.parametrize("words", [(), ("--eval-only",)])
def test_a_run_goes_on_only_with_the_classes_it_began_with(folder, tmp_path, words):
    shutil.copytree(folder, tmp_path / "pairs")
    name_classes(tmp_path / "pairs", "sky", "tree", "road")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    name_classes(tmp_path / "run", "sky", "road", "tree")
    with pytest.raises(UserError, match="other classes .class 1: 'road' there, 'tree' now"):
        make_task(tmp_path / "pairs", connect({}), *words, workdir=tmp_path / "run")


def test_auxiliary_weight_acts(folder):
    """Gradients for 0, .5 and 5 are g + w h, of one g and one h."""
    gradients = {}
    for weight in (0, 0.5, 5):
        task = make_task(folder, connect({}), "--aux-weight", weight)
        with autograd.record():
            loss = sum(task.losses(next(task.batches(0))).values())
        loss.backward()
        gradients[weight] = {name: param.grad().asnumpy() for name, param in
                             task.net._collect_params_with_prefix().items()
                             if name in ("auxlayer.block.4.weight", "layer3.0.conv1.weight",
                                         "head.block.4.weight")}
    aux, shared, head = ("auxlayer.block.4.weight", "layer3.0.conv1.weight", "head.block.4.weight")
    assert (gradients[0][aux] == 0).all()
    np.testing.assert_allclose(gradients[5][aux], 10 * gradients[0.5][aux], rtol=1e-4)
    np.testing.assert_allclose(gradients[5][head], gradients[0][head], rtol=1e-4, atol=1e-7)
    slope = 2 * (gradients[0.5][shared] - gradients[0][shared])
    assert abs(slope).max() > 1e-5
    np.testing.assert_allclose(gradients[5][shared], gradients[0][shared] + 5 * slope, rtol=1e-2,
                               atol=1e-2 * abs(slope).max())


def test_an_all_ignored_batch_changes_nothing_but_is_finite(folder):
    task = make_task(folder, connect({}))
    images, labels, _ = next(task.batches(0))
    with autograd.record():
        losses = task.losses((images, nd.full(labels.shape, -1), nd.full((6,), 1 / 6)))
        sum(losses.values()).backward()
    assert [value.asscalar() for value in losses.values()] == [0, 0]
    assert all((param.grad() == 0).min().asscalar() for param in task.params.values()
               if param.grad_req != "null")


def test_statistics_are_recomputed_before_an_evaluation(folder):
    """Also after a step, when the network has graphs."""
    task = make_task(folder, connect({}), "--precise-bn-batches", 2, "--eval-scales", "1")
    for stepped in (False, True):
        if stepped:
            task.update.step(task.losses, next(task.batches(0)), 0.1)
        means = [param for name, param in task.params.items() if name.endswith("running_mean")]
        for mean in means:          # far from what a moving average could mend in two batches
            mean.set_data(nd.full(mean.shape, 1e6))
        task.evaluate()
        assert all(abs(mean.data().asnumpy()).max() < 1e3 for mean in means)
    task.close()


def test_heads_learn_faster(folder):
    task = make_task(folder, connect({}))
    factors = {name: param.lr_mult for name, param in
               task.net._collect_params_with_prefix().items()}
    assert factors["head.block.4.weight"] == factors["auxlayer.block.4.bias"] == 10
    assert {value for name, value in factors.items()
            if not name.startswith(("head.", "auxlayer."))} == {1}
    assert task.lr_at(0) == 0.02 and task.lr_at(task.steps_per_epoch) == 0


def test_memory_of_adam_is_the_recipes(folder):
    task = make_task(folder, connect({}), "--optimizer", "adam", "--beta2", 0.98)
    rule = task.update._trainer._optimizer
    assert (type(rule).__name__, rule.beta2) == ("Adam", 0.98)


# Command line -------------------------------------------------------------------------------------

def run(capsys, *words):
    code = 0
    try:
        cli.main(RECIPES, Segmentation, [str(word) for word in words])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


def test_a_run_trains_evaluates_and_is_continued(capsys, folder, tmp_path):
    words = ["--root", folder, "--workdir", tmp_path / "run", "--data-workers", 0, "--epochs", 2,
             "--batch", 4, "--eval-scales", "1", "--log-every", 1]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "mIoU" in out and "7 images" in out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert 0 <= result["measured"]["miou"] <= 100
    code, out, _ = run(capsys, *words, "--eval-only")
    assert code == 0
    again = json.loads((tmp_path / "run/evaluation.json").read_text())["measured"]
    assert again == result["measured"]


@pytest.mark.parametrize("words, message", [
    ([], "--root DIR is missing"), (["--root", "nowhere"], "no folder nowhere"),
    (["--network", "resnest50", "--data", "synthetic"], "is no segmentation network"),
    (["--network", "deeplab_resnest51", "--data", "synthetic"], "deeplab_resnest51"),
    (["--eval-scales", "1,many"], "eval_scales must be positive numbers"),
    (["--eval-scales", "1,0"], "eval_scales must be positive numbers"),
    (["--eval-scales", "0.5,nan"], "eval_scales must be positive numbers"),
    (["--eval-scales", "inf"], "eval_scales must be positive numbers"),
    (["--scale-low", "3"], "must not exceed scale_high"),
    (["--output-stride", "32"], "one of 8, 16"),
    (["--data", "synthetic", "--eval-batch", "0"], "--eval-batch must be at least 1, got 0"),
    (["--warmup-epochs", "9"], "must be smaller than epochs")])
def test_mistakes_are_one_sentence(capsys, tmp_path, words, message):
    code, _, err = run(capsys, *words, "--workdir", tmp_path / "run")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and message in errors[0] and "Traceback" not in err, err


def test_published_target_counts_for_the_published_evaluation_only():
    recipe = dataclasses.replace(RECIPES["tiny"], expect_miou=45.0)
    assert recipe.expected == 45.0
    assert dataclasses.replace(recipe, eval_scales="1").expected is None
    assert dataclasses.replace(recipe, eval_flip=False).expected is None


if __name__ == "__main__":
    work(sys.argv[1])

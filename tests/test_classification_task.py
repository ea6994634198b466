"""The classification task: schedule, ramps, mixed batches, exact counts on many workers."""
import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from horovod_job import launch
from mxnet import nd
from PIL import Image

from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.data import mixing, packing
from gluon_resnest.data.loader import Batch
from gluon_resnest.data.recordio import RecordFile
from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.errors import UserError
from gluon_resnest.models.dropblock import DropBlock
from gluon_resnest.models.norm import STAGES
from gluon_resnest.tasks.classification import Classification
from gluon_resnest.zoo import VARIANTS

RECIPE = ClassificationRecipe(
    network="resnest_tiny", source="a test", classes=5, epochs=10, batch=4, warmup_epochs=2.0,
    crop_px=32, eval_px=40, auto_augment="none")
RUN = argparse.Namespace(data="synthetic", synthetic_steps=3, data_workers=0, device="cpu",
                         weights=None, eval_only=False, workdir=None, eval_batch=2,
                         rec_train=None, rec_val=None, teacher_weights=None)


def make_task(recipe=RECIPE, comm=None, **run):
    return Classification(recipe, argparse.Namespace(**{**vars(RUN), **run}), comm or Comm())


def random_batch(epoch=0, count=4, seed=0):
    random = np.random.RandomState(seed)
    return Batch((random.randn(count, 3, 8, 12).astype("float32"),
                  random.randint(0, 5, count).astype("int64")), np.arange(count), epoch, 0)


def test_lr_equals_the_closed_formula_at_every_step():
    task = make_task()
    peak, warm, total = 0.1 * 4 / 256, 2 * 3, 10 * 3
    for step in range(total + 1):
        expected = peak * step / warm if step < warm else \
            peak / 2 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        assert task.lr_at(step) == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert task.lr_at(0) == 0 and task.lr_at(total) == 0


def test_no_decay_on_gamma_beta_bias_unless_asked():
    for everything in (False, True):
        task = make_task(dataclasses.replace(RECIPE, decay_bias_and_norm=everything))
        for name, parameter in task.params.items():
            spared = name.endswith(("gamma", "beta", "bias")) and not everything
            assert parameter.wd_mult == (0 if spared else 1), name


def test_last_gammas_start_at_zero():
    task = make_task()
    gammas = [parameter for name, parameter in task.net._collect_params_with_prefix().items()
              if name.endswith("bn3.gamma")]
    assert len(gammas) == 4 and all(not gamma.data().asnumpy().any() for gamma in gammas)


def test_dropblock_ramps_linearly_to_its_end():
    task, seen = make_task(), []
    for epoch in range(RECIPE.epochs):
        task.on_epoch(epoch)
        blocks = []
        task.net.apply(lambda block: blocks.append(block) if isinstance(block, DropBlock) else 0)
        assert len({block._p for block in blocks}) == 1
        seen.append(blocks[0]._p)
    np.testing.assert_allclose(seen, 0.1 * np.arange(1, 11) / 10)


def test_dropblock_rule_and_mask_reach_the_blocks():
    task = make_task(dataclasses.replace(RECIPE, dropblock_rule="exact", dropblock_mask="sample"))
    blocks = []
    task.net.apply(lambda block: blocks.append(block) if isinstance(block, DropBlock) else 0)
    assert blocks and all(block._rule == "exact" and block._per_sample for block in blocks)


@pytest.mark.parametrize("mode", ["batch", "example"])
def test_mixed_batch_equals_its_numpy_twin(mode):
    batch = random_batch()
    images, targets = make_task(dataclasses.replace(RECIPE, mixup_mode=mode)).on_device(batch)
    lam, partner = mixing.mixup_plan(0, 0, batch.indices, 0.2, mode)
    x = batch.arrays[0]
    expected = [share * own + (1 - share) * x[mate] for share, own, mate in zip(lam, x, partner)]
    np.testing.assert_allclose(images.asnumpy(), expected, atol=1e-6)
    assert abs(images.asnumpy() - x).max() > 0.1
    expected = mixing.soft_targets(batch.arrays[1], lam, partner, 5, 0.1)
    np.testing.assert_array_equal(targets.asnumpy(), expected)


def test_examples_are_mixed_alike_whatever_the_number_of_workers():
    task = make_task(dataclasses.replace(RECIPE, mixup_mode="example"))
    batch = random_batch()
    parts = [task.on_device(batch._replace(arrays=tuple(each[own] for each in batch.arrays),
                                           indices=batch.indices[own]))
             for own in (slice(0, 2), slice(2, 4))]
    for whole, *pieces in zip(task.on_device(batch), *parts):
        np.testing.assert_array_equal(nd.concat(*pieces, dim=0).asnumpy(), whole.asnumpy())


@pytest.mark.parametrize("mode", ["batch", "example"])
def test_cutmix_pastes_the_partners_pixels(mode):
    recipe = dataclasses.replace(RECIPE, mixup_alpha=0.0, cutmix_alpha=1.0, mixup_mode=mode)
    batch = random_batch()
    images, targets = make_task(recipe).on_device(batch)
    boxes, lam, partner = mixing.cutmix_plan(0, 0, batch.indices, 1.0, 8, 12, mode)
    x = batch.arrays[0]
    slow = x.copy()
    for number, (top, left, bottom, right) in enumerate(boxes):
        slow[number, :, top:bottom, left:right] = x[partner[number], :, top:bottom, left:right]
    np.testing.assert_allclose(images.asnumpy(), slow, atol=1e-6)
    assert (slow != x).any()
    expected = mixing.soft_targets(batch.arrays[1], lam, partner, 5, 0.1)
    np.testing.assert_array_equal(targets.asnumpy(), expected)


@pytest.mark.parametrize("numbers", [[0, 0], [0, 1, 1], [0]])
def test_each_image_counts_exactly_once(numbers, monkeypatch):
    task = make_task(synthetic_steps=4)
    assert len(task._val.dataset) == 2
    batch = random_batch(count=len(numbers))._replace(indices=np.array(numbers))
    monkeypatch.setattr(task, "scored", lambda *_: [(batch, np.eye(5)[batch.arrays[1]])])
    with pytest.raises(RuntimeError, match=f"saw {len(numbers)} images of 2"):
        task.evaluate()


def test_the_last_epochs_can_be_unmixed():
    recipe = dataclasses.replace(RECIPE, mixup_off_epochs=1, label_smoothing=0.0)
    task = make_task(recipe)
    unmixed, mixed = random_batch(epoch=9), random_batch(epoch=8)
    images, targets = task.on_device(unmixed)
    np.testing.assert_array_equal(images.asnumpy(), unmixed.arrays[0])
    np.testing.assert_array_equal(targets.asnumpy().argmax(1), unmixed.arrays[1])
    assert (task.on_device(mixed)[0].asnumpy() != mixed.arrays[0]).any()


def test_batches_continue_where_a_run_stopped():
    task = make_task()
    whole = [targets.asnumpy() for (_, targets), _ in zip(task.batches(0), range(5))]
    rest = [targets.asnumpy() for (_, targets), _ in zip(task.batches(4), range(1))]
    np.testing.assert_array_equal(whole[4], rest[0])


def test_every_parameter_gets_a_gradient():
    task = make_task(dataclasses.replace(RECIPE, last_gamma=False))
    batch = next(task.batches(0))
    with mx.autograd.record():
        loss = task.losses(batch)["loss"]
    loss.backward()
    for name, parameter in task.params.items():
        if parameter.grad_req != "null":
            assert np.isfinite(parameter.grad().asnumpy()).all(), name
            assert parameter.grad().asnumpy().any(), name


@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_frozen_stages_stay_bit_for_bit_and_the_others_learn(stages):
    task = make_task(dataclasses.replace(RECIPE, freeze_stages=stages, last_gamma=False, lr=0.1,
                                         warmup_epochs=0.0, wd=0.1))
    params = task.net._collect_params_with_prefix()
    before = {name: parameter.data().asnumpy().copy() for name, parameter in params.items()}
    for batch, _ in zip(task.batches(0), range(2)):
        task.update.step(task.losses, batch, 0.1)
    nd.waitall()
    frozen = [part for parts in STAGES[:stages] for part in parts]
    for name, parameter in params.items():
        same = np.array_equal(parameter.data().asnumpy(), before[name])
        assert same is (name.split(".")[0] in frozen), name


def test_drawn_images_that_are_evaluated_are_not_those_of_training():
    task = make_task(dataclasses.replace(RECIPE, eval_px=32))
    train, held = (loader.dataset[0, None][0] for loader in (task._train, task._val))
    assert train.shape == held.shape and (train != held).any()


def test_evaluation_counts_every_image():
    task = make_task()
    metrics = task.evaluate()
    logits = np.concatenate([task.net(nd.array(batch.arrays[0])).asnumpy()
                             for batch in task._val.epoch(0)])
    labels = np.concatenate([batch.arrays[1] for batch in task._val.epoch(0)])
    assert metrics["images"] == len(labels) == 1
    assert metrics["top1_hits"] == (logits.argmax(1) == labels).sum()


def test_evaluation_alone_suits_any_number_of_workers():
    class Three(Comm):
        size = 3

        def total(self, values):
            return values + [0, 0, 2, 1 + 2]    # what the two others, of an image each, saw

    recipe = dataclasses.replace(RECIPE, teacher="resnest_tiny")
    task = make_task(recipe, Three(), eval_only=True, synthetic_steps=6)
    assert recipe.batch % 3 and task.evaluate()["images"] == 3


def test_held_out_images_are_evaluated_and_never_trained_on(tmp_path):
    for label in range(5):
        (tmp_path / str(label)).mkdir()
        for number in range(4):
            Image.new("RGB", (40, 36), (50 * label, 9 * number, 0)).save(
                tmp_path / f"{label}/{number}.png")
    recipe = dataclasses.replace(RECIPE, hold_out=5)
    task = make_task(recipe, data="real", rec_train=str(tmp_path))
    train, held = (({loader.dataset.name(index) for index in range(len(loader.dataset))})
                   for loader in (task._train, task._val))
    assert len(held) == 5 and len(train) == 15 and not train & held
    assert task.evaluate()["images"] == 5


def test_records_are_read_once_to_tell_what_is_held_out(tmp_path, monkeypatch):
    for label in range(5):
        (tmp_path / str(label)).mkdir()
        for number in range(4):
            Image.new("RGB", (40, 36)).save(tmp_path / f"{label}/{number}.png")
    items, names = packing.folder_items(tmp_path)
    packing.pack(items, tmp_path, tmp_path / "train.rec", class_names=names)
    seen, read = [], RecordFile.read
    monkeypatch.setattr(RecordFile, "read", lambda *args: seen.append(args[1]) or read(*args))
    recipe = dataclasses.replace(RECIPE, hold_out=5, class_weights="balanced")
    task = make_task(recipe, data="real", rec_train=str(tmp_path / "train.rec"))
    task.open_training(task._run)
    assert seen[:20] == list(range(20)) and len(seen) == 20 + 3    # a loader looks at one image
    held = task._val.dataset
    assert len(held) == 5 and not set(held.indices) & set(task._train.dataset.indices)
    assert (held.indices == make_task(recipe, data="real", eval_only=True, rec_train=str(
        tmp_path / "train.rec"))._val.dataset.indices).all()


@pytest.mark.parametrize("kind", ["training", "run"])
def test_records_of_other_classes_are_not_evaluated(tmp_path, kind):
    for name, classes in (("train", "abcde"), ("val", "bcdea")):
        for each in classes:
            (tmp_path / name / each).mkdir(parents=True)
            Image.new("RGB", (40, 36)).save(tmp_path / name / each / "x.png")
        items, _ = packing.folder_items(tmp_path / name, list(classes))
        packing.pack(items, tmp_path / name, tmp_path / f"{name}.rec", class_names=list(classes))
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    paths = dict(rec_train=str(tmp_path / "train.rec"), rec_val=str(tmp_path / "val.rec"))
    how = dict(eval_only=True, workdir=str(tmp_path)) if kind == "run" else {}
    with pytest.raises(UserError, match="val.rec numbers other classes .*class 0 is 'b', expected "
                                        "'a'.; pack it with --classes"):
        make_task(data="real", **paths, **how)
    assert make_task(data="real", **{**paths, "rec_val": paths["rec_train"]}, **how)


def test_lost_images_are_an_error_with_both_numbers():
    class Lossy(Comm):
        def total(self, values):
            return values - 1

    with pytest.raises(RuntimeError, match="saw 0 images of 1"):
        make_task(comm=Lossy()).evaluate()


def test_a_teacher_without_parameters_is_refused():
    with pytest.raises(ValueError, match="--teacher-weights FILE"):
        make_task(dataclasses.replace(RECIPE, teacher="resnest_tiny"))


def test_distillation_learns_from_the_teacher(tmp_path):
    file = str(tmp_path / "teacher.params")
    make_task().net.save_parameters(file)
    recipe = dataclasses.replace(RECIPE, teacher="resnest_tiny", hard_weight=0.0, temperature=2.0)
    task = make_task(recipe, teacher_weights=file)
    batch = next(task.batches(0))
    loss = task.losses(batch)["loss"].asscalar()
    taught = nd.softmax(task._teacher(batch[0]) / 2)
    logits = task.net(batch[0]) / 2
    expected = -4 * (taught * nd.log_softmax(logits)).sum(axis=1).mean().asscalar()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_recipes_evaluate_as_the_weights_table_says():
    from test_cli import RECIPES
    for name, recipe in RECIPES.items():
        weights = VARIANTS[recipe.network].weights
        if weights is not None and "@" not in name:
            assert recipe.eval_px == weights.crop_px, name
            assert recipe.eval_protocol == weights.protocol, name
            assert recipe.expect_top1 == pytest.approx(weights.top1, abs=0.03), name


def test_every_recipe_names_a_network_and_a_source():
    from test_cli import RECIPES
    for name, recipe in RECIPES.items():
        assert recipe.network in VARIANTS, name
        assert recipe.source, name
        # What only starts the baselines of other tasks has no published accuracy.
        assert (recipe.expect_top1 is None) == recipe.source.startswith("backbone of the"), name


def worker(folder):
    """One Horovod worker of the test below: trains a step, then evaluates 10 images."""
    comm = connect()
    recipe = dataclasses.replace(RECIPE, batch=6, epochs=3)
    task = make_task(recipe, comm, synthetic_steps=14, eval_batch=2)
    nd.waitall()
    (Path(folder) / f"{comm.rank}.json").write_text(json.dumps(task.evaluate()))
    comm.shutdown()


@pytest.mark.horovod
@pytest.mark.parametrize("workers", [2, 3])
def test_evaluation_is_the_same_on_any_number_of_workers(workers, tmp_path):
    recipe = dataclasses.replace(RECIPE, batch=6, epochs=3)
    alone = make_task(recipe, synthetic_steps=14).evaluate()
    assert alone["images"] == 10
    code, output, results = launch(workers, __file__, tmp_path)
    assert code == 0, output
    assert results == [alone] * workers


if __name__ == "__main__":
    worker(sys.argv[1])


@pytest.mark.parametrize("field", ["crop_px", "eval_px"])
def test_images_too_small_for_the_network_are_refused_before_training(field):
    with pytest.raises(UserError, match=rf"{field} \(=16\) leaves resnest_tiny a map too small"):
        make_task(dataclasses.replace(RECIPE, **{field: 16}))

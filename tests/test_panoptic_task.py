"""The panoptic task: training, exact evaluation, its files, its mistakes, export and drawing."""
import argparse
import dataclasses
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mxnet import autograd
from test_detection_task import RUN as DETECTION_RUN
from test_detection_task import set_parameters

from gluon_resnest import cli
from gluon_resnest.config import DetectionRecipe, PanopticRecipe
from gluon_resnest.data.instances import ground_truth
from gluon_resnest.data.landscapes import ShapeLandscapes
from gluon_resnest.data.panoptic import described, png, read_panoptic, write_panoptic
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.plan import Cluster
from gluon_resnest.errors import UserError
from gluon_resnest.interop import panoptic as interop
from gluon_resnest.interop.panoptic_drawing import inner_pixel, outlines
from gluon_resnest.interop.weights import save_parameters
from gluon_resnest.models.detection.merging import Segment
from gluon_resnest.tasks import detection_data, panoptic
from gluon_resnest.tasks.panoptic import PanopticSegmentation
from gluon_resnest.tasks.panoptic_quality import count, quality
from gluon_resnest.tasks.workload import detection_workload, panoptic_workload

ROOT = Path(__file__).resolve().parents[1]
RECIPE = PanopticRecipe(
    network="panoptic_fpn_resnest_tiny_coco", source="a test", classes=2, stuff=3, norm="batch",
    frozen_stages=0, box_head="2fc", mask_convs=1, channels=8, fc_channels=16,
    semantic_channels=4, roi_samples=8, proposals=16, detections=6, confidence=0.1, stuff_area=20,
    unit="epochs", length=2, milestones="1", warmup_iterations=0, batch=2, lr=1e-3, short_px="64",
    max_px=96, eval_px=64, eval_every=1)
RUN = argparse.Namespace(**vars(DETECTION_RUN), train_panoptic=None, val_panoptic=None)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(detection_data, "HELD_OUT", 4)


def make_task(recipe=RECIPE, comm=None, **run):
    task = PanopticSegmentation(recipe, argparse.Namespace(**{**vars(RUN), **run}), comm or Comm())
    if task.net is not None:
        set_parameters(task.net)
    return task


def test_the_expected_value_is_that_of_the_evaluation():
    recipe = dataclasses.replace(RECIPE, expect_pq=47.9, expect_ap=51.0)
    assert recipe.expected == 47.9
    assert dataclasses.replace(recipe, eval_scales="64").expected is None
    assert dataclasses.replace(recipe, expect_on="test-dev").expected is None


# ---- evaluation ---------------------------------------------------------------------------------

class Part(Comm):
    """Worker `rank` of `size`, alone in this process; `others` is what the workers gather."""

    def __init__(self, rank, size, others=None):
        self.rank, self.size, self._others = rank, size, others

    def gather(self, value):
        if self._others is None:
            raise Gathered(value)
        return self._others


class Gathered(Exception):
    pass


def of_workers(size, workdir):
    """Returns what `size` workers find together."""
    shares, options = [], {"eval_only": True, "workdir": str(workdir)}
    for rank in range(size):
        with pytest.raises(Gathered) as caught:
            make_task(comm=Part(rank, size), **options).evaluate()
        shares.append(caught.value.args[0])
    return make_task(comm=Part(0, size, shares), **options).evaluate()


def test_many_workers_are_one_and_the_files_are_what_was_judged(tmp_path):
    alone = make_task(workdir=str(tmp_path / "1")).evaluate()
    for size in (2, 3):
        assert of_workers(size, tmp_path / str(size)) == alone
        for name in ("panoptic.json", "quality.json"):
            assert (tmp_path / f"{size}" / name).read_text() == (tmp_path / "1" / name).read_text()
    assert {"pq", "sq", "rq", "things_pq", "stuff_rq", "ap", "mask_ap", "images"} <= set(alone)
    assert alone["images"] == 4 and "PQ" in PanopticSegmentation.describe(alone)
    # The files alone give the same numbers.
    files, source = read_panoptic(tmp_path / "1/panoptic.json"), ShapeLandscapes(
        4, (64, 80), 2, split="held-out")
    known = files.categories()
    assert [row["name"] for row in known.values()] == ["disc", "square", "sky", "water", "ground"]
    metrics, _ = quality([count(source.panoptic(index), files.read(index + 1, known))
                          for index in range(4)],
                         {number: bool(row["isthing"]) for number, row in known.items()})
    assert metrics == {name: alone[name] for name in metrics}
    assert sum(len(files.read(number, known).segments) for number in files.image_ids) > 4


def test_views_at_several_scales_and_mirrors_are_evaluated():
    recipe = dataclasses.replace(RECIPE, eval_scales="48,64", eval_flip=True)
    assert make_task(recipe, eval_only=True).evaluate()["images"] == 4


# ---- training -----------------------------------------------------------------------------------

def test_a_step_changes_the_semantic_head_and_all_losses_are_there():
    task = make_task()
    before = task.net.semantic.logits.weight.data().asnumpy()
    batch = next(task.batches(0))
    with autograd.record():
        losses = task.losses(batch)
    assert set(losses) == {"rpn_class", "rpn_box", "class", "box", "mask", "semantic"}
    task.update.step(task.losses, batch, 1e-2)
    assert (task.net.semantic.logits.weight.data().asnumpy() != before).any()
    assert batch[4].shape == (2, *batch[0].shape[2:])


def run(capsys, *words):
    """Runs the command line in this process; returns (exit code, stdout, stderr)."""
    code = 0
    try:
        cli.main({"a": RECIPE}, PanopticSegmentation, [str(word) for word in words])
    except SystemExit as exit:
        code = exit.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def coco(tmp_path):
    """Four drawn landscapes in COCO's layout."""
    source = ShapeLandscapes(4, (64, 80), 2)
    truth = ground_truth(source)
    categories = [{"id": int(number), "name": name, "isthing": int(number < 3)}
                  for number, name in zip(range(1, 6), source.class_names + source.stuff_names)]
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        rows, pngs = [], []
        for index, image in enumerate(truth["images"]):
            image["file_name"] = f"{image['id']}.png"
            cv2.imwrite(str(tmp_path / f"{split}2017" / image["file_name"]),
                        source.read(index)[:, :, ::-1])
            found = source.panoptic(index)
            rows.append({"image_id": image["id"], "file_name": image["file_name"],
                         "segments_info": found.segments})
            pngs.append((image["file_name"], png(found.ids)))
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(truth))
        write_panoptic(tmp_path / f"annotations/panoptic_{split}2017.json", {
            "images": truth["images"], "categories": categories, "annotations": rows}, pngs)
    return tmp_path


def test_a_run_on_files_trains_and_its_truth_judged_as_results_is_perfect(capsys, tmp_path, coco):
    code, out, err = run(capsys, "--root", coco, "--workdir", tmp_path / "run", "--data-workers",
                         "0", "--log-every", "1", "--length", "1", "--milestones", "")
    assert code == 0 and "PQ" in out and "box AP" in out and "4 images" in out, err
    assert (tmp_path / "run/classes.txt").read_text().split() == [
        "disc", "square", "sky", "water", "ground"]
    code, out, err = run(capsys, "--root", coco, "--eval-only", "--workdir", tmp_path / "judged",
                         "--results", coco / "annotations/panoptic_val2017.json")
    assert code == 0 and "PQ 100.00 % (SQ 100.00, RQ 100.00), things PQ 100.00" in out, err
    assert json.loads((tmp_path / "judged/quality.json").read_text())["sky"]["pq"] == 100


def test_mistakes_are_sentences(capsys, tmp_path, coco):
    val = coco / "annotations/panoptic_val2017.json"
    content = json.loads(val.read_text())

    def changed(name, change):
        values = json.loads(json.dumps(content))
        change(values)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(values))
        (tmp_path / name).symlink_to(val.with_suffix(""))
        return ["--eval-only", "--results", file, "--root", coco]

    for words, sentence in (
            (["--workdir", tmp_path / "run"], "--root DIR is missing"),
            (["--workdir", tmp_path / "run", "--root", coco, "--stuff", "4"],
             "have 3 kinds of stuff, the recipe 4; give --stuff 3"),
            (["--workdir", tmp_path / "run", "--root", coco, "--network",
              "mask_rcnn_fpn_resnest_tiny_coco"], "is no panoptic network"),
            (["--workdir", tmp_path / "run", "--root", coco, "--pick", "3"],
             "pick is not offered"),
            (["--smoke", "--stuff", "2"], "drawn pictures have 3 kinds of stuff"),
            (changed("empty", lambda values: values["annotations"].clear()),
             "predicts nothing, its list of annotations is empty"),
            (changed("lacking", lambda values: values["annotations"].pop()),
             "lacking.json has no prediction for"),
            (changed("unknown", lambda values: values["annotations"][0]["segments_info"][0].update(
                category_id=77)), "has category 77, which is not among the 5 known")):
        code, _, err = run(capsys, *words)
        assert code == 2 and sentence in err and "Traceback" not in err, err


def test_train_and_val_have_the_same_kinds_of_stuff(capsys, tmp_path, coco):
    file = coco / "annotations/panoptic_val2017.json"
    file.write_text(file.read_text().replace('"sky"', '"cloud"'))
    code, _, err = run(capsys, "--root", coco, "--workdir", tmp_path / "run")
    assert code == 2 and "category 3 ('sky') of train is category 3 ('cloud') in val" in err, err


def test_results_of_another_size_are_a_sentence(capsys, tmp_path, coco):
    files, rows, pngs = read_panoptic(coco / "annotations/panoptic_val2017.json"), [], []
    for image_id in files.image_ids:
        truth = files.read(image_id, files.categories())
        cut = described(truth.ids[:-1], {row["id"]: row["category_id"] for row in truth.segments})
        rows.append({"image_id": image_id, "file_name": f"{image_id}.png",
                     "segments_info": cut.segments})
        pngs.append((f"{image_id}.png", png(cut.ids)))
    write_panoptic(tmp_path / "found.json", {"annotations": rows}, pngs)
    code, _, err = run(capsys, "--root", coco, "--eval-only", "--results", tmp_path / "found.json")
    assert code == 2 and "63 x 80 pixels (height x width), but its annotation 64 x 80" in err, err


def test_unknown_kinds_beyond_the_data_get_numbers_nobody_knows():
    task = make_task(dataclasses.replace(RECIPE, classes=7, stuff=5))
    (things, stuff), known = task._numbers(), set(task._things())
    assert len({*things, *stuff}) == 7 + 5
    assert not known & {*things[5:], *stuff[3:]} and known == {*things[:5], *stuff[:3]}
    assert task.class_names is None


def test_a_plan_counts_the_semantic_head():
    cluster = Cluster(images=100, workers=1, images_per_second=1)
    fields = {field.name: getattr(RECIPE, field.name)
              for field in dataclasses.fields(DetectionRecipe)}
    alone = detection_workload(DetectionRecipe(**{
        **fields, "network": "mask_rcnn_fpn_resnest_tiny_coco"}), cluster)
    made = panoptic_workload(RECIPE, cluster)
    # 4 channels on 8: convolutions of 1, 1, 2 and 3 on the levels with their norms, 4 classes.
    convolutions = 9 * 4 * (4 * 8 + 3 * 4)
    assert made.parameters - alone.parameters == convolutions + 7 * 2 * 4 + 4 * 4 + 4
    assert made.activation_bytes > alone.activation_bytes
    assert made.steps_per_epoch == alone.steps_per_epoch == 50


# ---- export and drawing -------------------------------------------------------------------------

def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_is_exported_and_its_segments_are_told_and_drawn(capsys, tmp_path):
    code, _, err = run(capsys, "--data", "synthetic", "--synthetic-steps", "1", "--workdir",
                       tmp_path / "run", "--data-workers", "0", "--length", "1", "--milestones",
                       "")
    assert code == 0, err
    save_parameters(make_task().net, tmp_path / "net.params")
    tool("export_model").main([str(tmp_path / "run"), "--weights", str(tmp_path / "net.params"),
                               "--out", str(tmp_path / "out")])
    assert "2 classes of things, 3 of stuff" in capsys.readouterr().out
    card = interop.read_card(tmp_path / "out")
    assert card.class_names == ("disc", "square", "sky", "water", "ground")
    assert card.rules == (0.1, 0.5, 20)
    cv2.imwrite(str(tmp_path / "a.png"), ShapeLandscapes(1, (64, 80)).read(0)[:, :, ::-1])
    words = [str(tmp_path / "out"), str(tmp_path / "a.png"), "--threshold", "0.1"]
    tool("predict").main([*words, "--json", "--save", str(tmp_path / "drawn.png")])
    answer, = json.loads(capsys.readouterr().out)
    assert answer["problem"] is None and answer["segments"]
    assert {row["name"] for row in answer["segments"]} <= set(card.class_names)
    assert sum(row["area"] for row in answer["segments"]) <= 64 * 80
    assert (tmp_path / "drawn.png").stat().st_size > 1000
    tool("predict").main(words)
    assert "a.png" in capsys.readouterr().out
    tool("show_batch").main(["panoptic_fpn", "--model", "shapes", "--data", "synthetic",
                             "--pictures", "2", "--save", str(tmp_path / "batch.png")])
    assert (tmp_path / "batch.png").stat().st_size > 1000


@pytest.mark.parametrize("change, field", [
    ({"stuff": 0}, "stuff"), ({"overlap": 2}, "overlap"), ({"stuff_area": -1}, "stuff_area"),
    ({"class_names": ["a"]}, "class_names")])
def test_cards_that_cannot_be_true_are_refused(change, field):
    card = interop.PanopticCard("a", 2, 3)
    with pytest.raises(UserError, match=f"the card says {field}="):
        dataclasses.replace(card, **change).check("the card")


def test_segments_have_names():
    card = interop.PanopticCard("a", 2, 1, class_names=("ant", "bee", "sky"))
    thing, sky = Segment(1, True, 1, 5, 0.9), Segment(2, False, 0, 5, None)
    assert (card.name(thing), card.name(sky)) == ("bee", "sky")
    plain = dataclasses.replace(card, class_names=None)
    assert (plain.name(thing), plain.name(sky)) == ("class 1", "stuff 0")


def test_labels_stand_inside_of_their_segments_and_outlines_between_them():
    mask = np.zeros((9, 12), bool)
    mask[1:8, 2:5] = mask[3:6, 2:11] = True
    assert inner_pixel(mask) == (4, 4)
    assert inner_pixel(np.ones((601, 801), bool)) == (300, 400)
    ids = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 2]])
    np.testing.assert_array_equal(outlines(ids), [[0, 1, 0], [1, 1, 0], [0, 1, 0]])


def test_weights_of_the_zoo_are_not_published():
    with pytest.raises(UserError, match="no weights are published"):
        interop.from_zoo("panoptic_fpn_resnest50_coco", None)
    assert panoptic.PanopticSegmentation.main_metric == "pq"

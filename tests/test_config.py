import dataclasses
import importlib
import json

import pytest

from gluon_resnest.config import ClassificationRecipe, DetectionRecipe, override
from gluon_resnest.errors import UserError

RECIPE = ClassificationRecipe(network="resnest14", source="a test")


def test_json_round_trip_is_identity():
    changed = override(RECIPE, {"lr": "0.25", "final_drop": "none", "flip": "false"})
    assert ClassificationRecipe.from_json(json.loads(json.dumps(changed.to_json()))) == changed


def test_every_field_has_help():
    for field in dataclasses.fields(ClassificationRecipe):
        assert field.metadata["help"], field.name


def test_override_leaves_the_original_alone():
    assert override(RECIPE, {"batch": "256"}).batch == 256
    assert RECIPE.batch == 8192


@pytest.mark.parametrize("batch, peak", [(8192, 3.2), (4096, 1.6), (2048, 0.8), (1024, 0.4)])
def test_peak_lr_scales_linearly_with_the_batch(batch, peak):
    # the peaks of the published commands: lr per worker times workers
    assert dataclasses.replace(RECIPE, batch=batch).peak_lr == pytest.approx(peak, rel=1e-12)


def test_explicit_lr_wins():
    assert dataclasses.replace(RECIPE, lr=0.05).peak_lr == 0.05


@pytest.mark.parametrize("words, message", [
    ({"crop_pz": "256"}, "no field 'crop_pz'; did you mean 'crop_px'"),
    ({"epochs": "many"}, "epochs must be int, got 'many'"),
    ({"base_lr": "-1"}, "base_lr must be at least 0.0, got -1.0"),
    ({"base_lr": "nan"}, "base_lr must be finite"),
    ({"auto_augment": "author"}, "did you mean 'authors'"),
    ({"last_gamma": "perhaps"}, "last_gamma must be true or false"),
    ({"epochs": "5"}, "warmup_epochs .* must be smaller than epochs"),
    ({"cutmix_alpha": "1", "mixup_mode": "example"}, "one of them per batch"),
])
def test_mistakes_answer_back(words, message):
    with pytest.raises(UserError, match=message):
        override(RECIPE, words)


@pytest.mark.parametrize("changes, phrases", [
    ({}, ["which images a batch norm sees", "how many mixup weights a batch has",
          "what DropBlock and dropout draw"]),
    ({"norm": "sync", "mixup_mode": "example", "dropblock": 0.0, "final_drop": 0.0}, []),
    ({"norm": "frozen", "mixup_alpha": 0.0, "dropblock": 0.0, "final_drop": 0.0,
      "data_order": "shards"}, ["the order of the images"])])
def test_what_depends_on_the_number_of_workers_is_named(changes, phrases):
    assert list(dataclasses.replace(RECIPE, **changes).per_worker) == phrases


@pytest.mark.parametrize("changes, phrases", [
    ({"norm": "batch", "normalize": "local", "dropblock": 0.1},
     ["which images a batch norm sees", "how images are padded", "what losses are divided by",
      "what DropBlock draws"]),
    ({"norm": "frozen"}, ["how images are padded"])])
def test_what_depends_on_the_number_of_workers_is_named_in_detection(changes, phrases):
    recipe = DetectionRecipe(network="mask_rcnn_fpn_resnest50_coco", source="a test", **changes)
    assert list(recipe.per_worker) == phrases


def test_a_published_value_is_expected_of_its_own_evaluation_only():
    recipe = dataclasses.replace(RECIPE, eval_px=224, expect_top1=81.0, expect_top1_320=82.0)
    for texts, expected in (
            ({"eval_px": "224"}, 81), ({"eval_px": "128"}, None), ({"eval_px": "320"}, 82),
            ({"eval_protocol": "torch"}, None),
            ({"eval_px": "320", "eval_protocol": "torch"}, None),
            ({"eval_px": "128", "expect_top1": "70"}, 70), ({"batch": "64"}, 81)):
        assert override(recipe, texts).expected == expected, texts


@pytest.mark.parametrize("file, entry, words", [
    ("imagenet", "resnest50", "hold_out=1000"),
    ("faster_rcnn", "resnest50", "eval_px=400"), ("faster_rcnn", "resnest50", "max_px=1000"),
    ("mask_rcnn", "resnest50", "detections=10"), ("mask_rcnn", "resnest50", "pick=8"),
    ("mask_rcnn", "resnest50", "conventions=mmdetection"),
    ("cascade_rcnn", "resnest50", "score_threshold=0.3"),
    ("deeplabv3", "resnest50_ade", "eval_scales=0.5,0.75"),
    ("deeplabv3", "resnest50_ade", "eval_rule=softmax"),
    ("deeplabv3", "resnest50_ade", "crop_px=96"),
    ("simple_pose", "resnest50", "height=128 width=96"),
    ("simple_pose", "resnest50", "joint_threshold=0.5 eval_flip=none"),
    ("panoptic_fpn", "resnest200", "eval_px=400"), ("panoptic_fpn", "resnest200", "overlap=0.8")])
def test_another_evaluation_of_a_recipe_expects_nothing_unless_told(file, entry, words):
    recipe = importlib.import_module(f"gluon_resnest.recipes.{file}").RECIPES[entry]
    texts = dict(word.split("=") for word in words.split())
    names = [name for name in recipe.judged_at if getattr(recipe, name) is not None]
    assert recipe.expected is not None and override(recipe, texts).expected is None
    told = override(recipe, {**texts, **dict.fromkeys(names, "12")})
    assert {getattr(told, name) for name in names} == {12.0}
    assert override(recipe, {"batch": "8", "seed": "3", "tolerance": "1"}).expected == \
        recipe.expected


def test_objects_of_a_panoptic_evaluation_do_not_depend_on_how_segments_are_merged():
    recipe = importlib.import_module("gluon_resnest.recipes.panoptic_fpn").RECIPES["resnest200"]
    changed = override(recipe, {"stuff_area": "1000"})
    assert (changed.expected, changed.expect_ap, changed.expect_mask_ap) == (None, 51.0, 43.68)


def test_unknown_key_of_a_file_is_an_error():
    values = dict(RECIPE.to_json(), crop_pz=3)
    with pytest.raises(UserError, match="no field 'crop_pz'"):
        ClassificationRecipe.from_json(values)


def test_missing_key_of_a_file_is_an_error():
    with pytest.raises(UserError, match="network"):
        ClassificationRecipe.from_json({"source": "x"})

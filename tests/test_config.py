import dataclasses
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


def test_unknown_key_of_a_file_is_an_error():
    values = dict(RECIPE.to_json(), crop_pz=3)
    with pytest.raises(UserError, match="no field 'crop_pz'"):
        ClassificationRecipe.from_json(values)


def test_missing_key_of_a_file_is_an_error():
    with pytest.raises(UserError, match="network"):
        ClassificationRecipe.from_json({"source": "x"})

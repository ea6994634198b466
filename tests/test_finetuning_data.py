"""The folders of fine-tuning: what is trained on, what is held out, what is judged once."""
import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from class_folders import RECIPE, write_images, write_parts

from gluon_resnest.errors import UserError
from gluon_resnest.tasks.finetuning_data import open_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty-one one-channel images of two classes."""
    return write_images(tmp_path_factory.mktemp("pictures"), {"bright": 13, "dark": 8}, mode="L")


def names(dataset):
    return {dataset.name(index) for index in range(len(dataset))}


def test_a_folder_is_split_once_for_all_and_in_proportion(folder):
    train_set, held, test = open_folders(RECIPE, folder)
    assert test is None
    assert len(train_set) + len(held) == 21 and not names(train_set) & names(held)
    assert np.bincount(held.labels).tolist() == [2, 2]
    assert names(open_folders(RECIPE, folder)[1]) == names(held)
    other = open_folders(dataclasses.replace(RECIPE, seed=1), folder)[1]
    assert names(other) != names(held)
    assert len(open_folders(dataclasses.replace(RECIPE, hold_out=9), folder)[1]) == 9


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_an_image_stay_on_one_side(folder, tmp_path, seed):
    shutil.copytree(folder, tmp_path / "all")
    for name in ("bright", "dark"):
        for copy in range(6):
            shutil.copy(tmp_path / f"all/{name}/{copy}.png", tmp_path / f"all/{name}/c{copy}.png")
    recipe = dataclasses.replace(RECIPE, seed=seed)
    sides = [{Path(name).read_bytes() for name in names(side)}
             for side in open_folders(recipe, tmp_path / "all")[:2]]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("part", ["val", "test"])
def test_given_folders_are_taken_as_they_are(tmp_path, part, caplog):
    write_images(tmp_path / "train", {"a": 3, "b": 2})
    write_images(tmp_path / part, {"b": 2}, seed=1)     # a class may be missing here
    train_set, held, _ = open_folders(RECIPE, tmp_path)
    assert len(train_set) == 5 and held.labels.tolist() == [1, 1]
    shutil.copy(tmp_path / "train/b/0.png", tmp_path / part / "b/again.png")
    open_folders(RECIPE, tmp_path)
    assert "1 images are in" in caplog.text and "flatter" in caplog.text


def test_what_is_held_out_is_said_as_it_is(tmp_path, caplog):
    for part in ("train", "val"):
        write_images(tmp_path / part, {"a": 4, "b": 4})
    with caplog.at_level(logging.INFO):
        open_folders(dataclasses.replace(RECIPE, hold_out=2), tmp_path)
    assert "--hold-out: 2 of the 8 images" in caplog.text and "no val/" not in caplog.text
    assert f"{tmp_path / 'val'} is left out" in caplog.text


def test_a_test_folder_beside_images_to_choose_by_is_a_third_set(tmp_path):
    three = write_parts(tmp_path)

    def sizes(recipe=RECIPE, root=three, **how):
        return [part and len(part) for part in open_folders(recipe, root, **how)]

    assert sizes() == [8, 6, 4]
    assert sizes(dataclasses.replace(RECIPE, hold_out=2)) == [6, 2, 4]
    assert sizes(root=three / "val") == [4, 2, None]


@pytest.mark.parametrize("counts, message", [
    ({"a": 4, "b": 1}, "class 'b' has 1 different image"), ({}, "contains no folders"),
    ({"bus": 3, "train": 3}, "train has no class folders.* give a class of the name train another"),
])
def test_folders_that_cannot_be_used_are_named(tmp_path, counts, message):
    write_images(tmp_path, counts)
    with pytest.raises(UserError, match=message):
        open_folders(RECIPE, tmp_path)

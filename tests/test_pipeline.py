"""From a file's bytes to a sample: the fast pipeline equals its slow twin (tests/slow_pipeline.py).

Pixels are equal bit for bit until the colours; those are one matrix of float32 in place of five
steps, which differs by at most BOUND (in units of the normalised sample, that is standard
deviations; one level of 255 is 1.7e-2).
"""
import io

import numpy as np
import pytest
import slow_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gluon_resnest.data.autoaugment import POLICIES
from gluon_resnest.data.classification import FolderDataset, RecordDataset
from gluon_resnest.data.images import Picture
from gluon_resnest.data.recordio import RecordWriter
from gluon_resnest.data.sampling import random_for
from gluon_resnest.data.transforms import eval_transform, train_transform

BOUND = 2e-5
SIZES = [(1, 1), (1, 90), (120, 2), (9, 200), (48, 64), (75, 50), (33, 33)]


def encoded(mode, height, width, seed, **options):
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    small = np.random.default_rng(seed).integers(
        0, 256, (height // 5 + 1, width // 5 + 1, channels)).astype(np.uint8)
    image = Image.fromarray(small[:, :, 0] if channels == 1 else small, mode)
    stored = io.BytesIO()
    image.resize((width, height), Image.BILINEAR).save(stored, "JPEG", **options)
    return stored.getvalue()


@given(size=st.sampled_from(SIZES), mode=st.sampled_from(["RGB", "RGB", "L", "CMYK"]),
       policy=st.sampled_from([None, "authors", "paper"]), seed=st.integers(0, 10 ** 6),
       interpolation=st.sampled_from(["bilinear", "bicubic"]), quality=st.integers(20, 100))
@settings(max_examples=60)
def test_training_samples_are_the_twins(size, mode, policy, seed, interpolation, quality):
    data = encoded(mode, *size, seed, quality=quality)
    fast = train_transform(24, auto_augment=policy or "none", interpolation=interpolation)
    expected = slow_pipeline.train(data, random_for(0, 1, seed), 24, POLICIES.get(policy),
                                   interpolation)
    np.testing.assert_allclose(fast(Picture(data), random_for(0, 1, seed)), expected, rtol=0,
                               atol=BOUND)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", SIZES)
def test_evaluation_samples_are_the_twins(size, mode):
    data = encoded(mode, *size, seed=0)
    np.testing.assert_allclose(eval_transform(24)(Picture(data)),
                               slow_pipeline.evaluate(data, 24), rtol=0, atol=BOUND)


def test_arrays_and_pictures_give_the_same_bits():
    data = encoded("RGB", 75, 50, seed=1)
    for policy in ("none", *POLICIES):
        transform = train_transform(24, auto_augment=policy)
        one, other = (transform(image, random_for(0, 0, 3))
                      for image in (Picture(data), np.asarray(Picture(data))))
        assert one.tobytes() == other.tobytes()


def test_records_and_folders_give_the_same_bits(tmp_path):
    data = encoded("RGB", 75, 50, seed=2)
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.jpg").write_bytes(data)
    with RecordWriter(tmp_path / "one.rec") as writer:
        writer.write(0, data)
    transform = train_transform(24, auto_augment="authors")
    one, other = (dataset[0, random_for(0, 0, 0)][0] for dataset in (
        RecordDataset(tmp_path / "one.rec", transform),
        FolderDataset(tmp_path / "images", transform)))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("policy", [None, "authors"])
def test_photographs_are_the_twins(data_root, policy):
    transform = train_transform(224, auto_augment=policy or "none")
    for index, file in enumerate(sorted((data_root / "imagenet_sample").glob("*/*.JPEG"))[::25]):
        data = file.read_bytes()
        expected = slow_pipeline.train(data, random_for(0, 0, index), 224, POLICIES.get(policy))
        np.testing.assert_allclose(transform(Picture(data), random_for(0, 0, index)), expected,
                                   rtol=0, atol=BOUND)

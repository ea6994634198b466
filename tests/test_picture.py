"""Boxes of encoded images against the whole decoded by Pillow, with and without libturbojpeg."""
import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gluon_resnest.data import images, jpeg
from gluon_resnest.data.images import BadImage, Picture

WITH_LIBRARY = jpeg._library() is not None
needs_library = pytest.mark.skipif(not WITH_LIBRARY, reason="no libturbojpeg 3: pip install "
                                   "turbojpeg")


@pytest.fixture(params=[False, True], ids=["pillow", "libturbojpeg"])
def library(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(jpeg, "_library", lambda: None)
    elif not WITH_LIBRARY:
        pytest.skip("no libturbojpeg 3: pip install turbojpeg")


def encoded(mode, height, width, seed=0, kind="JPEG", **options):
    """Noise on a slope: edges in every block, and colours for which upsampling matters."""
    rng = np.random.default_rng(seed)
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    slope = np.add.outer(np.arange(height) * 3, np.arange(width))[:, :, None] % 256
    noise = rng.integers(0, 256, (height, width, channels))
    array = ((slope + noise) // 2).astype(np.uint8)
    stored = io.BytesIO()
    Image.fromarray(array[:, :, 0] if channels == 1 else array, mode).save(stored, kind, **options)
    return stored.getvalue()


@st.composite
def pictures(draw):
    """A JPEG of any kind, and a box inside it."""
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    if draw(st.booleans()):
        height, width = draw(st.sampled_from([(1, 500), (500, 2), (17, 300), (299, 33)]))
    mode = draw(st.sampled_from(["RGB", "RGB", "RGB", "L", "CMYK"]))
    options = {"quality": draw(st.integers(5, 100)), "progressive": draw(st.booleans()),
               "restart_marker_blocks": draw(st.integers(0, 5))}
    if mode == "RGB":
        options["subsampling"] = draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    data = encoded(mode, height, width, draw(st.integers(0, 99)), **options)
    return data, (slice(top, bottom), slice(left, right))


@given(pictures())
def test_a_box_is_a_part_of_the_whole(picture):
    data, box = picture
    whole, ours = images.decode(data), Picture(data)
    assert (ours.shape, ours.size, ours.dtype) == (whole.shape, whole.size, whole.dtype)
    np.testing.assert_array_equal(ours[box], whole[box])
    np.testing.assert_array_equal(np.asarray(ours), whole)
    np.testing.assert_array_equal(ours[box], whole[box])


@pytest.mark.parametrize("mode, kind", [
    ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("L", "BMP"), ("RGB", "WEBP"),
    ("L", "GIF"), ("RGB", "TIFF"), ("RGB", "PPM")])
def test_every_kind_is_read(library, mode, kind):
    data = encoded(mode, 21, 34, kind=kind)
    np.testing.assert_array_equal(Picture(data)[5:20, 1:34], images.decode(data)[5:20, 1:34])


@needs_library
@pytest.mark.parametrize("mode, mine", [("RGB", True), ("L", True), ("CMYK", False)])
def test_who_decodes(mode, mine):
    assert (jpeg.read_header(encoded(mode, 20, 30)) is not None) == mine


@needs_library
def test_a_box_is_decoded_alone(monkeypatch):
    monkeypatch.setattr(images, "decode", lambda data: pytest.fail("decoded as a whole"))
    assert Picture(encoded("RGB", 100, 90))[40:60, 30:50].shape == (20, 20, 3)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.97])
def test_truncated_files_are_refused(library, share):
    data = encoded("RGB", 200, 300)
    with pytest.raises(BadImage):
        np.asarray(Picture(data[:int(share * len(data))]))
    with pytest.raises(BadImage):
        Picture(data[:int(share * len(data))])[:8, :8]


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"no image at all"])
def test_what_is_no_image_is_refused(library, data):
    with pytest.raises(BadImage):
        Picture(data)


def test_every_suffix_that_is_looked_for_is_of_a_known_format():
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in images.SUFFIXES} <= set(images.FORMATS)


def test_a_camera_s_picture_of_several_is_read_as_its_first(library):
    stored, shown = io.BytesIO(), Image.effect_noise((34, 21), 90).convert("RGB")
    shown.save(stored, "MPO", save_all=True, append_images=[Image.new("RGB", (34, 21))])
    assert images.kind(stored.getvalue()) == ("JPEG", "RGB")
    difference = images.decode(stored.getvalue()).astype(int) - np.asarray(shown)
    assert abs(difference).mean() < 10
    np.testing.assert_array_equal(Picture(stored.getvalue())[2:20, 3:30],
                                  images.decode(stored.getvalue())[2:20, 3:30])


@pytest.mark.parametrize("kind", ["EPS", "DDS", "ICO", "TGA", "PDF"])
def test_formats_that_are_no_pictures_are_not_opened(library, kind):
    """EPS would start Ghostscript, DDS divide by zero."""
    data = encoded("RGB", 16, 16, kind=kind)
    for read in (Picture, images.decode, images.decode_labels, images.kind):
        with pytest.raises(BadImage, match="no image of a known format .JPEG, PNG, BMP"):
            read(data)


@pytest.mark.parametrize("fault", [ZeroDivisionError, NotImplementedError, IndexError, KeyError,
                                   struct.error, TypeError, EOFError])
@pytest.mark.parametrize("place", ["Image.open", "PngImagePlugin.PngImageFile.load"])
def test_whatever_pillow_stumbles_over_is_damage(monkeypatch, fault, place):
    def stumble(*_, **__):
        raise fault("x")

    data = encoded("L", 16, 16, kind="PNG")
    monkeypatch.setattr(f"PIL.{place}", stumble)
    for read in (images.decode, images.decode_labels):
        with pytest.raises(BadImage, match="damaged image"):
            read(data)


def test_damage_inside_is_judged_by_pillow(library):
    data = bytearray(encoded("RGB", 64, 64))
    data[len(data) // 2:len(data) // 2 + 40] = b"\xff\x00" * 20
    try:
        expected = images.decode(bytes(data))
    except BadImage:
        with pytest.raises(BadImage):
            Picture(bytes(data))[:64, :64]
    else:
        np.testing.assert_array_equal(Picture(bytes(data))[:64, :64], expected)


@needs_library
def test_very_large_images_are_judged_by_pillow(monkeypatch):
    monkeypatch.setattr(jpeg, "_LARGEST", 100)
    assert jpeg.read_header(encoded("RGB", 10, 10)) and not jpeg.read_header(encoded("RGB", 10, 11))


@pytest.mark.realdata
def test_photographs_in_boxes(data_root):
    rng = np.random.default_rng(0)
    for file in sorted((data_root / "imagenet_sample").glob("*/*.JPEG"))[::8]:
        data = file.read_bytes()
        whole = images.decode(data)
        top, left = (int(rng.integers(0, length)) for length in whole.shape[:2])
        bottom, right = (int(rng.integers(start + 1, length + 1))
                         for start, length in zip((top, left), whole.shape))
        np.testing.assert_array_equal(Picture(data)[top:bottom, left:right],
                                      whole[top:bottom, left:right])

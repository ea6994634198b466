"""docs/model_cards.md is what the zoo says."""
from pathlib import Path

from gluon_resnest import zoo
from gluon_resnest.interop import model_cards
from gluon_resnest.recipes.deeplabv3 import RECIPES

PAGE = Path(__file__).resolve().parents[1] / "docs" / model_cards.PAGE


def render():
    return model_cards.render(RECIPES.values())


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == render()


def test_every_published_classifier_has_a_row():
    text = render()
    for name, entry in zoo.VARIANTS.items():
        assert (f"| `{name}` |" in text) == bool(entry.weights)
    assert "| `resnest50` | 27.48 | 5.37 | 224 | gluon | 81.04 | 95.42 |" in text


def test_a_segmentation_network_has_its_published_numbers():
    assert "| `deeplab_resnest50_ade` | 45.12 | 81.17 | 480 | `a8312db6` |" in render()
    assert "| `deeplab_resnet50_citys` | 78.72 | 96.30 | 768 |" in render()

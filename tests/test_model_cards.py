"""docs/model_cards.md is what the zoo says."""
from pathlib import Path

from gluon_resnest import zoo
from gluon_resnest.interop import model_cards

PAGE = Path(__file__).resolve().parents[1] / "docs" / model_cards.PAGE


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == model_cards.render()


def test_every_published_classifier_has_a_row():
    text = model_cards.render()
    for name, entry in zoo.VARIANTS.items():
        assert (f"| `{name}` |" in text) == bool(entry.weights)
    assert "| `resnest50` | 27.48 | 5.37 | 224 | gluon | 81.04 | 95.42 |" in text

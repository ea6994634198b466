"""Augmentation policies as tables of operations.

"authors": the list of the published training code, with the operations of Fast AutoAugment
    (github.com/kakaobrain/fast-autoaugment) that it took over.
"paper": the ImageNet policy and the magnitude ranges of AutoAugment (Cubuk et al. 2018, tables 9
    and 6).
"randaugment": RandAugment (Cubuk et al. 2019), here with magnitudes that grow from the identity.

See docs/decisions/0011 for what differs and why.
"""
from dataclasses import dataclass
from typing import NamedTuple, Optional

from gluon_resnest.data.operations import OPERATIONS, View
from gluon_resnest.errors import UserError

BLACK, GREY = (0, 0, 0), (128, 128, 128)
MAX_MAGNITUDE = 30      # of RandAugment

# One row per sub-policy: (operation, probability, level), twice. 25 rows, 20 of them distinct.
AUTHORS_TABLE = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 0)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
# Table 9 of the AutoAugment paper differs in one number, the level of Color in sub-policy 15.
PAPER_TABLE = (AUTHORS_TABLE[:15] + ((("Rotate", 0.8, 8), ("Color", 1.0, 2)),)
               + AUTHORS_TABLE[16:])


class Span(NamedTuple):
    """What an operation's strength in 0..1 means: `start + strength * change`.

    `signed` draws the sign of the change; `whole` cuts it to a whole number.
    """
    start: float
    change: float
    signed: bool = False
    whole: bool = False

    def draw(self, strength, rng):
        """Returns the operation's value, with a fair sign where the span is signed."""
        change = self.change * strength
        if self.whole:
            change = int(change)
        if self.signed and rng.random() < 0.5:
            change = -change
        return self.start + change


_FACTOR = Span(0.1, 1.8)                    # of ImageEnhance: 0 is extreme, 1 the identity
AUTHORS_SPANS = {                           # strength = level / 10
    "ShearX": Span(0.0, 0.3, signed=True),
    "Rotate": Span(0, 30, signed=True, whole=True),
    "Solarize": Span(256, -256, whole=True),
    "Posterize": Span(4, -4, whole=True),   # levels 5..8 leave two or one bits
    "Color": _FACTOR, "Contrast": _FACTOR, "Sharpness": _FACTOR,
}
PAPER_SPANS = {                             # strength = level / 9: ten values, both ends included
    "ShearX": Span(0.0, 0.3, signed=True),
    "Rotate": Span(0.0, 30.0, signed=True),
    "Solarize": Span(0, 256, whole=True),   # "threshold value of magnitude", range [0, 256]
    "Posterize": Span(4, 4, whole=True),    # "number of bits ... to magnitude", range [4, 8]
    "Color": _FACTOR, "Contrast": _FACTOR, "Sharpness": _FACTOR,
}
_AROUND_ONE = Span(1.0, 0.9, signed=True)
RANDAUGMENT_SPANS = {                       # strength = magnitude / 30; None: no magnitude
    "Identity": None, "AutoContrast": None, "Equalize": None,
    "Rotate": Span(0.0, 30.0, signed=True),
    "Solarize": Span(256, -256, whole=True),
    "Color": _AROUND_ONE,
    "Posterize": Span(8, -4, whole=True),
    "Contrast": _AROUND_ONE, "Brightness": _AROUND_ONE, "Sharpness": _AROUND_ONE,
    "ShearX": Span(0.0, 0.3, signed=True), "ShearY": Span(0.0, 0.3, signed=True),
    "TranslateX": Span(0.0, 0.45, signed=True), "TranslateY": Span(0.0, 0.45, signed=True),
}


class Step(NamedTuple):
    """One operation of a sub-policy; `span` is None for operations without a magnitude."""
    name: str
    probability: float
    strength: float
    span: Optional[Span]

    def apply(self, image, rng, fill):
        """Applies the operation to a View with the step's probability."""
        if rng.random() >= self.probability:
            return image
        value = self.span.draw(self.strength, rng) if self.span else None
        return OPERATIONS[self.name](image, value, fill)


@dataclass(frozen=True)
class AutoAugment:
    """Draws one sub-policy per image and applies its steps, each with its own probability.

    Call with a uint8 (H, W, 3) image and a numpy Generator; returns a View of the same shape.

    Args:
        table: sub-policies, each a tuple of Steps.
        fill: RGB of the pixels that a geometric operation leaves open.
    """
    table: tuple
    fill: tuple

    def __call__(self, image, rng):
        image = View(image)
        for step in self.table[rng.integers(len(self.table))]:
            image = step.apply(image, rng, self.fill)
        return image


@dataclass(frozen=True)
class RandAugment:
    """Applies `operations` draws with replacement from RANDAUGMENT_SPANS, all equally strong.

    Call with a uint8 (H, W, 3) image and a numpy Generator; returns a View of the same shape.

    Args:
        operations: number of draws per image.
        magnitude: 0 (identity, but for AutoContrast and Equalize) to 30.
    """
    operations: int = 2
    magnitude: float = 12

    def __post_init__(self):
        if self.operations < 0 or not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise UserError("RandAugment needs operations >= 0 and a magnitude in "
                            f"0..{MAX_MAGNITUDE}, got {self.operations!r} and {self.magnitude!r}")

    def __call__(self, image, rng):
        image = View(image)
        names = tuple(RANDAUGMENT_SPANS)
        for choice in rng.integers(len(names), size=self.operations):
            name = names[choice]
            step = Step(name, 1.0, self.magnitude / MAX_MAGNITUDE, RANDAUGMENT_SPANS[name])
            image = step.apply(image, rng, GREY)
        return image


def _steps(table, spans, max_level):
    return tuple(tuple(Step(name, probability, level / max_level, spans.get(name))
                       for name, probability, level in steps) for steps in table)


# name -> policy, a callable `(image, rng) -> image`
POLICIES = {
    "authors": AutoAugment(_steps(AUTHORS_TABLE, AUTHORS_SPANS, 10), BLACK),
    "paper": AutoAugment(_steps(PAPER_TABLE, PAPER_SPANS, 9), GREY),
    "randaugment": RandAugment(),       # 2 operations of 12/30, as the authors' PyTorch recipe
}

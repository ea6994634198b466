"""What all recipes share: declared fields, checks, reading a field from a flag, JSON."""
import dataclasses
import math
import typing

from gluon_resnest.errors import UserError, nearest


def setting(default, help, *, choices=None, low=None, high=None):
    """Declares a recipe field: its default, the sentence `--help` shows, and what it may be.

    Args:
      default: value, or `dataclasses.MISSING` where every recipe must say.
      help: one sentence with unit and source.
      choices: allowed values.
      low, high: inclusive range of a number.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


REQUIRED = dataclasses.MISSING


class Recipe:
    """Behaviour shared by the recipe dataclasses: checks, overrides, JSON."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    @property
    def per_worker(self):
        """What depends on how many workers share a batch, as phrases; the order of sums aside."""
        return ()

    @property
    def overruled(self):
        """The fields that change nothing here: {name: that of the field which is taken instead}."""
        return {}

    @property
    def unreached(self):
        """What the training ends before, as one sentence; empty where it comes to everything."""
        return ""

    @property
    def judged_at(self):
        """The settings that a published value belongs to: {its name: theirs}; see `override`."""
        return {}

    def steps(self, steps_per_epoch):
        """Returns how many updates the training is."""
        return self.epochs * steps_per_epoch

    def to_json(self):
        """Returns a dict of plain values that `from_json` turns back into an equal recipe."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values):
        """Makes a recipe from `to_json`'s dict; an unknown or missing key is an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"{cls.__name__} cannot be made from the given fields: "
                            f"{error}") from error


def plain_type(field):
    """Returns (type, may be None) of a field annotated `T` or `Optional[T]`."""
    arguments = typing.get_args(field.type)
    if arguments:
        return arguments[0], True
    return field.type, False


def _check(field, value):
    kind, optional = plain_type(field)
    if value is None and optional:
        return
    number = (int, float) if kind is float else kind
    if not isinstance(value, number) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{field.name} must be {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{field.name} must be finite, got {value!r}")
    rule = field.metadata
    if rule.get("choices") and value not in rule["choices"]:
        raise UserError(f"{field.name} must be one of {', '.join(map(str, rule['choices']))}, "
                        f"got {value!r}{nearest(value, rule['choices'])}")
    if rule.get("low") is not None and value < rule["low"]:
        raise UserError(f"{field.name} must be at least {rule['low']}, got {value!r}")
    if rule.get("high") is not None and value > rule["high"]:
        raise UserError(f"{field.name} must be at most {rule['high']}, got {value!r}")


def parse(field, text):
    """Returns the value that `text`, a word of the command line, means for `field`."""
    kind, optional = plain_type(field)
    if optional and text.lower() == "none":
        return None
    if kind is bool:
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in truth:
            raise UserError(f"{field.name} must be true or false, got {text!r}")
        return truth[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{field.name} must be {kind.__name__}, got {text!r}") from None


def override(recipe, texts):
    """Returns a copy of `recipe` with the fields of `texts` (name -> word) replaced and checked.

    Another evaluation than that of a published value has none, unless `texts` says so. What the
    changed training would not come to is refused; a recipe that already was so may remain so.
    """
    fields = {field.name: field for field in dataclasses.fields(recipe)}
    for name in texts:
        if name not in fields:
            raise UserError(f"{type(recipe).__name__} has no field {name!r}"
                            f"{nearest(name, fields)}")
    changed = dataclasses.replace(
        recipe, **{name: parse(fields[name], text) for name, text in texts.items()})
    strange = {name: None for name, settings in changed.judged_at.items() if name not in texts
               and any(getattr(changed, each) != getattr(recipe, each) for each in settings)}
    changed = dataclasses.replace(changed, **strange)
    for name, other in changed.overruled.items():
        if name in texts and other not in texts:
            raise UserError(f"{name}={texts[name]} changes nothing, because {other} is "
                            f"{getattr(changed, other):g}; set {other}, or {other}=none too")
    if changed.unreached and changed.unreached != recipe.unreached:
        raise UserError(changed.unreached)
    return changed


# What every kind of training offers; `engine.update.make_update` reads these (docs/training.md).
_UPDATE_SETTINGS = (
    ("accumulate", int, setting(1, "equal parts in which a worker's batch goes through the network "
                                "before one update", low=1)),
    ("clip_norm", float, setting(0.0, "largest Euclidean norm of the gradient; 0: any", low=0.0)),
    ("ema_decay", float, setting(0.0, "decay per update of the moving average of the weights, "
                                 "which is then what is evaluated and saved; 0: none", low=0.0,
                                 high=0.999999)),
    ("lr_factors", str, setting("", "factors on the learning rate by parts of the network, such "
                                "as fc=10,layer1=0.1")),
    ("precision", str, setting("float32", "numbers in convolutions and matrix products",
                               choices=("float32", "bfloat16", "float16"))),
    ("compression", str, setting("none", "fp16: gradients travel between workers in float16",
                                 choices=("none", "fp16"))),
    ("patience", int, setting(0, "stop early when so many evaluations in a row were no better than "
                              "the best; 0: never", low=0)),
    ("precise_bn_batches", int, setting(0, "training batches of a worker from which the running "
                                        "statistics of batch norms are recomputed before each "
                                        "evaluation (PreciseBN); 0: none", low=0)),
)


def with_update_settings(cls):
    """Class decorator of recipes: adds the fields of the update behind the class's own."""
    for name, kind, field in _UPDATE_SETTINGS:
        cls.__annotations__[name] = kind
        setattr(cls, name, dataclasses.field(default=field.default, metadata=field.metadata))
    return cls

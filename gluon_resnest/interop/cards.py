"""What the cards of all tasks share: the file, the fields of every network, their check."""
import dataclasses
import json

from gluon_resnest.errors import UserError
from gluon_resnest.interop import deployed

_AGAIN = "export the network again"


class TaskCard:
    """Base of the frozen dataclasses that explain an exported network of one task.

    They have the fields model, mean, std, commit and sha256, see `deployed.Card`, the class's own
    `task`, `word` (what such a network is called) and `lists` (fields that are never None and
    hold tuples), `adjustable` (fields that users may set by hand), the method `own_faults`, and
    the property `summary`, what to say of the network.
    """

    task = ""
    word = "network"
    lists = ("mean", "std")
    adjustable = ("class_names",)

    @property
    def output_shapes(self):
        """Shapes of the outputs for one prepared image, in order."""
        return (self.output_shape,)

    def to_json(self):
        """Returns the text of the card's file."""
        return json.dumps({"format": deployed.FORMAT, "task": self.task, "layout": "NCHW",
                           "channels": "RGB", "dtype": "float32", **dataclasses.asdict(self)},
                          indent=1) + "\n"

    def own_faults(self):
        """Returns {name of a field: whether it can be true} of the fields of this task."""
        raise NotImplementedError

    def check(self, source):
        """Raises a UserError that begins with `source` unless every field can be true."""
        sums = self.sha256
        faults = {
            "model": isinstance(self.model, str),
            **self.own_faults(),
            "commit": isinstance(self.commit, str),
            "sha256": sums is None or (isinstance(sums, dict) and set(sums) == {"symbol", "params"}
                                       and all(isinstance(text, str) for text in sums.values()))}
        wrong = [name for name, right in faults.items() if not right]
        if wrong:
            raise UserError(f"{source} says {wrong[0]}={getattr(self, wrong[0])!r:.80}, which "
                            "cannot be; correct it")


def read(prefix, kind):
    """Returns the card of an exported pair.

    Args:
      prefix: what its file names begin with.
      kind: a `TaskCard` class.

    Raises:
      UserError: if there is none, or it is damaged, or of another task or format.
    """
    file, values = deployed.paths(prefix)[2], deployed.read_values(prefix)
    names = {field.name for field in dataclasses.fields(kind)}
    if (not isinstance(values, dict) or values.get("task") != kind.task
            or values.get("format") != deployed.FORMAT or names - set(values)):
        raise UserError(f"{str(file)!r} is not the card of a {kind.word}; {_AGAIN}")
    try:
        card = kind(**{name: _tuples(values[name]) for name in names})
        card.check(repr(str(file)))
    except TypeError as error:      # a number where something with a length belongs
        raise UserError(f"{str(file)!r} must hold {', '.join(kind.lists)} as lists; {_AGAIN}"
                        ) from error
    return card


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

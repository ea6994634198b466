"""What a published table is made of, and what its rows have to do with the recipes.

A row is trained by an entry of a recipe, evaluated with the weights of such a run, timed by
`tools/benchmark.py`, or only printed. Its numbers are those of its table; where the recipe's own
differ, because something else was published elsewhere, `remark` says why.
"""
import fnmatch
import functools
import importlib
import importlib.util
import re
from dataclasses import dataclass
from typing import Optional, Tuple, Union

from gluon_resnest.config import override
from gluon_resnest.errors import UserError, nearest

# What of a recipe does not change the experiment that its row asks for.
INESSENTIAL = re.compile(r"seed|source|tolerance|expect_.*")

TITLES = {"top1": "top-1 %", "last_top1": "top-1 % in the end", "top1_320": "top-1 % at 320",
          "ap": "AP", "ap50": "AP50", "ap75": "AP75", "mask_ap": "mask AP", "miou": "mIoU %",
          "pixacc": "pixel accuracy %", "pq": "PQ", "images_per_second": "images/s",
          "parameters": "M parameters"}


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
      name: unique in its table.
      expected: ((metric, printed value), ...), the one that is judged first.
      recipe: file of recipes/ without ending; None where nothing here makes the number.
      model: entry of the recipe.
      changes: ((field, word), ...) of the recipe that this row trains with.
      evaluation: ((field, word), ...) with which the weights trained so are evaluated once more.
      needs: ((flag, regular expression), ...): last part of the path of data or first weights,
        where the row names them (`results.needs_of`).
      lacks: what it needs beside time that is not to be had here, for the page.
      server: entry that trains the weights, where only COCO's server can judge the result.
      benchmark: flags of tools/benchmark.py that time it.
      remark: what a reader has to know.
    """

    name: str
    expected: Tuple = ()
    recipe: Optional[str] = None
    model: Optional[str] = None
    changes: Tuple = ()
    evaluation: Tuple = ()
    needs: Tuple = ()
    lacks: str = ""
    server: Optional[str] = None
    benchmark: Optional[str] = None
    remark: str = ""

    @property
    def directory(self):
        """Where its run lies below the folder of all runs; rows that train alike share it."""
        return "/".join([self.recipe, "-".join([self.model, *_spelled(self.changes)])])

    @property
    def evaluated_directory(self):
        """Where its own result lies: that of the training, or beside it."""
        return "-".join([self.directory, *_spelled(self.evaluation)])


@dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
      name: as tools/reproduce.py takes it.
      title: a heading; source: where it is printed; rows: of Row.
      data: flags that say where the data is, for people; where rows need different ones,
        ((pattern of names, flags), ...), for a command each.
      costs: whether parameters and speed belong to the table.
      note: sentences for people, in Markdown.
    """

    name: str
    title: str
    source: str
    rows: Tuple
    data: Union[str, Tuple] = ""
    costs: bool = False
    note: str = ""

    def parts(self):
        """Returns ((pattern, flags), ...): which rows of `data` one command can run together."""
        return (("*", self.data),) if isinstance(self.data, str) else self.data

    def data_of(self, row):
        """Returns the flags of `data` that a row of this table needs."""
        return next(flags for pattern, flags in self.parts() if row in self.select([pattern]))

    def select(self, patterns=()):
        """Returns the rows whose name is, or matches, one of the patterns; all if there are none.

        Raises:
          UserError: if a pattern matches no row.
        """
        names = [row.name for row in self.rows]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UserError(f"{self.name} has no row {pattern!r}"
                                f"{nearest(pattern, names) or '; its rows: ' + ', '.join(names)}")
        return [row for row in self.rows if not patterns or any(
            fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)]


def trained(name, entry, remark="", changes=(), needs=(), lacks="", server=None, **expected):
    """Returns a row that an entry, "recipe/model", trains."""
    recipe, _, model = entry.partition("/")
    return Row(name, tuple(expected.items()), recipe, model, tuple(changes), needs=tuple(needs),
               lacks=lacks, server=server, remark=remark)


def evaluated(name, entry, evaluation, remark="", **expected):
    """Returns a row for which the weights of an entry are evaluated with other settings."""
    recipe, _, model = entry.partition("/")
    return Row(name, tuple(expected.items()), recipe, model, evaluation=tuple(evaluation.items()),
               remark=remark)


def timed(name, benchmark, images_per_second, remark=""):
    """Returns a row that tools/benchmark.py measures."""
    return Row(name, (("images_per_second", images_per_second),), benchmark=benchmark,
               remark=remark)


def printed(name, remark="", **expected):
    """Returns a row that is a number in print and nothing else."""
    return Row(name, tuple(expected.items()), remark=remark)


@functools.lru_cache(maxsize=None)
def recipe_of(row):
    """Returns the recipe that a row trains or evaluates with; None if there is none (yet).

    Raises:
      UserError: if the file has no such entry or the entry no such field.
    """
    if row.recipe is None or not _exists(row.recipe):
        return None
    recipes = module_of(row.recipe).RECIPES
    if row.model not in recipes:
        raise UserError(f"recipes/{row.recipe}.py has no entry {row.model!r}"
                        f"{nearest(row.model, recipes)}; mend the row {row.name!r}")
    return override(recipes[row.model], dict((*row.changes, *row.evaluation)))


def module_of(recipe):
    """Returns the module of a file of recipes/, named without ending."""
    return importlib.import_module(_module(recipe))


def program_of(recipe):
    """Returns what a file of recipes/ hands to `cli.main`: (recipes, task class)."""
    file = vars(module_of(recipe))
    task, = (value for value in file.values() if hasattr(value, "add_flags"))
    return file["RECIPES"], task


def essence(recipe_json):
    """Returns what of a recipe's JSON makes the experiment."""
    return {name: value for name, value in recipe_json.items()
            if not INESSENTIAL.fullmatch(name)}


def _module(recipe):
    return f"gluon_resnest.recipes.{recipe}"


def _exists(recipe):
    return importlib.util.find_spec(_module(recipe)) is not None


def _spelled(changes):
    return [f"{name}_{re.sub('[^A-Za-z0-9.]+', '_', word)}" for name, word in changes]

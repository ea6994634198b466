"""docs/migration.md: its Python runs, its flags and names exist, its numbers are the recipes'."""
import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path

import pytest

from gluon_resnest import zoo
from gluon_resnest.config import override

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/migration.md").read_text()
FLAGS = "\n## Flags of training"

_FLAG = re.compile(r"--[a-z][\w-]*")
_NUMBER = re.compile(r"(--[a-z][\w-]*) (\d[\d.,]*)(?!\w)")
# Fields beside which the page has the number that corresponds to theirs, not the first entry's.
CORRESPONDING = {"length", "milestones", "ema_decay"}


def rows(section):
    """Yields the cells of the first table of a section."""
    table = re.search(r"^\|(?:.*\n\|)*.*", section, re.MULTILINE).group()
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def flag_tables(page):
    """Yields (recipes a heading names, rows of the table below it) of the chapter on flags."""
    chapter = page.split(FLAGS)[1].split("\n## ")[0]
    for section in chapter.split("\n### ")[1:]:
        yield re.findall(r"recipes/(\w+)\.py", section.splitlines()[0]), list(rows(section))


def our_flags(table):
    """Returns the flags in all columns but the first, which is theirs."""
    return {flag for row in table for cell in row[1:] for flag in _FLAG.findall(cell)}


@lru_cache(maxsize=None)
def known_flags(recipe):
    """Returns the flags that the parser of a recipe takes: those of its usage."""
    told = io.StringIO()
    with redirect_stdout(told), pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [recipe, "--help"])
        runpy.run_path(str(ROOT / f"recipes/{recipe}.py"), run_name="__main__")
    return set(_FLAG.findall(told.getvalue().partition("\n\n")[0]))


def unknown_flags(page):
    """Returns "recipe flag" of what a table says of a recipe and its parser does not know."""
    return [f"{recipe} {flag}" for recipes, table in flag_tables(page) for recipe in recipes
            for flag in sorted(our_flags(table) - known_flags(recipe))]


def wrong_numbers(page):
    """Yields (recipe, flag, number on the page, number of the first entry) where they differ."""
    for recipes, table in flag_tables(page):
        for recipe in recipes:
            entries = runpy.run_path(str(ROOT / f"recipes/{recipe}.py"))["RECIPES"]
            first = next(iter(entries.values()))
            for flag, word in (pair for row in table for pair in _NUMBER.findall(row[1])):
                name = flag[2:].replace("-", "_")
                if not hasattr(first, name) or name in CORRESPONDING:
                    continue
                if override(first, {name: word}) != first:
                    yield recipe, flag, word, getattr(first, name)


def test_the_python_on_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block, names)


def test_our_flags_exist():
    assert unknown_flags(PAGE) == []


def test_every_table_of_flags_is_read():
    tables = list(flag_tables(PAGE))
    assert len(tables) == PAGE.split(FLAGS)[1].count("\n| --- | --- | --- |\n") >= 8
    for recipes, table in tables:
        assert recipes and len(our_flags(table)) > 5, recipes
        assert all(len(row) == 3 for row in table), [row for row in table if len(row) != 3]
        theirs = [flag for row in table for flag in _FLAG.findall(row[0])]
        assert len(theirs) == len(set(theirs)), recipes


def test_the_check_of_flags_finds_what_is_wrong():
    page = (f"# Page\n{FLAGS}\n\n### `recipes/simple_pose.py`, `recipes/deeplabv3.py` for x\n\n"
            "| there | here | note |\n| --- | --- | --- |\n"
            "| `--absent` | `--sigma 2`, `--batch` | not `--short-px` |\n\n## End\n")
    assert unknown_flags(page) == ["simple_pose --short-px", "deeplabv3 --short-px",
                                   "deeplabv3 --sigma"]


def test_our_numbers_are_those_of_the_first_entries():
    assert list(wrong_numbers(PAGE)) == []
    page = PAGE.replace("`--sigma 2` | `--sigma 2`", "`--sigma 2` | `--sigma 3`")
    assert list(wrong_numbers(page)) == [("simple_pose", "--sigma", "3", 2.0)]


def test_our_names_are_those_of_the_zoo():
    section = PAGE.split("## Networks")[1]
    names = {name for row in rows(section) for name in re.findall(r"`([a-z]\w+)`", row[1])}
    assert len(names) > 10
    for name in names:
        known = name in zoo.list_models() or name[len(zoo.POSE):] in zoo.VARIANTS
        assert known, name

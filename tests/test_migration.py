"""docs/migration.md: its Python runs, its flags and names exist."""
import re
import subprocess
import sys
from pathlib import Path

from gluon_resnest import zoo

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/migration.md").read_text()


def rows(heading):
    """Yields the cells of the first table below a heading."""
    section = PAGE.split(heading)[1]
    table = re.search(r"^\|.*?\n\n", section, re.MULTILINE | re.DOTALL).group()
    for line in table.strip().splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_python_on_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)


def test_our_flags_exist():
    told = subprocess.run([sys.executable, str(ROOT / "recipes/imagenet.py"), "--help"],
                          capture_output=True, text=True, timeout=300, check=True).stdout
    known = set(re.findall(r"--[a-z][\w-]*", told))
    wanted = {flag for row in rows("## Flags of training") for cell in row[1:]
              for flag in re.findall(r"--[a-z][\w-]*", cell)}
    assert len(wanted) > 25 and wanted <= known, wanted - known


def test_our_names_are_those_of_the_zoo():
    names = {name for row in rows("## Networks") for name in re.findall(r"`([a-z]\w+)`", row[1])}
    assert len(names) > 10
    for name in names:
        known = name in zoo.list_models() or name[len(zoo.POSE):] in zoo.VARIANTS
        assert known, name

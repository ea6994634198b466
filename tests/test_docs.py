"""README and docs: links lead somewhere, commands name tools and flags that exist."""
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes/README.md",
         *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"^ {4}.*\n", re.MULTILINE)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"((?:tools|recipes)/\w+\.py)([^|;&>#\n]*)")
_FLAG = re.compile(r"(?<!\S)(--[a-z][\w-]*)")
_REMARK = re.compile(r"^ *python (?:tools|recipes)/.*?\S {2,}(?!#|\\)\S.*", re.MULTILINE)


def broken_links(text, folder):
    """Returns the relative links of a page that lead nowhere."""
    links = [link.partition("#")[0] for link in _LINK.findall(text) if ":" not in link]
    return [link for link in links if link and not (folder / link).exists()]


def blocks(text):
    """Returns the fenced blocks of a page, and its indented lines as one more."""
    return [*_BLOCK.findall(text), "".join(_INDENTED.findall(text))]


def commands(text):
    """Yields (script, [flag, ...]) of every command in the blocks of a page."""
    for block in blocks(text):
        for script, words in _COMMAND.findall(block.replace("\\\n", " ")):
            yield script, _FLAG.findall(words)


def remarks(text):
    """Returns the command lines of a page that go on with words which no `#` hides from a shell."""
    return [line for block in blocks(text) for line in _REMARK.findall(block)]


@lru_cache(maxsize=None)
def known_flags(script):
    """Returns the flags that --help of a script names, or None if there is no such script."""
    if not (ROOT / script).is_file():
        return None
    told = subprocess.run([sys.executable, str(ROOT / script), "--help"], stdout=subprocess.PIPE,
                          universal_newlines=True, timeout=120, check=True).stdout
    return set(_FLAG.findall(re.sub(r"[\[\],]", " ", told)))


def wrong_commands(text):
    """Returns what the commands of a page name and --help does not know."""
    wrong = []
    for script, flags in commands(text):
        known = known_flags(script)
        wrong += [script] if known is None else [
            f"{script} {flag}" for flag in flags if flag not in known]
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    assert broken_links((ROOT / name).read_text(), (ROOT / name).parent) == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_known(name):
    assert wrong_commands((ROOT / name).read_text()) == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_can_be_copied(name):
    assert remarks((ROOT / name).read_text()) == []


@pytest.mark.parametrize("name, result, shape", [
    ("README.md", "scores", (2, 10)), ("docs/pose.md", "joints", (1, 17, 3)),
    ("docs/segmentation.md", "logits", (1, 150, 96, 128))])
def test_the_first_python_block_of_a_page_runs(name, result, shape):
    names = {}
    exec(_PYTHON.search((ROOT / name).read_text()).group(1), names)
    assert names[result].shape == shape


@pytest.mark.parametrize("name", NAMES)
def test_no_page_has_a_placeholder_or_a_path_of_one_machine(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"^(TODO|FIXME|TBD|SAMPLE)\b", text, re.MULTILINE)
    assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", text)


def test_the_checks_find_what_is_wrong(tmp_path):
    assert broken_links("[a](absent.md#x) [b](https://x) [c](#y)", tmp_path) == ["absent.md"]
    page = ("```\npython tools/predict.py x --topk 3 \\\n    --nonsense 1 > f  # --no\n"
            "python tools/absent.py\n```\n")
    assert wrong_commands(page) == ["tools/predict.py --nonsense", "tools/absent.py"]
    assert wrong_commands("A:\n\n    python tools/predict.py x --wrong\n") == [
        "tools/predict.py --wrong"]
    page = "```\npython tools/a.py x    says x\npython tools/a.py x    # x\n```\n"
    assert remarks(page) == ["python tools/a.py x    says x"]

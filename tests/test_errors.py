"""errors: what a command says and how it ends."""
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gluon_resnest.errors import MissingExtra, UserError, check_choice, check_count
from gluon_resnest.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
COMMAND = """
import sys
from gluon_resnest.errors import UserError, exit_on_user_error
with exit_on_user_error():
    {body}
"""


def ended(body, *, read=True):
    """Returns (exit code, errors) of a command whose output is read, or whose reader has left."""
    reader, writer = os.pipe()
    if not read:
        os.close(reader)
    process = subprocess.Popen([sys.executable, "-c", COMMAND.format(body=body)],
                               stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    if read:
        with open(reader) as output:
            output.read()
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_a_user_error_is_one_line_and_exit_code_2():
    assert ended("raise UserError('no such thing')") == (2, "error: no such thing\n")


@pytest.mark.parametrize("body", ["print('short')", "print('long ' * 100000)"])
def test_a_reader_that_leaves_early_ends_the_command_quietly(body):
    assert ended(body) == (0, "")
    assert ended(body, read=False) == (141, "")


def test_a_broken_pipe_that_is_not_the_output_stays_an_error():
    code, errors = ended("raise BrokenPipeError('a worker')")
    assert code == 1 and "BrokenPipeError: a worker" in errors


def test_any_other_error_shows_its_traceback():
    code, errors = ended("1 / 0")
    assert code == 1 and "ZeroDivisionError" in errors


def test_a_missing_library_names_what_to_install():
    assert "pip install 'gluon-resnest[coco]'" in str(MissingExtra("pycocotools", "coco"))
    assert "pip install matplotlib" in str(MissingExtra("matplotlib"))


def requirements():
    """Returns {extra: names of its packages}, those of every installation at None; setup.py's."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    extras, = (ast.literal_eval(node.value) for node in ast.walk(tree)
               if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS")
    always, = (ast.literal_eval(node.value) for node in ast.walk(tree)
               if isinstance(node, ast.keyword) and node.arg == "install_requires")
    return {extra: {re.match(r"[\w-]+", package).group() for package in packages}
            for extra, packages in [*extras.items(), (None, always)]}


def test_every_missing_library_is_in_the_extra_that_its_error_names():
    brought, found = requirements(), 0
    for file in [*(ROOT / "gluon_resnest").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingExtra":
                library, extra = [*map(ast.literal_eval, node.args), None][:2]
                assert library in brought[extra], f"{file}:{node.lineno}"
                found += 1
    assert found > 10


def test_choices_and_counts_are_checked():
    check_choice("order", "global", ("global", "shards"))
    check_count("classes", 1)
    with pytest.raises(UserError, match="order must be one of global, shards, got 'globl'; did"):
        check_choice("order", "globl", ("global", "shards"))
    for wrong in (0, -1, 1 << 31, 2.0, "3", None):
        with pytest.raises(UserError, match="classes must be a whole number from 1 to 2147483647"):
            check_count("classes", wrong)


@pytest.mark.parametrize("path", [".", "", "/"])
def test_a_folder_is_no_name_of_a_file(path):
    with pytest.raises(UserError, match="it is no name of a file; choose a writable folder"):
        write_whole(path, "")


def test_two_writers_do_not_write_the_same_part(tmp_path, monkeypatch):
    parts = []
    monkeypatch.setattr(os, "replace", lambda part, path: parts.append(Path(part)))
    for number in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda: number)
        write_whole(tmp_path / "x", str(number))
    assert [part.read_text() for part in parts] == ["1", "2"]

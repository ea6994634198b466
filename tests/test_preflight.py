"""`tools/preflight.sh` on a PATH that holds nothing but what each test puts there."""
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools/preflight.sh"


def program(folder, name, output):
    """Makes an executable `name` that answers every call with `output`."""
    file = folder / name
    file.write_text(f"#!/bin/sh\necho '{output}'\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def path(tmp_path):
    """A PATH on which nothing is missing."""
    (tmp_path / "python3.11").symlink_to(sys.executable)
    program(tmp_path, "c++", "")
    program(tmp_path, "cmake", "cmake version 3.25.1")
    return tmp_path


def preflight(path, **environ):
    done = subprocess.run(["/bin/sh", str(SCRIPT)], env={"PATH": str(path), **environ},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def only_problem(path, **environ):
    code, chosen, problems = preflight(path, **environ)
    assert (code, chosen, len(problems)) == (1, [], 1), problems
    return problems[0]


def test_a_suitable_machine_gets_its_python(path):
    assert preflight(path) == (0, [str(path / "python3.11")], [])


def test_the_newest_suitable_python_is_chosen(path):
    program(path, "python3.10", "3.10")
    assert preflight(path)[1] == [str(path / "python3.11")]
    (path / "python3.11").unlink()
    assert preflight(path)[1] == [str(path / "python3.10")]


def test_the_named_python_is_chosen(path):
    program(path, "python3.9", "3.9")
    assert preflight(path, PYTHON="python3.9")[1] == [str(path / "python3.9")]


def test_a_missing_python_is_named(path):
    (path / "python3.11").unlink()
    assert "Python 3.8 to 3.11 is needed" in only_problem(path)


def test_a_python_that_fails_when_called_is_passed_over(path):
    """pyenv puts such programs on the PATH."""
    (path / "python3.11").unlink()
    (path / "python3.11").write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    (path / "python3.11").chmod(0o755)
    program(path, "python3.8", "3.8")
    assert preflight(path)[1] == [str(path / "python3.8")]


@pytest.mark.parametrize("version", ["3.7", "3.12", "3.13"])
def test_an_unsuitable_python_is_named(path, version):
    named = program(path, "mine", version)
    assert f"but {named} is another version" in only_problem(path, PYTHON=str(named))


def test_a_python_without_venv_is_named(path):
    (path / "python3.11").unlink()
    file = program(path, "python3.11", "3.11")
    file.write_text("#!/bin/sh\ncase $2 in *ensurepip*) exit 1 ;; esac\necho 3.11\n")
    assert "apt-get install python3.11-venv" in only_problem(path)


def test_a_missing_compiler_is_named(path):
    (path / "c++").unlink()
    assert "apt-get install g++" in only_problem(path)
    program(path, "my-compiler", "")
    assert preflight(path, CXX="my-compiler")[0] == 0


def test_a_missing_cmake_is_named(path):
    (path / "cmake").unlink()
    assert "cmake 3.18 to 3.31 is needed to build Horovod, but none" in only_problem(path)


@pytest.mark.parametrize("version, suitable", [
    ("3.17.5", False), ("3.18.0", True), ("3.31.6", True), ("4.0.0", False), ("2.8.12", False)])
def test_cmake_must_be_3_18_to_3_31(path, version, suitable):
    program(path, "cmake", f"cmake version {version}")
    if suitable:
        assert preflight(path)[0] == 0
    else:
        assert f"cmake is {'.'.join(version.split('.')[:2])}; " in only_problem(path)


def test_all_problems_are_told_at_once(path):
    for name in ("python3.11", "c++", "cmake"):
        (path / name).unlink()
    assert len(preflight(path)[2]) == 3

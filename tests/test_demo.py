"""What the demo refuses before it does any work."""
import importlib.util
from pathlib import Path

import pytest

from gluon_resnest.errors import UserError

FILE = Path(__file__).resolve().parents[1] / "tools/demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def steps(demo, monkeypatch):
    """The titles of the steps that the demo would have run."""
    begun = []
    monkeypatch.setattr(demo, "run", lambda title, *words: begun.append(title))
    monkeypatch.setattr(demo, "write_digits", begun.append)
    return begun


@pytest.mark.parametrize("workers", [0, -3])
def test_numbers_of_workers_that_cannot_be_are_refused_first(demo, steps, tmp_path, workers):
    with pytest.raises(UserError, match=f"-np must be at least 1, got {workers}"):
        demo.main(["--out", str(tmp_path), "-np", str(workers)])
    assert not steps and not list(tmp_path.iterdir())


def test_horovod_is_looked_for_first(demo, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="2 workers need .*horovodrun, which is not there; install"):
        demo.main(["--out", str(tmp_path)])
    assert not steps and not list(tmp_path.iterdir())


def test_horovod_is_found_beside_the_interpreter_or_on_the_path(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    for folder in ("path", "beside"):
        file = tmp_path / folder / "horovodrun"
        file.parent.mkdir()
        file.touch(0o755)
        monkeypatch.setattr(demo.sys, "executable", str(tmp_path / "beside/python"))
        assert demo.launcher(3) == [str(file), "-np", 3, str(tmp_path / "beside/python")]
    assert demo.launcher(1) == [str(tmp_path / "beside/python")]

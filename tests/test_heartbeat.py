"""Laws of signs of life: read is what was written, and nobody listens means nothing is done."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gluon_resnest.engine import heartbeat
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.heartbeat import VARIABLE, Heart, Outcome, beats, outcomes, reported
from gluon_resnest.engine.progress import evaluating
from gluon_resnest.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A supervised environment in which this process survives the end of its lease."""
    monkeypatch.setattr(heartbeat, "_end_with", lambda lease: None)
    return {VARIABLE: str(tmp_path)}, tmp_path


def test_read_inverts_beat(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    heart, other = (Heart(rank, {VARIABLE: str(tmp_path)}) for rank in (0, 3))
    assert beats(tmp_path) == {}                             # a file, but no beat so far
    for seconds, phase, step in ((0, "start", 7), (2, "step", 8), (1, "step", 9), (4, "saving", 9)):
        now[0] += seconds
        heart.beat(phase, step)
    other.beat("start", 7)
    found = beats(tmp_path)
    assert found[0] == heartbeat.Beat(os.getpid(), socket.gethostname(), "saving", 7, 9, 4,
                                      {"start": 2.0, "step": 2.5})
    assert found[3].means == {} and set(found) == {0, 3}


def test_a_phase_that_goes_on_is_a_sign_of_life_and_one_phase(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Heart, "last", None)
    heartbeat.alive()                                        # nobody listens
    heart = Heart(1, {VARIABLE: str(tmp_path)})
    heart.beat("evaluation", 7)
    for _ in evaluating("ab", 2, Comm()):
        now[0] += 3
    assert (beats(tmp_path)[1].phase, beats(tmp_path)[1].beats) == ("evaluation", 3)
    heart.beat("writing", 7)
    assert beats(tmp_path)[1].means == {"evaluation": 6.0}


def test_without_a_supervisor_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Heart(0, {}).beat("start", 0)
    with reported({}):
        pass
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("error, outcome", [
    (None, Outcome(0, "")), (SystemExit(143), Outcome(143, "")), (SystemExit(), Outcome(0, "")),
    (SystemExit("error: x"), Outcome(1, "error: x")), (UserError("no file"), Outcome(2, "no file")),
    (ValueError("bug"), Outcome(1, "ValueError: bug")),
    (KeyboardInterrupt(), Outcome(1, "KeyboardInterrupt:"))])
def test_every_end_is_reported(error, outcome, watched):
    environ, folder = watched
    try:
        with reported({**environ, "HOROVOD_RANK": "5"}):
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    assert outcomes(folder) == {5: outcome}


@pytest.mark.parametrize("variable", ["HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK",
                                      "MV2_COMM_WORLD_RANK", "SLURM_PROCID"])
def test_every_launcher_tells_the_rank(variable, watched):
    environ, folder = watched
    with reported({**environ, variable: "5"}):
        pass
    assert list(outcomes(folder)) == [5]


def test_a_full_disk_does_not_hide_the_error(watched, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match="the real one"), reported(watched[0]):
        raise ValueError("the real one")


def test_half_written_files_are_passed_over(tmp_path):
    (tmp_path / "beat-0.json").write_text('{"pid": 1, "ho')
    assert beats(tmp_path) == {}


@pytest.mark.parametrize("remove", [False, True])
def test_a_worker_ends_with_its_lease(remove, tmp_path):
    """Also when the directory is gone altogether."""
    (tmp_path / "watch").mkdir()
    lease = tmp_path / "watch/lease"
    if not remove:
        lease.touch()                                        # nobody holds it
    script = "import time\nfrom gluon_resnest.engine.heartbeat import reported\n" \
        "with reported(): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", script], timeout=30, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT),
                                          VARIABLE: str(lease.parent)})
    assert done.returncode == 1
    assert done.stderr == "error: the supervisor has gone or given this worker up; ending\n"

"""Laws of supervision: whatever ends or halts a job, it continues; nothing is left behind.

The jobs are small scripts that beat like the training loop; tests/test_kill_trials.py trains.
"""
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gluon_resnest.engine import supervise
from gluon_resnest.engine.heartbeat import Beat
from gluon_resnest.engine.processes import descendants
from gluon_resnest.engine.supervise import Attempt, Clock, Limits, Pulse

ROOT = Path(__file__).resolve().parents[1]

# Counts its starts in a file, beats from the step its predecessor reached, then does BODY.
JOB = """
import os, signal, subprocess, sys, time
from pathlib import Path
from gluon_resnest.engine.heartbeat import Heart, reported
from gluon_resnest.errors import UserError, exit_on_user_error

here = Path(__file__).parent
saved = here / "saved"
first = int(saved.read_text()) if saved.exists() else 0
with open(here / "starts", "a") as file:
    file.write(".")
start = len((here / "starts").read_text())

def train(steps):
    heart = Heart(0)
    heart.beat("start", first)
    for step in range(first + 1, first + steps + 1):
        heart.beat("step", step)
        time.sleep(0.01)

def save(step):
    saved.write_text(str(step))

with exit_on_user_error(), reported():
"""


class Job:
    """A script under supervision."""

    def __init__(self, folder, body, *flags):
        self.folder, script = folder, folder / "job.py"
        script.write_text(JOB + textwrap.indent(textwrap.dedent(body), "    "))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gluon_resnest.engine.supervise", "--stuck-after", "1", *flags,
             "--", str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)})

    def end(self, seconds=60):
        """Waits for the end; returns (exit code, output)."""
        try:
            output, _ = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
            self.process.wait()
        return self.process.returncode, output

    def starts(self):
        path = self.folder / "starts"
        return len(path.read_text()) if path.exists() else 0

    def wait_for(self, name, seconds=30):
        """Waits for a file that the job writes; returns its content."""
        end = time.monotonic() + seconds
        path = self.folder / name
        while not (path.exists() and path.read_text()):
            assert time.monotonic() < end and self.process.poll() is None, name
            time.sleep(0.01)
        return path.read_text()


def test_a_job_that_ends_well_runs_once(tmp_path):
    job = Job(tmp_path, "train(3)")
    assert job.end()[0] == 0 and job.starts() == 1


@pytest.mark.parametrize("fault, reason", [
    ("os.kill(os.getpid(), signal.SIGKILL)", "worker 0 was killed or crashed after step 3"),
    ("os.abort()", "worker 0 was killed or crashed after step 3"),
    ("raise MemoryError('no more')", "worker 0: MemoryError: no more"),
    ("sys.exit('error: loss is not finite')", "worker 0: error: loss is not finite"),
    ("raise UserError('cannot save: disk full')", "worker 0: cannot save: disk full"),
    ("time.sleep(60)", "stuck: worker 0, after step 3, gave no sign of life in phase 'step'"),
    ("os.kill(os.getpid(), signal.SIGSTOP)", "stuck: worker 0"),
])
def test_continues_after(fault, reason, tmp_path):
    job = Job(tmp_path, f"""
        train(3)
        save(2)
        if start == 1:
            {fault}
        """)
    code, output = job.end()
    assert code == 0 and job.starts() == 2, output
    assert f"supervise: {reason}" in output and "restart 1 of 20 in 0 s" in output


def test_a_wrong_command_is_not_retried(tmp_path):
    job = Job(tmp_path, "raise UserError('--lr must be a number')")
    code, output = job.end()
    assert code == 2 and job.starts() == 1
    assert output == "error: --lr must be a number\n"


def test_gives_up_without_progress_and_reports(tmp_path):
    job = Job(tmp_path, """
        train(3)
        save(1)
        sys.exit("error: the same again")
        """)
    code, output = job.end()
    assert code == 1 and job.starts() == 5      # a newer checkpoint once, then three times none
    assert "giving up after 5 attempts (no newer checkpoint):" in output
    assert "  0: from step 0 to 3 in " in output and "  4: from step 1 to 4 in " in output
    assert output.count("worker 0: error: the same again") >= 5


def test_goes_on_for_as_long_as_there_is_progress(tmp_path):
    job = Job(tmp_path, """
        train(3)
        save(first + 1)
        if start < 7:
            sys.exit(1)
        """)
    code, output = job.end()
    assert code == 0 and job.starts() == 7, output


def test_no_more_restarts_than_allowed(tmp_path):
    job = Job(tmp_path, "train(3); save(first + 1); sys.exit(1)", "--max-restarts", "2")
    code, output = job.end()
    assert code == 1 and job.starts() == 3
    assert "giving up after 3 attempts (--max-restarts)" in output


def test_a_job_that_never_begins_is_stuck(tmp_path):
    job = Job(tmp_path, "time.sleep(60)", "--patience", "1", "--max-restarts", "0")
    code, output = job.end()
    assert code == 1 and "stuck: the job gave no sign of life in phase 'start' for 1 s" in output


STOPPABLE = """
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    heart = Heart(0)
    heart.beat("start", 0)
    for step in range(1, 10000):
        heart.beat("step", step)
        (here / "ready").write_text("yes")
        time.sleep(0.01)
        if asked and {saves}:
            save(step)
            sys.exit(128 + asked[0])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_job_save(number, tmp_path):
    job = Job(tmp_path, STOPPABLE.format(saves=True))
    job.wait_for("ready")
    job.process.send_signal(number)
    code, output = job.end()
    assert code == 128 + number and job.starts() == 1 and (tmp_path / "saved").exists()
    assert f"stopped by {number.name}; the same command continues" in output


def test_a_machine_that_stood_still_is_no_fault_of_the_worker(tmp_path):
    job = Job(tmp_path, STOPPABLE.format(saves=True), "--stuck-after", "5")
    job.wait_for("ready")
    time.sleep(1)                                           # for the watch to see a step
    watch, (worker,) = job.process.pid, descendants(job.process.pid)
    for pid, number, seconds in [(worker, signal.SIGSTOP, 0.5), (watch, signal.SIGSTOP, 8),
                                 (watch, signal.SIGCONT, 0.5), (worker, signal.SIGCONT, 0)]:
        os.kill(pid, number)
        time.sleep(seconds)
    job.process.terminate()
    code, output = job.end()
    assert code == 143 and job.starts() == 1 and "stuck" not in output, output


def test_a_clock_leaves_out_what_stood_still():
    times = iter([10.0, 10.5, 11.5, 100.0, 100.25])
    clock = Clock(lambda: next(times))
    assert [clock.now() for _ in range(4)] == [10.5, 11.5, 12.5, 12.75]


def test_grace_ends(tmp_path):
    job = Job(tmp_path, STOPPABLE.format(saves=False), "--grace", "0.5")
    job.wait_for("ready")
    job.process.terminate()
    code, output = job.end()
    assert code == 143 and "stopped, but not saved within 0.5 s" in output


def test_a_second_signal_does_not_wait_for_grace(tmp_path):
    job = Job(tmp_path, STOPPABLE.format(saves=False))
    job.wait_for("ready")
    job.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    job.process.send_signal(signal.SIGINT)
    code, output = job.end(10)
    assert code == 130 and "stopped at once by a second signal" in output


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid, seconds=10):
    end = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("last_words", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_orphan_is_left(last_words, tmp_path):
    """Not even one in a session of its own that ignores what can be ignored."""
    job = Job(tmp_path, f"""
        child = subprocess.Popen(["nohup", "setsid", "sleep", "300"])
        (here / "child").write_text(str(child.pid))
        train(3)
        {last_words}
        """, "--max-restarts", "0")
    job.end()
    pid = int((tmp_path / "child").read_text())
    assert not alive(pid)


def test_workers_end_with_a_killed_supervisor(tmp_path):
    job = Job(tmp_path, """
        (here / "worker").write_text(str(os.getpid()))
        train(10000)
        """)
    pid = int(job.wait_for("worker"))
    time.sleep(0.3)
    job.process.kill()
    assert gone(pid)
    assert "the supervisor has gone or given this worker up; ending" in job.end()[1]


@pytest.mark.parametrize("words, message", [
    (["-np", "0", "--", __file__], "error: -np must be at least 1, got 0"),
    (["--", "no_such.py"], "error: there is no script 'no_such.py'; give the path of a recipe"),
    (["-np", "2", "-H", "here1:1,here2:1", "--", __file__],
     "error: workers on here1:1 need a place"),
    (["--status-dir", "/dev/null/x", "--", __file__], "error: --status-dir /dev/null/x cannot be"),
    (["--status-dir", "/proc", "--", __file__], "error: --status-dir /proc cannot be written"),
])
def test_mistakes_are_sentences(words, message, capsys):
    with pytest.raises(SystemExit) as exit:
        supervise.main(words)
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith(message)


def test_horovodrun_is_given_the_script_in_one_word(monkeypatch):
    """Else it would take --network for --network-interfaces."""
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    words = supervise._command(2, None, ["recipe.py", "--network", "a b"])
    assert words[1:5] == ["-np", "2", "-H", "localhost:2"]
    assert words[-3:] == ["sh", "-c", f"exec {sys.executable} recipe.py --network 'a b'"]


def beat(step, phase="step", beats=None, means=()):
    return Beat(1, "host", phase, 0, step, step if beats is None else beats, dict(means))


def test_the_limit_follows_the_measured_duration():
    limits = Limits(least=60, unknown=1800)
    assert limits.seconds(None) == 1800 and limits.seconds(0.1) == 60 and limits.seconds(10) == 200


def test_stuck_is_judged_by_phase_and_names_the_last_worker():
    means = {}
    pulse = Pulse(Limits(least=10, unknown=500), means, began=0.0)
    assert pulse.stuck({}, 499) is None
    assert "the job gave no sign of life in phase 'start' for 500 s" in pulse.stuck({}, 501)
    assert pulse.stuck({0: beat(0, "start", 1), 1: beat(0, "start", 1)}, 30) is None
    stepping = {0: beat(2, beats=3, means={"step": 1.0}), 1: beat(1, beats=2, means={"start": 9.0})}
    assert pulse.stuck(stepping, 40) is None
    assert means == {"start": 40, "step": 1.0}                   # its own start is longer
    assert pulse.stuck(stepping, 59.9) is None
    assert pulse.stuck(stepping, 61) == \
        "stuck: worker 1, after step 1, gave no sign of life in phase 'step' for 20 s"
    assert pulse.stuck({0: beat(3, beats=4), 1: beat(2, beats=3)}, 62) is None
    evaluating = {0: beat(3, "evaluation", 5), 1: beat(3, "evaluation", 5)}
    assert pulse.stuck(evaluating, 70) is None and pulse.stuck(evaluating, 569) is None
    assert "in phase 'evaluation' for 500 s" in pulse.stuck(evaluating, 571)


def test_an_evaluation_before_the_first_step_has_its_own_limit():
    """As of a run that goes on from a checkpoint whose evaluation is due."""
    means = {"start": 10.0, "evaluation": 600.0}
    pulse = Pulse(Limits(60, 1800), means, began=0)
    assert pulse.stuck({0: beat(8, "start", 1)}, 5) is None
    assert pulse.stuck({0: beat(8, "evaluation", 2)}, 10) is None
    assert pulse.stuck({0: beat(8, "evaluation", 2)}, 12000) is None
    assert "worker 0, after step 8, gave no sign of life in phase 'evaluation' for 12000 s" in \
        pulse.stuck({0: beat(8, "evaluation", 2)}, 12011)
    assert pulse.stuck({0: beat(8, "start", 3)}, 13000) is None     # what the first step waits for
    assert pulse.stuck({0: beat(9, "step", 4)}, 13100) is None
    assert means["start"] == 10.0                                   # not learnt from such a start


def attempt(first):
    return Attempt(1, first, None, 1.0, "killed")


@pytest.mark.parametrize("firsts, progressed", [
    ([0], True), ([None], False), ([0, 0], False), ([0, 5], True), ([0, 5, 5], False),
    ([0, 5, None], False), ([None, 0], True), ([0, 5, 3], False)])
def test_progress_is_a_newer_checkpoint_to_begin_at(firsts, progressed):
    *before, last = map(attempt, firsts)
    assert supervise._progressed(last, before) is progressed

"""Does a supervised run survive? Faults at random moments, then a comparison bit for bit.

    python tests/kill_trials.py --events 20

Two workers train a small ResNeSt under `engine.supervise`, with mixup, AutoAugment and DropBlock.
At random steps one of FAULTS strikes. The run must end by itself, with parameters, optimizer state
and evaluations equal to those of a run that nothing disturbed. Prints a table; exit code 1 if they
are not equal.

A full disk needs a file system of its own, so the right to mount one: as root, or started with
`unshare --user --map-root-user --mount`. Where that fails, this fault is left out.
"""
import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gluon_resnest.data.recordio import RecordWriter
from gluon_resnest.engine import heartbeat
from gluon_resnest.engine.processes import descendants

ROOT = Path(__file__).resolve().parents[1]
WORKERS, BATCH, IMAGES = 2, 8, 80
STEPS_PER_EPOCH = IMAGES // BATCH
SAVE_EVERY = 4
REACH = 20                        # a fault strikes at most so many steps after the last restart


@dataclass(frozen=True)
class Event:
    """One fault: at which step it struck, seconds until the next step was done, steps repeated."""

    fault: str
    step: int
    seconds: float
    repeated: int


class Job:
    """A supervised run in a process of its own."""

    def __init__(self, folder, records, epochs, *, network, stuck_after, extra=()):
        self.workdir, self.status = folder / "run", folder / "status"
        self.output = open(folder / "output.txt", "w")
        command = [
            sys.executable, "-m", "gluon_resnest.engine.supervise", "-np", str(WORKERS),
            "--stuck-after", str(stuck_after), "--max-restarts", "1000",
            "--status-dir", str(self.status), "--",
            str(ROOT / "recipes/imagenet.py"), "--network", network, "--classes", "3",
            "--crop-px", "32", "--eval-px", "32", "--batch", str(BATCH), "--epochs", str(epochs),
            "--warmup-epochs", "1", "--lr", "0.05", "--eval-every", "2", "--data-workers", "1",
            "--log-every", str(SAVE_EVERY), "--save-every", str(SAVE_EVERY), "--expect-top1",
            "none", "--rec-train", str(records), "--rec-val", str(records), "--workdir",
            str(self.workdir), *extra]
        self.process = subprocess.Popen(command, stdout=self.output, stderr=subprocess.STDOUT,
                                        env={**os.environ, "OMP_NUM_THREADS": "1",
                                             "PYTHONPATH": str(ROOT)})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()           # its workers end with it: their lease is gone
            self.process.wait()
        self.output.close()

    def attempt(self):
        """Returns (number of the newest attempt, its beats)."""
        number = max((int(path.name[8:]) for path in self.status.glob("*/attempt-*")), default=-1)
        return number, self.beats(number)

    def beats(self, number):
        """Returns the last beats of an attempt."""
        return {rank: beat for path in self.status.glob(f"*/attempt-{number}")
                for rank, beat in heartbeat.beats(path).items()}

    def wait(self, reached, seconds=300):
        """Waits until `reached(number, beats)`; returns the beats, or None if the job ended."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds} s in vain")
            number, beats = self.attempt()
            if reached(number, beats):
                return beats
            time.sleep(0.01)
        return None


def kill_worker(job, beats, rng):
    os.kill(rng.choice(list(beats.values())).pid, signal.SIGKILL)


def kill_all_workers(job, beats, rng):
    for beat in beats.values():
        os.kill(beat.pid, signal.SIGKILL)


def kill_launcher(job, beats, rng):
    for pid in descendants(job.process.pid):
        if b"horovodrun" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            return


def stop_worker(job, beats, rng):
    os.kill(rng.choice(list(beats.values())).pid, signal.SIGSTOP)


def truncate_newest(job, beats, rng):
    """Shortens a file of the newest checkpoint and kills a worker."""
    newest = max((job.workdir / "checkpoints").glob("step-*"))
    path = rng.choice(sorted(newest.iterdir()))
    os.truncate(path, rng.randrange(path.stat().st_size))
    kill_worker(job, beats, rng)


def fill_disk(job, beats, rng):
    """Fills the file system of the run until a save has failed."""
    filler, number = job.workdir / "filler", job.attempt()[0]
    try:
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        job.wait(lambda now, _: now > number)
    finally:
        filler.unlink()


FAULTS = {"kill -9 of a worker": kill_worker, "kill -9 of all workers": kill_all_workers,
          "kill -9 of horovodrun": kill_launcher, "SIGSTOP of a worker": stop_worker,
          "truncated checkpoint, kill -9": truncate_newest, "full disk during a save": fill_disk}


def disturb(job, faults, rng):
    """Lets the faults strike one after the other; yields an Event for each."""
    for fault in faults:
        wait_for = rng.randrange(1, REACH)
        number, _ = job.attempt()
        beats = job.wait(lambda now, beats: len(beats) == WORKERS and all(
            beat.step - beat.first >= wait_for for beat in beats.values()))
        if beats is None:
            return
        number = job.attempt()[0]
        time.sleep(rng.uniform(0, 0.1))
        struck = time.monotonic()
        FAULTS[fault](job, beats, rng)
        beats = job.wait(lambda now, beats: now > number and len(beats) == WORKERS and all(
            beat.step > beat.first for beat in beats.values()))
        if beats is None:
            return
        seconds = time.monotonic() - struck
        step = max(beat.step for beat in job.beats(number).values())
        yield Event(fault, step, seconds, step - beats[0].first)


def make_records(path):
    """Writes noisy JPEGs of three colours."""
    with RecordWriter(path) as writer:
        for number in range(IMAGES):
            image = np.random.RandomState(number).randint(0, 60, (40, 52, 3), np.uint8)
            image[..., number % 3] += 150
            writer.write(number % 3, cv2.imencode(".jpg", image)[1].tobytes())


def result(workdir):
    """Returns what must be equal, by name.

    Of the log the evaluations: a training line is a mean since the last line or save, and a worker
    that is asked to end saves where it stands.
    """
    newest = max((workdir / "checkpoints").glob("step-*"))
    files = {name: hashlib.sha256((newest / name).read_bytes()).hexdigest()
             for name in ("model.params", "optimizer.params")}
    clocked = ("time", "images_per_second", "data_wait")
    log = [{name: value for name, value in json.loads(line).items() if name not in clocked}
           for line in (workdir / "log.jsonl").read_text().splitlines() if "metrics" in line]
    return {"step": newest.name, **files, "evaluations": log}


def trial(folder, faults, *, seed, network="resnest_tiny", stuck_after=5, records=None):
    """Runs undisturbed, then with faults.

    Returns:
      (events, names of what differs between both runs).
    """
    folder = Path(folder)
    if records is None:
        records = folder / "images.rec"
        make_records(records)
    epochs = -(-REACH * (len(faults) + 1) // STEPS_PER_EPOCH)
    outcomes, events = [], []
    for name in ("undisturbed", "disturbed"):
        (folder / name).mkdir(exist_ok=True)
        with Job(folder / name, records, epochs, network=network, stuck_after=stuck_after) as job:
            if name == "disturbed":
                events = list(disturb(job, faults, random.Random(seed)))
            if job.process.wait(1800) != 0:
                raise RuntimeError((folder / name / "output.txt").read_text()[-40000:])
        outcomes.append(result(job.workdir))
    return events, [name for name in outcomes[0] if outcomes[0][name] != outcomes[1][name]]


@contextlib.contextmanager
def small_disk(folder, mebibytes=64):
    """Mounts a small file system on a folder; yields whether that was allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "kill-trials", str(folder)]
    done = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20, metavar="N")
    parser.add_argument("--only", choices=FAULTS, metavar="FAULT", help="; ".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--network", default="resnest_tiny")
    parser.add_argument("--stuck-after", type=float, default=10, metavar="SECONDS")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder) / "disturbed"
        disk.mkdir()
        with small_disk(disk) as full:
            known = [flags.only] if flags.only else [
                fault for fault in FAULTS if full or fault != "full disk during a save"]
            faults = list(itertools.islice(itertools.cycle(known), flags.events))
            random.Random(flags.seed).shuffle(faults)
            events, different = trial(folder, faults, seed=flags.seed, network=flags.network,
                                      stuck_after=flags.stuck_after)
    print("| fault | at step | seconds until it trained again | steps repeated |")
    print("| --- | --- | --- | --- |")
    for event in events:
        print(f"| {event.fault} | {event.step} | {event.seconds:.1f} | {event.repeated} |")
    print(f"{len(events)} of {len(faults)} faults struck; "
          + (f"DIFFERENT: {', '.join(different)}" if different else
             "parameters, optimizer state and evaluations are equal bit for bit"))
    return 0 if not different and len(events) == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What do checkpoints cost a training, and what does `--deterministic`?

    python tests/writer_trials.py stall                 # one worker saves every 40 steps
    python tests/writer_trials.py deterministic         # three workers, with and without, in turns

Both train on synthetic images through `recipes/imagenet.py` and read its log.
"""
import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WINDOW, SAVE_EVERY = 5, 40


def train(workdir, *words, workers=1):
    """Trains one epoch; returns (step, seconds of a step up to there since the line before).

    By the clock of the log, which also runs while a checkpoint is copied.
    """
    command = [sys.executable, str(ROOT / "recipes/imagenet.py"), "--data", "synthetic",
               "--epochs", "1", "--warmup-epochs", "0", "--eval-every", "1", "--workdir",
               str(workdir), "--log-every", str(WINDOW), "--data-workers", "1",
               "--expect-top1", "none", *words]
    if workers > 1:     # in one word: horovodrun would take some of the flags for its own
        command = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(workers),
                   "-H", f"localhost:{workers}", "sh", "-c", shlex.join(command)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "training"]
    return [(line["step"], (line["time"] - before["time"]) / (line["step"] - before["step"]))
            for before, line in zip(lines, lines[1:])]


def stall(folder, steps):
    """Prints how much longer steps take while a checkpoint is written than the others.

    The windows of a run are compared with each other: the first two after a save, in which the
    arrays are copied, hashed, written and synced, with the rest.
    """
    seconds = train(folder / "run", "--model", "resnest50", "--batch", "4", "--crop-px", "96",
                    "--eval-px", "64", "--save-every", str(SAVE_EVERY), "--synthetic-steps",
                    str(steps), "--keep", "1")
    seconds = [((step - 1) % SAVE_EVERY + 1, value) for step, value in seconds
               if step > SAVE_EVERY]
    writing = [value for place, value in seconds if place <= 2 * WINDOW]
    others = [value for place, value in seconds if place > 2 * WINDOW]
    usual, slower = statistics.median(others), statistics.mean(writing)
    extra = (slower - usual) * 2 * WINDOW
    bytes_ = sum(file.stat().st_size for file in
                 max((folder / "run/checkpoints").glob("step-*")).iterdir())
    print(f"a step takes {usual:.3f} s, {slower:.3f} s while a checkpoint of {bytes_ / 2**20:.0f} "
          f"MiB is written ({len(writing)} and {len(others)} windows of {WINDOW} steps)")
    print(f"a checkpoint costs {extra:.2f} s: {extra / (usual * SAVE_EVERY):.1%} of training when "
          f"one is written every {usual * SAVE_EVERY:.0f} s, 2 % when every {extra / 0.02:.0f} s")


def deterministic(folder, steps, rounds=3):
    """Prints the time of a step of three workers with the flag by that without, round by round."""
    ratios = []
    for number in range(rounds):
        plain, fixed = (
            statistics.median(value for _, value in train(
                folder / f"{number}{kind}", "--model", "resnest50", "--network", "resnest14",
                "--batch", "12", "--crop-px", "64", "--eval-px", "64", "--synthetic-steps",
                str(steps), *flags, workers=3))
            for kind, flags in (("plain", ()), ("fixed", ("--deterministic",))))
        ratios.append(fixed / plain)
        print(f"round {number}: {plain:.3f} s a step, {fixed:.3f} s with --deterministic, ratio "
              f"{fixed / plain:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stall", "deterministic"))
    parser.add_argument("--steps", type=int, default=120)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        {"stall": stall, "deterministic": deterministic}[chosen.what](Path(directory),
                                                                      chosen.steps)

"""Runs the main job on real data without a download: digits -> RecordIO -> training -> export.

The handwritten digits that ship with scikit-learn are enlarged, packed with our own packer, learned
by a small ResNeSt on two Horovod workers, evaluated, exported, loaded again and predicted. Running
it again repeats only what is missing.

    make demo                                (sets up everything first)
    python tools/demo.py --out runs/demo
"""
import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gluon_resnest.errors import MissingExtra, UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parent.parent
TRAIN_IMAGES = 1437             # of scikit-learn's 1797; the others are the test set
GOAL_TOP1 = 98.0
DIGIT_PX, IMAGE_PX, CROP_PX = 28, 37, 32        # 37 = ceil(32 / .875): evaluation crops, no resize

# Overrides of the ImageNet recipe for 1437 small grey digits, which must not be mirrored.
RECIPE = {
    "model": "resnest14", "classes": 10, "crop-px": CROP_PX, "eval-px": CROP_PX, "batch": 64,
    "epochs": 14, "warmup-epochs": 1, "lr": 0.05, "eval-every": 2, "auto-augment": "none",
    "flip": "false", "crop-scale": 0.7, "jitter": 0.2, "lighting": 0, "mixup-alpha": 0.1,
    "expect-top1": GOAL_TOP1, "tolerance": 0, "expect-top1-320": "none",
}


def write_digits(folder):
    """Writes scikit-learn's digits as JPEG, {folder}/{train,test}/{digit}/{number}.jpg."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("scikit-learn", "dev") from None
    digits = load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(digits.target))
    for position, index in enumerate(order):
        part = "train" if position < TRAIN_IMAGES else "test"
        target = folder / part / str(digits.target[index])
        target.mkdir(parents=True, exist_ok=True)
        ink = Image.fromarray(np.uint8(digits.images[index] * (255 / 16)))
        canvas = Image.new("RGB", (IMAGE_PX, IMAGE_PX))
        corner = (IMAGE_PX - DIGIT_PX) // 2
        canvas.paste(ink.resize((DIGIT_PX, DIGIT_PX), Image.BICUBIC), (corner, corner))
        canvas.save(target / f"{index:04d}.jpg", quality=95)


def launcher(workers):
    """Returns the words in front of a script that start so many workers of it.

    Raises:
      UserError: if there is no such number, or no Horovod for it.
    """
    if workers < 1:
        raise UserError(f"-np must be at least 1, got {workers}")
    if workers == 1:
        return [sys.executable]
    beside = Path(sys.executable).with_name("horovodrun")
    horovodrun = shutil.which("horovodrun", path=str(beside.parent)) or shutil.which("horovodrun")
    if horovodrun is None:
        raise UserError(f"{workers} workers need {beside}, which is not there; install Horovod "
                        "with `pip install 'gluon-resnest[train]'`, or give -np 1")
    return [horovodrun, "-np", workers, sys.executable]


def run(title, *words):
    """Runs one command of the toolkit, echoed so that it can be copied; returns its seconds."""
    words = [str(word) for word in words]
    shown = shlex.join(word.replace(str(ROOT) + "/", "") for word in words)
    print(f"\n== {title}\n$ {shown}", flush=True)
    start = time.time()
    code = subprocess.call(words, cwd=ROOT)
    if code:
        raise UserError(f"the step {title!r} ended with exit code {code}; its own words are above")
    return time.time() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ROOT / "runs" / "demo"), metavar="DIR",
                        help="where everything goes (default: runs/demo)")
    parser.add_argument("-np", "--workers", type=int, default=2, metavar="N",
                        help="Horovod workers; 1 runs without Horovod (default: %(default)s)")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out).resolve()
    python, launch = sys.executable, launcher(arguments.workers)
    start = time.time()

    images, run_dir, deploy = out / "images", out / "run", out / "deploy" / "digits"
    if not (images / "done").exists():
        print(f"== Writing {TRAIN_IMAGES} training and 360 test digits", flush=True)
        write_digits(images)
        (images / "done").touch()
    for part in ("train", "test"):
        if not (out / f"{part}.rec").exists():
            run(f"Packing the {part} images", python, ROOT / "tools/pack_records.py",
                images / part, out / f"{part}.rec")
    flags = [word for name, value in RECIPE.items() for word in (f"--{name}", value)]
    data = ["--rec-train", out / "train.rec", "--rec-val", out / "test.rec"]
    trained = run(f"Training on {arguments.workers} workers", *launch, ROOT / "recipes/imagenet.py",
                  *flags, *data, "--workdir", run_dir, "--log-every", 11, "--data-workers", 1)
    run("Evaluating the best checkpoint", *launch, ROOT / "recipes/imagenet.py", *flags, *data,
        "--workdir", run_dir, "--eval-only", "--data-workers", 0)
    run("Exporting", python, ROOT / "tools/export_model.py", run_dir, "--out", deploy)
    samples = [sorted((images / "test" / str(digit)).iterdir())[0] for digit in range(10)]
    run("Predicting from files", python, ROOT / "tools/predict.py", deploy, *samples,
        "--topk", 3, "--save", out / "predictions.png")

    result = json.loads((run_dir / "result.json").read_text())
    top1 = result["measured"]["top1"]
    print(f"""
== Done in {time.time() - start:.0f} s (training {trained:.0f} s)
test accuracy   {top1:.2f} % of {result['measured']['images']} images (goal: above {GOAL_TOP1:g} %)
images          {images}
records         {out / 'train.rec'}, {out / 'test.rec'}
run directory   {run_dir}   (config.json, log.jsonl, checkpoints/, result.json, curves.png)
exported model  {deploy}-symbol.json, {deploy}-0000.params
predictions     {out / 'predictions.png'}

Next: the same recipe on your own pictures, one folder per class:
  python tools/pack_records.py PICTURES/train train.rec
  horovodrun -np 2 python recipes/imagenet.py --model resnest50 --classes N \\
      --rec-train train.rec --rec-val val.rec --workdir runs/mine --batch 64 --epochs 30
  python recipes/imagenet.py --help""")
    if not top1 > GOAL_TOP1:
        raise UserError(f"the demo should exceed {GOAL_TOP1} % and reached {top1:.2f} %; "
                        f"please report {run_dir / 'log.jsonl'}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()

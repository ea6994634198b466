"""Draws docs/plan.png: how a training scales from 1 to 512 workers, by the model of `--plan`.

    python tools/render_plan.py                                 the paper's ResNeSt-50
    python tools/render_plan.py --out FOLDER

Prints the numbers of the curves as a table.
"""
import argparse
from dataclasses import replace
from pathlib import Path

from gluon_resnest.engine.plan import Cluster, estimate
from gluon_resnest.errors import MissingExtra, UserError, exit_on_user_error
from gluon_resnest.recipes.imagenet import RECIPES
from gluon_resnest.tasks.workload import classification_workload

WORKERS = [2 ** k for k in range(10)]
IMAGES_PER_WORKER, SPEED = 128, 258.0       # see docs/plan.md
NETWORKS = {"100 Gbit/s (12.5 GB/s)": 12.5, "25 Gbit/s (3.1 GB/s)": 3.125,
            "10 Gbit/s (1.25 GB/s)": 1.25}


def plans(bandwidth):
    """Returns the Plan of each number of workers, with the same images for each worker."""
    made = []
    for workers in WORKERS:
        recipe = replace(RECIPES["resnest50"], batch=IMAGES_PER_WORKER * workers)
        cluster = Cluster(workers=workers, images_per_second=SPEED, bandwidth=bandwidth)
        work = classification_workload(recipe, cluster) if not made else replace(
            made[0].workload, batch=recipe.batch,
            steps_per_epoch=-(-int(cluster.images) // recipe.batch))
        made.append(estimate(work, cluster))
    return made


def draw(curves, path):
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib") from error
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    speed, time = figure.subplots(1, 2)
    speed.plot(WORKERS, [SPEED * workers for workers in WORKERS], "k:", label="without each other")
    for label, made in curves.items():
        speed.plot(WORKERS, [plan.images_per_second for plan in made], marker="o", label=label)
        time.plot(WORKERS, [100 * plan.efficiency for plan in made], marker="o", label=label)
    speed.set(xscale="log", yscale="log", ylabel="images/s", title="speed")
    time.set(xscale="log", ylim=(0, 103), ylabel="% of workers without each other",
             title="efficiency")
    for axes in (speed, time):
        axes.set_xscale("log", base=2)
        axes.set_xticks(WORKERS, [str(workers) for workers in WORKERS])
        axes.set_xlabel("workers")
        axes.grid(alpha=0.3)
        axes.legend(title="all-reduce")
    figure.suptitle(f"ResNeSt-50, {IMAGES_PER_WORKER} images of 224 px per worker, "
                    f"{SPEED:g} images/s each alone (model, not measured)")
    figure.savefig(path, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FOLDER", type=Path,
                        default=Path(__file__).resolve().parents[1] / "docs",
                        help="existing folder (default: docs)")
    flags = parser.parse_args(argv)
    with exit_on_user_error():
        if not flags.out.is_dir():
            raise UserError(f"--out must be an existing folder, got {str(flags.out)!r}")
        curves = {label: plans(bandwidth) for label, bandwidth in NETWORKS.items()}
        draw(curves, flags.out / "plan.png")
        print("| workers | " + " | ".join(curves) + " |\n" + "|---" * (len(curves) + 1) + "|")
        for row, workers in enumerate(WORKERS):
            cells = [f"{made[row].images_per_second:.0f} images/s, {made[row].efficiency:.1%}, "
                     f"{made[row].hours:.1f} h" for made in curves.values()]
            print(f"| {workers} | " + " | ".join(cells) + " |")
        print(f"wrote {flags.out / 'plan.png'}")


if __name__ == "__main__":
    main()

"""Renders docs/reproduce.md from the tables and the kept results."""
import json
from pathlib import Path

from gluon_resnest.provenance import short
from gluon_resnest.reproduction import elsewhere, paper
from gluon_resnest.reproduction.cost import gpu_hours
from gluon_resnest.reproduction.results import judge, metrics_of, outcome, read_runs, runs_of
from gluon_resnest.reproduction.rows import TITLES, recipe_of

TABLES = (*paper.TABLES, *elsewhere.TABLES)

HEAD = """# Reproducing the tables

Rendered by `python tools/render_results.py` from the tables in `gluon_resnest/reproduction/` and
the results kept in `docs/results/`; a test compares. **Expected numbers are published ones**
(an aim of this project's own is called so in its remark), measured ones are those of kept runs.
What classifiers cost stands on the page of the [model zoo](model_zoo.md).

```
python tools/reproduce.py --list                 # the tables below, by name
python tools/reproduce.py table3 --only resnest50 --dry-run -- --rec-train train.rec \\
    --rec-val val.rec
python tools/reproduce.py table3 -np 8 -- --device gpu --rec-train train.rec --rec-val val.rec
python tools/reproduce.py cifar1 --seeds 0,1,2 -- --data cifar10
python tools/render_results.py runs/cifar10/*    # keeps those that are finished, renders this page
```

What follows `--` goes to the recipe of every row; `{backbone}` in it becomes the row's own. A table
whose rows need different data is run in parts, with `--only` and the flags that stand above the
table; words that a row cannot take, or lacks, and weights to evaluate that are gone are told before
the first row begins. What a recipe refuses later, such as data that is not as it should be, ends
the table, as the next row would meet the same; the same command goes on. A row is skipped if there
is a finished run, of whatever row, with its settings and seed below `--workdir`; an interrupted one
goes on.

`runs/imagenet/{backbone}` is what
`python recipes/imagenet.py --model {backbone} --workdir runs/imagenet/{backbone}` has trained. The
ResNet rows of detectors stand on `resnet50_msra` and `resnet101_msra`, those of segmentation on
`resnet50_v1s` and `resnet101_v1s`: no table has these, so that they are trained by this command
first ([detection](detection.md#training), [segmentation](segmentation.md#training)).

**Command**: what a row runs, with `python` before it, data and `--workdir` behind it; where it ends
with `--eval-only`, also `--weights`, the newest checkpoint of its training, which the row of the
training reports, too: the best one was chosen on the images that judge it.
**GPU hours**: of one V100, by the model of [`--plan`](plan.md) with the speeds stated in
`gluon_resnest/reproduction/cost.py`: classifiers, segmentation and pose networks in proportion of
their multiply-accumulates to ResNeSt-50's 258 images/s at 224 px, detectors in proportion of their
backbones' to GluonCV's 3.46 images/s of Faster R-CNN on ResNeSt-50
([0137](decisions/0137-price-of-a-row.md)); evaluation and loading are left out, so expect more.
**Verdict**: the mean over seeds may fall short of the first number by the tolerance, in points.
Behind measured numbers are the seeds of the runs; with several, ± is the standard deviation of one.
A run that another commit continued names the commits that were noted (older runs noted the first
and the last); an undisturbed one may differ from it.
"""


def render(results_root, tables=TABLES):
    """Returns the text of the page.

    Args:
      results_root: folder of kept results; tables: of Table.
    """
    runs = read_runs(results_root)
    lines = ["| name | table | rows | with a recipe | with results |", "|---|---|---|---|---|"]
    for table in tables:
        counts = [len(table.rows), sum(recipe_of(row) is not None for row in table.rows),
                  sum(bool(runs_of(row, runs)) for row in table.rows)]
        lines.append(f"| [{table.name}](#{_anchor(table.title)}) | {table.title} | "
                     + " | ".join(map(str, counts)) + " |")
    return "\n".join([HEAD, *lines]) + "\n" + "".join(
        f"\n## {table.title}\n\n{_table(table, runs, Path(results_root))}" for table in tables)


def _table(table, runs, root):
    lines = [f"Source: {table.source}." + _data(table), "", *([table.note, ""] * bool(table.note)),
             "| row | command | expected | tolerance | measured | verdict | remark |",
             "|---|---|---|---|---|---|---|"]
    for row in table.rows:
        mine = runs_of(row, runs)
        recipe = recipe_of(row)
        judged = recipe and row.expected and not row.server
        cells = [row.name, f"`{command(row)}`" if command(row) else "", _expected(row),
                 f"{recipe.tolerance:g}" if judged else "", _measured(row, mine, recipe, root),
                 judge(row, mine) or "", row.remark]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    return text + (_costs(table, runs, root) if table.costs else "")


def _data(table):
    """Returns which flags say where the data is."""
    if not table.data:
        return ""
    if isinstance(table.data, str):
        return f" Data: `{table.data}`."
    return " Data, in parts:\n\n" + "\n".join(
        f"- `--only '{pattern}' -- {flags}`" for pattern, flags in table.data)


def command(row):
    """Returns what a row runs, without data and work directory; "" if nothing."""
    if row.benchmark:
        return f"tools/benchmark.py {row.benchmark}"
    if not row.recipe:
        return ""
    words = [f"recipes/{row.recipe}.py --model {row.model}"]
    words += [f"--{name.replace('_', '-')} {word}"
              for name, word in (*row.changes, *row.evaluation)]
    return " ".join([*words, *(["--eval-only"] if row.evaluation or row.server else [])])


def number(metric, value):
    """Returns a number of a metric as people write it."""
    return f"{value:.1f}" if metric == "images_per_second" else f"{value:.2f}"


def _expected(row):
    return ", ".join(f"{TITLES[metric]} {number(metric, value)}" for metric, value in row.expected
                     if not (row.recipe and metric in ("parameters", "images_per_second")))


def _measured(row, runs, recipe, root):
    if row.benchmark:
        return "not run: needs a V100"
    if row.recipe is None:
        return "printed only"
    if recipe is None:
        return "no recipe yet"
    if runs:
        return describe(row, runs) + "".join(
            f" [{run.seed}]({_link(run, root)}){_history(run)}" for run in runs)
    if row.evaluation or row.server:
        training = f"{row.recipe}/{row.server}" if row.server else row.directory
        return f"not run: needs the training of `{training}`"
    if row.lacks:
        return f"not run: needs {row.lacks}"
    hours = gpu_hours(recipe)
    return "not run" + (f": needs {_hours(hours)} GPU hours" if hours else "")


def _history(run):
    """Returns by which commits a run was trained that was continued by another."""
    commits = [short(commit) for commit in run.commits]
    return f" by {', then '.join(commits)}" if len(commits) > 1 else ""


def describe(row, runs):
    """Returns what the runs of a row measured, with the spread over seeds."""
    words = []
    for metric in metrics_of(row, runs[0]):
        found = outcome(runs, metric)
        if found and metric not in ("parameters", "images_per_second"):
            spread = f" ± {number(metric, found.spread)}" if found.runs > 1 else ""
            words.append(f"{TITLES[metric]} {number(metric, found.mean)}{spread}")
    return ", ".join(words) + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")


def _costs(table, runs, root):
    """Returns the table of parameters and of speed relative to the first row."""
    source, ratios = _speeds(root / "speeds" / f"{table.name}.json")
    lines = ["", f"Parameters, and speed relative to the first row: printed, of a T4; {source}", "",
             "| row | M parameters printed | ours | images/s printed | ratio there | here |",
             "|---|---|---|---|---|---|"]
    first = table.rows[0]
    for row in table.rows:
        told = dict(row.expected)
        if "parameters" not in told:
            continue
        mine = runs_of(row, runs)
        size = outcome(mine, "parameters")
        ratio = told["images_per_second"] / dict(first.expected)["images_per_second"]
        lines.append("| " + " | ".join([
            row.name, f"{told['parameters']:.2f}", f"{size.mean / 1e6:.2f}" if size else "",
            f"{told['images_per_second']:g}", f"{ratio:.2f}",
            ratios.get(recipe_of(row).network, "")]) + " |")
    return "\n".join(lines) + "\n"


def _speeds(path):
    """Returns what a document of tools/benchmark.py is, and {network: relative speed}, as text."""
    if not path.is_file():
        return "ours was not measured.", {}
    made = json.loads(path.read_text())
    settings, host = made["settings"], made["machine"]
    flags = " ".join(f"--{name.replace('_', '-')}" + (f" {value}" if value is not True else "")
                     for name, value in settings.items())
    return (f"ours by `tools/benchmark.py {made['kind']} {flags}`, in turns, at "
            f"{short(made['commit'])} ({host['cpu']}, {settings['threads']} of {host['cpus']} "
            "CPUs): median and extremes of the rounds.",
            {row["competitor"]: f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to "
             f"{row['ratio_high']:.2f})" for row in made["rows"]})


def _hours(hours):
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else "less than 0.1"


def _link(run, root):
    return (Path(root.name) / run.directory.relative_to(root) / "result.json").as_posix()


def _anchor(title):
    """Returns the anchor that GitHub gives a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")

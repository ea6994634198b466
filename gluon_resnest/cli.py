"""The one command line of all recipes: flags over recipe, checked; what it asks for is executed.

Recipes import this module before their task, so that the engine's environment variables are set
before mxnet is loaded; for the same reason mxnet is imported here only inside functions.
"""
import argparse
import dataclasses
import os
import signal
import sys

from gluon_resnest.config import override
from gluon_resnest.config.fields import plain_type
from gluon_resnest.engine.launchers import told
from gluon_resnest.errors import UserError, exit_on_user_error, nearest
from gluon_resnest.execution import execute, leave, plan

_DATA = dict(default="real", choices=("real", "synthetic"),
             help="synthetic: generated images, to measure speed or try the wiring")
_WEIGHTS = dict(metavar="FILE", help="start from, or evaluate, this .params file or URL; "
                "published: the newest the zoo's table names")

# Set where the user has not: name -> (value, reason).
ENGINE_ENVIRONMENT = {
    "MXNET_CUDNN_AUTOTUNE_DEFAULT": ("1", "shapes are fixed in training: search once, run fast"),
    "MXNET_OPTIMIZER_AGGREGATION_SIZE": ("54", "one kernel updates many small parameters"),
    "MXNET_EXEC_BULK_EXEC_MAX_NODE_TRAIN_FWD": ("999", "no engine round trip between operators"),
    "MXNET_EXEC_BULK_EXEC_MAX_NODE_TRAIN_BWD": ("25", "small bulks let all-reduce start early"),
    "MXNET_GPU_PARALLEL_RAND_COPY": ("1", "one generator per GPU: with several, which one draws "
                                     "depends on what was drawn before the step was seeded"),
    "MXNET_SAFE_ACCUMULATION": ("1", "float16 reductions add up in float32"),
}

# Set by --deterministic, whatever the user has set.
DETERMINISTIC_ENVIRONMENT = {
    "HOROVOD_FUSION_THRESHOLD": ("0", "which gradients share a ring decides the order of sums"),
    "HOROVOD_AUTOTUNE": ("0", "it changes the fusion while training"),
    "MXNET_CUDNN_AUTOTUNE_DEFAULT": ("0", "the fastest algorithm of a search varies"),
    "MXNET_ENFORCE_DETERMINISM": ("1", "cuDNN algorithms that add in a fixed order"),
}


def set_engine_environment(environ=os.environ):
    """Sets MXNET_* and OMP_NUM_THREADS where unset.

    Workers of one machine share the CPUs that this process may use; one that its launcher has given
    CPUs of its own gets fewer threads than it might have.

    A fixed number of OpenMP threads is also what makes two runs bit-equal: sums are split by
    thread.
    """
    for name, (value, _) in ENGINE_ENVIRONMENT.items():
        environ.setdefault(name, value)
    threads = len(os.sched_getaffinity(0)) // told(environ, "local_size", 1)
    environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))


set_engine_environment()


def main(recipes, task_class, argv=None):
    """Runs one entry of `recipes`, {name: recipe}, as `task_class`; see docs/architecture.md.

    A user's mistake prints one sentence and exits with code 2.
    """
    from gluon_resnest.engine.heartbeat import reported
    with exit_on_user_error(), reported():
        recipe, run = parse(recipes, task_class, argv)
        if run.plan is not None:
            print(plan(recipe, run, task_class))
            return
        if run.deterministic:
            os.environ.update(
                {name: value for name, (value, _) in DETERMINISTIC_ENVIRONMENT.items()})
        try:
            execute(recipe, run, task_class)
        except FloatingPointError as error:
            sys.exit(f"error: {error}; lower the learning rate or look at the data of that step")
        except KeyboardInterrupt:
            leave(128 + signal.SIGINT, "interrupted before training or after it")


def parse(recipes, task_class, argv=None):
    """Returns (recipe, run): the chosen recipe with its overrides, and the other flags.

    Args:
      recipes: {name: recipe}, all of one dataclass.
      task_class: offers `add_flags(parser)` for the paths it needs; if they are one path, it
        describes --data as that path in `data_flag`, "synthetic" being a value still. What only
        the data can say, it writes into a recipe by `completed(recipe, run)`.
        `entries` says in place of a list what --model may be, `weights_flag` describes --weights.
      argv: words after the program's name; None means those of this process.

    `run` has "named", the entry if the command line names one, and "changes", {field: word} of the
    recipe, beside the flags.
    """
    recipe, run = parse_words(recipes, task_class, argv)
    if hasattr(task_class, "completed"):
        recipe = task_class.completed(recipe, run)
    return recipe, run


def parse_words(recipes, task_class, argv=None):
    """Returns what `parse` does as far as the words say it: no data is looked into."""
    parser = _parser(recipes, task_class)
    run = parser.parse_args(argv)
    run.named, run.model = run.model, run.model or next(iter(recipes))
    if run.model not in recipes:
        known = f"known are {_entries(recipes, task_class)}"
        raise UserError(f"--model {run.model!r} is no recipe of this file"
                        f"{nearest(run.model, recipes) or '; ' + known}")
    recipe = recipes[run.model]
    words = {field.name: getattr(run, field.name) for field in dataclasses.fields(recipe)}
    for name in words:
        delattr(run, name)
    run.changes = {name: word for name, word in words.items() if word is not None}
    return override(recipe, run.changes), run


def _parser(recipes, task_class):
    module = sys.modules.get("__main__")
    parser = argparse.ArgumentParser(
        description=(getattr(module, "__doc__", None) or task_class.__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    run = parser.add_argument_group("run")
    run.add_argument("--model", metavar="NAME",
                     help=f"recipe entry: {_entries(recipes, task_class)} (default: "
                     f"{next(iter(recipes))}; "
                     "that of the run, where --eval-only judges one)")
    run.add_argument("--workdir", metavar="DIR",
                     help="run directory: config, log, checkpoints, result; the same command "
                     "again continues there")
    run.add_argument("--resume", default="auto", choices=("auto", "never"),
                     help="auto continues from the newest whole checkpoint of the workdir; never "
                     "refuses a workdir that has one (default: %(default)s)")
    run.add_argument("--data", **getattr(task_class, "data_flag", _DATA))
    instead = run.add_mutually_exclusive_group()
    instead.add_argument("--smoke", action="store_true",
                         help="wiring check: two tiny steps on synthetic data, evaluation, "
                         "checkpoint, resume, result")
    instead.add_argument("--eval-only", action="store_true", help="evaluate --weights, or the "
                         "best checkpoint of the workdir, whose run's recipe is taken; writes "
                         "result.json, or evaluation.json beside that of a training")
    run.add_argument("--weights", **getattr(task_class, "weights_flag", _WEIGHTS))
    run.add_argument("--device", default="cpu", choices=("cpu", "gpu"),
                     help="gpu: worker k of a machine takes GPU k (default: %(default)s)")
    run.add_argument("--data-workers", type=int, default=2, metavar="N",
                     help="loader processes of each worker; the result does not depend on it "
                     "(default: %(default)s)")
    run.add_argument("--log-every", type=_positive, default=50, metavar="STEPS",
                     help="steps between log lines (default: %(default)s)")
    run.add_argument("--save-every", type=_positive, metavar="STEPS",
                     help="steps between checkpoints inside an epoch (default: none there); each "
                     "epoch ends with one")
    run.add_argument("--on-nan", default="stop", choices=("stop", "rollback"),
                     help="a loss is not finite: stop, or go back to the last checkpoint and leave "
                     "out the steps from there to the fault (default: %(default)s)")
    run.add_argument("--deterministic", action="store_true", help="the same bits in every run, "
                     "also with three workers and more and on GPUs; slower (docs/reliability.md)")
    run.add_argument("--keep", type=_positive, default=3, metavar="K",
                     help="newest checkpoints to keep, besides the best (default: %(default)s)")
    instead.add_argument("--test-io", type=_positive, metavar="STEPS", help="only measure how fast "
                         "the training images come, over so many steps; no network runs")
    instead.add_argument("--plan", metavar="KEY=VALUE,...", help="only print what the run will "
                         "cost in time, memory, traffic and disk, for example "
                         "workers=64,images_per_second=250 (docs/plan.md)")
    run.add_argument("--profile", metavar="FILE", help="write a trace of steps 6 to 15 of this run "
                     "for chrome://tracing")
    run.add_argument("--wandb", metavar="PROJECT", help="send the numbers of the log to this "
                     "project of wandb.ai too")
    task_class.add_flags(run)
    fields = dataclasses.fields(next(iter(recipes.values())))
    numbers = parser.add_argument_group(
        "recipe", "numbers of the experiment; each overrides the entry chosen by --model")
    for field in fields:
        choices, (kind, optional) = field.metadata.get("choices"), plain_type(field)
        numbers.add_argument("--" + field.name.replace("_", "-"), dest=field.name, default=None,
                             metavar="|".join(map(str, choices)) if choices else
                             kind.__name__.upper() + ("|none" if optional else ""),
                             help=field.metadata["help"].replace("%", "%%"))
    return parser


def _entries(recipes, task_class):
    """Returns what --model may be: the names, or what a task with many says of them."""
    return getattr(task_class, "entries", ", ".join(recipes))


def _positive(word):
    """Reads a flag's whole number of at least 1; argparse reports what is wrong with another."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {word!r}")
    return int(word)

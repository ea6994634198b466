"""The one command line of all recipes: flags over recipe, checked, saved, trained, judged.

Recipes import this module before their task, so that the engine's environment variables are set
before mxnet is loaded; for the same reason mxnet is imported here only inside functions.
"""
import argparse
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path

from gluon_resnest.config import override
from gluon_resnest.errors import UserError, exit_on_user_error, nearest

# Set where the user has not: name -> (value, reason).
ENGINE_ENVIRONMENT = {
    "MXNET_CUDNN_AUTOTUNE_DEFAULT": ("1", "shapes are fixed in training: search once, run fast"),
    "MXNET_OPTIMIZER_AGGREGATION_SIZE": ("54", "one kernel updates many small parameters"),
    "MXNET_EXEC_BULK_EXEC_MAX_NODE_TRAIN_FWD": ("999", "no engine round trip between operators"),
    "MXNET_EXEC_BULK_EXEC_MAX_NODE_TRAIN_BWD": ("25", "small bulks let all-reduce start early"),
    "MXNET_SAFE_ACCUMULATION": ("1", "float16 reductions add up in float32"),
}


def set_engine_environment(environ=os.environ):
    """Sets MXNET_* and OMP_NUM_THREADS where unset; workers of one machine share its cores.

    A fixed number of OpenMP threads is also what makes two runs bit-equal: sums are split by
    thread.
    """
    for name, (value, _) in ENGINE_ENVIRONMENT.items():
        environ.setdefault(name, value)
    local_workers = int(environ.get("HOROVOD_LOCAL_SIZE",
                                    environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1)))
    environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local_workers)))


set_engine_environment()


def main(recipes, task_class, argv=None):
    """Runs one entry of `recipes`, {name: recipe}, as `task_class`; see docs/architecture.md.

    A user's mistake prints one sentence and exits with code 2.
    """
    with exit_on_user_error():
        recipe, run = parse(recipes, task_class, argv)
        execute(recipe, run, task_class)


def parse(recipes, task_class, argv=None):
    """Returns (recipe, run): the chosen recipe with its overrides, and the other flags.

    Args:
      recipes: {name: recipe}, all of one dataclass.
      task_class: offers `add_flags(parser)` for the paths it needs.
      argv: words after the program's name; None means those of this process.
    """
    parser = _parser(recipes, task_class)
    run = parser.parse_args(argv)
    if run.model not in recipes:
        known = f"known are {', '.join(recipes)}"
        raise UserError(f"--model {run.model!r} is no recipe of this file"
                        f"{nearest(run.model, recipes) or '; ' + known}")
    recipe = recipes[run.model]
    words = {field.name: getattr(run, field.name) for field in dataclasses.fields(recipe)}
    recipe = override(recipe, {name: word for name, word in words.items() if word is not None})
    for name in words:
        delattr(run, name)
    return recipe, run


def _parser(recipes, task_class):
    module = sys.modules.get("__main__")
    parser = argparse.ArgumentParser(
        description=(getattr(module, "__doc__", None) or task_class.__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    run = parser.add_argument_group("run")
    run.add_argument("--model", default=next(iter(recipes)), metavar="NAME",
                     help=f"recipe entry: {', '.join(recipes)} (default: %(default)s)")
    run.add_argument("--workdir", metavar="DIR",
                     help="run directory: config, log, checkpoints, result; the same command "
                     "again continues there")
    run.add_argument("--resume", default="auto", choices=("auto", "never"),
                     help="auto continues from the newest whole checkpoint of the workdir; never "
                     "refuses a workdir that has one (default: %(default)s)")
    run.add_argument("--data", default="real", choices=("real", "synthetic"),
                     help="synthetic: generated images, to measure speed or try the wiring")
    run.add_argument("--smoke", action="store_true",
                     help="wiring check: two tiny steps on synthetic data, evaluation, "
                     "checkpoint, resume, result")
    run.add_argument("--eval-only", action="store_true", help="evaluate --weights, or the best "
                     "checkpoint of the workdir, and write result.json")
    run.add_argument("--weights", metavar="FILE", help="start from (or evaluate) this .params file")
    run.add_argument("--device", default="cpu", choices=("cpu", "gpu"),
                     help="gpu: worker k of a machine takes GPU k (default: %(default)s)")
    run.add_argument("--data-workers", type=int, default=2, metavar="N",
                     help="loader processes of each worker; the result does not depend on it "
                     "(default: %(default)s)")
    run.add_argument("--log-every", type=int, default=50, metavar="STEPS",
                     help="steps between log lines (default: %(default)s)")
    run.add_argument("--keep", type=int, default=3, metavar="K",
                     help="newest checkpoints to keep, besides the best (default: %(default)s)")
    task_class.add_flags(run)
    fields = dataclasses.fields(next(iter(recipes.values())))
    numbers = parser.add_argument_group(
        "recipe", "numbers of the experiment; each overrides the entry chosen by --model")
    for field in fields:
        choices = field.metadata.get("choices")
        numbers.add_argument("--" + field.name.replace("_", "-"), dest=field.name, default=None,
                             metavar="|".join(choices) if choices else
                             getattr(field.type, "__name__", "VALUE").upper(),
                             help=field.metadata["help"].replace("%", "%%"))
    return parser

"""The one command line of all recipes: flags over recipe, checked, saved, trained, judged.

Recipes import this module before their task, so that the engine's environment variables are set
before mxnet is loaded; for the same reason mxnet is imported here only inside functions.
"""
import argparse
import dataclasses
import logging
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from gluon_resnest.config import override
from gluon_resnest.errors import UserError, exit_on_user_error, nearest
from gluon_resnest.files import write_whole
from gluon_resnest.run_directory import (
    CHECKPOINTS, CLASS_NAMES, claim, is_training, note_circumstances, read_recipe)

_log = logging.getLogger(__name__)

_DATA = dict(default="real", choices=("real", "synthetic"),
             help="synthetic: generated images, to measure speed or try the wiring")
_WEIGHTS = dict(metavar="FILE", help="start from, or evaluate, this .params file or URL; "
                "published: the newest the zoo's table names")
# Flags whose names end so say where a run's data and first weights are; config.json records them.
_PATHS = ("train", "val", "weights", "_annotations", "_images", "_panoptic", "detections", "root",
          "results", "synthetic_steps")

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
    from gluon_resnest.engine.heartbeat import reported
    with exit_on_user_error(), reported():
        recipe, run = parse(recipes, task_class, argv)
        if run.plan is not None:
            print(plan(recipe, run, task_class))
            return
        try:
            execute(recipe, run, task_class)
        except FloatingPointError as error:
            sys.exit(f"error: {error}; lower the learning rate or look at the data of that step")
        except KeyboardInterrupt:
            _exit(128 + signal.SIGINT, "interrupted before training or after it")


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
        choices = field.metadata.get("choices")
        numbers.add_argument("--" + field.name.replace("_", "-"), dest=field.name, default=None,
                             metavar="|".join(map(str, choices)) if choices else
                             getattr(field.type, "__name__", "VALUE").upper(),
                             help=field.metadata["help"].replace("%", "%%"))
    return parser


def _entries(recipes, task_class):
    """Returns what --model may be: the names, or what a task with many says of them."""
    return getattr(task_class, "entries", ", ".join(recipes))


def _positive(word):
    """Reads a flag's whole number of at least 1; argparse reports what is wrong with another."""
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {word!r}")
    return int(word)


def execute(recipe, run, task_class):
    """Trains, or only evaluates, what `parse` returned; returns the content of result.json.

    A run stopped by SIGTERM or SIGINT exits with 143 or 130, when it is saved.
    """
    from gluon_resnest.engine.comm import connect
    from gluon_resnest.engine.stopping import Stopped
    if run.deterministic:
        os.environ.update({name: value for name, (value, _) in DETERMINISTIC_ENVIRONMENT.items()})
    comm = connect()
    logging.basicConfig(level=logging.INFO if comm.is_main else logging.ERROR, stream=sys.stderr,
                        format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if run.smoke:
            result = _smoke(recipe, run, task_class, comm)
        elif run.test_io:
            result = measure_input(recipe, run, task_class, comm)
        elif run.eval_only:
            recipe = _as_trained(recipe, run, comm)
            result = evaluate(recipe, run, task_class(recipe, run, comm), comm)
        else:
            result = train(recipe, run, task_class, comm)
    except Stopped as stopped:
        comm.shutdown()
        _exit(128 + stopped.signal, str(stopped) if comm.is_main else "")
    comm.shutdown()
    return result


def _exit(code, sentence):
    """Ends the program with a sentence on stderr."""
    print(sentence, file=sys.stderr, end="\n" if sentence else "")
    sys.exit(code)


def train(recipe, run, task_class, comm, *, stop_epoch=None):
    """Trains in `run.workdir`, continuing what is there, and judges the outcome.

    Args:
      stop_epoch: end after this epoch, with the schedule of the whole run; None trains to the end.
    """
    from gluon_resnest.engine.checkpoint import State
    from gluon_resnest.engine.checkpoints import Checkpoints
    from gluon_resnest.engine.report import RunLog, draw_curves
    from gluon_resnest.engine.rollback import fit_past_faults
    if not run.workdir:
        raise UserError("--workdir DIR is missing; give the directory that takes the run's "
                        "config, log, checkpoints and result")
    workdir = Path(run.workdir)
    comm.on_main(lambda: _claim(workdir, recipe, run))
    comm.split(recipe.batch)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, run.keep)
    task = task_class(recipe, run, comm)
    comm.on_main(lambda: write_whole(workdir / CLASS_NAMES, "\n".join(task.class_names) + "\n")
                 if task.class_names else None)
    start = checkpoints.restore(task.net, task.update, comm) if run.resume == "auto" else State()
    steps = recipe.steps(task.steps_per_epoch)
    if start.step < steps or start.unevaluated:
        comm.on_main(lambda: _note(workdir, start.step, run, comm))
    callbacks = []
    comm.on_main(lambda: callbacks.extend(_callbacks(recipe, run)))
    comm.warm_up()
    with RunLog(workdir, comm, total_steps=steps, steps_per_epoch=task.steps_per_epoch,
                batch=recipe.batch, callbacks=callbacks) as log:
        summary = fit_past_faults(
            task, task.update, task.lr_at, on_nan=run.on_nan,
            steps=stop_epoch * task.steps_per_epoch if stop_epoch else steps, seed=recipe.seed,
            comm=comm, log=log, checkpoints=checkpoints, start=start, log_every=run.log_every,
            eval_every=recipe.eval_every * task.steps_per_epoch, save_every=run.save_every,
            patience=recipe.patience, per_worker=recipe.per_worker)
    metrics = summary.metrics
    if hasattr(task, "conclude"):
        metrics = task.conclude(workdir, checkpoints, metrics)
    task.close()
    if not comm.is_main:
        return None
    result = _report(workdir / "result.json", recipe, task, metrics, summary.seconds,
                     summary.images_per_second, keep=not summary.images_per_second)
    try:
        draw_curves(workdir)
    except UserError as error:          # the run is done
        _log.warning("no curves: %s", error)
    return result


def _callbacks(recipe, run):
    """Returns what else listens to the log on this worker."""
    from gluon_resnest.engine.callbacks import Profile, WeightsAndBiases
    callbacks = []
    if run.profile:
        callbacks.append(Profile(run.profile))
    if run.wandb:
        callbacks.append(WeightsAndBiases(run.wandb, {"model": run.model, **recipe.to_json()}))
    return callbacks


def plan(recipe, run, task_class):
    """Returns the lines that say what a run will cost; trains nothing."""
    from gluon_resnest.engine.plan import cluster_of, describe, estimate
    cluster = cluster_of(run.plan)
    return describe(estimate(task_class.workload(recipe, cluster), cluster))


def measure_input(recipe, run, task_class, comm):
    """Measures and prints the speed of the training input; returns images per second."""
    from gluon_resnest.engine.speed import input_speed
    comm.split(recipe.batch)
    task = task_class(recipe, run, comm)
    speed = input_speed(task, comm, batch=recipe.batch, steps=run.test_io)
    task.close()
    if comm.is_main:
        print(f"input: {speed:.1f} images/s over {comm.size} worker(s) with {run.data_workers} "
              f"loader process(es) each, {run.test_io} steps of {recipe.batch} images")
    return speed


def evaluate(recipe, run, task, comm):
    """Evaluates the given weights, or the best checkpoint of `run.workdir`.

    Writes result.json, or evaluation.json beside the result of a training run.
    """
    from gluon_resnest.engine.checkpoints import Checkpoints
    workdir = Path(run.workdir) if run.workdir else None
    trained = comm.on_main(lambda: is_training(workdir))
    judges_file = getattr(run, "results", None)         # of a task that can; no network runs
    if not run.weights and not judges_file and not (trained and Checkpoints(
            workdir / CHECKPOINTS).restore_best(task.net, comm)):
        raise UserError("there is nothing to evaluate: give --weights FILE, --weights published, "
                        "or the --workdir of a training run")
    if workdir is not None and not trained:
        comm.on_main(lambda: _claim(workdir, recipe, run))
    began = time.monotonic()
    metrics = task.evaluate()
    seconds = time.monotonic() - began
    if hasattr(task, "report"):
        metrics = task.report(workdir, metrics)
    task.close()
    if not comm.is_main:
        return None
    if trained:         # config.json says how the run was trained, not how it was judged now
        return _report(workdir / "evaluation.json", recipe, task, metrics, seconds,
                       metrics["images"] / seconds, with_recipe=True)
    return _report(workdir and workdir / "result.json", recipe, task, metrics, seconds,
                   metrics["images"] / seconds)


def _as_trained(recipe, run, comm):
    """Returns the recipe of the run in the workdir, if there is one, changed as the flags say.

    Raises:
      UserError: if --model names another entry than the run's, or the run is of another kind.
    """
    workdir = Path(run.workdir) if run.workdir else None
    found = comm.on_main(lambda: read_recipe(
        workdir, type(recipe), "use the recipe that trained it",
        named=run.named) if is_training(workdir) else None)
    if found is None:
        return recipe
    run.model, recipe = found
    return override(recipe, run.changes)


def _smoke(recipe, run, task_class, comm):
    """Two tiny steps on synthetic data, with a new start from the checkpoint between them."""
    recipe = recipe.smoke(comm.size)
    with tempfile.TemporaryDirectory(prefix="gluon-resnest-smoke-") as folder:
        changes = {"data": "synthetic", "synthetic_steps": 1, "data_workers": 1, "log_every": 1,
                   "workdir": run.workdir or folder, "resume": "auto"}
        run = argparse.Namespace(**{**vars(run), **changes})
        train(recipe, run, task_class, comm, stop_epoch=1)
        return train(recipe, run, task_class, comm)


def _claim(workdir, recipe, run):
    claim(workdir, recipe, model=run.model, resume=run.resume, data=_data_of(run))


def _data_of(run):
    """Returns {flag: value}: where a run's data and first weights are."""
    return {name: value for name, value in vars(run).items()
            if name == "data" or name.endswith(_PATHS)}


def _note(workdir, step, run, comm):
    """Notes what the numbers depend on from here; warns if it is not what it was."""
    changed = note_circumstances(workdir, step, {
        "workers": comm.size, "threads": os.environ["OMP_NUM_THREADS"], "device": run.device,
        "deterministic": run.deterministic, "on_nan": run.on_nan, "save_every": run.save_every,
        "data": _data_of(run)})
    if changed:
        _log.warning("the run goes on otherwise than it came to step %d, so that its numbers may "
                     "differ from an undisturbed run's: %s", step, "; ".join(changed))


def _report(path, recipe, task, metrics, seconds, images_per_second, *, with_recipe=False,
            keep=False):
    """Prints and writes a result; returns it.

    Args:
      keep: leave a file that measured the same, whose commit and speed are those of the training.
    """
    from gluon_resnest.engine.report import read_result, write_result
    result = read_result(path) if keep else None
    if result is None or result["measured"] != metrics:
        result = write_result(path, measured=metrics, expected=recipe.expected,
                              tolerance=recipe.tolerance, seconds=seconds,
                              images_per_second=images_per_second, main_metric=task.main_metric,
                              parameters=_learnable(task.params),
                              **({"recipe": recipe.to_json()} if with_recipe else {}))
    print(task.describe(metrics))
    if recipe.expected is not None:
        print(f"expected {recipe.expected:g}, tolerance {recipe.tolerance:g}: "
              f"{result['verdict']}")
    if path is not None:
        print(f"wrote {path}")
    return result


def _learnable(params):
    """Returns how many numbers a ParameterDict holds, running statistics left out."""
    return sum(math.prod(parameter.shape) for name, parameter in params.items()
               if not name.endswith(("running_mean", "running_var")))

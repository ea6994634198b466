"""What one command of a recipe does, on every worker: trains, evaluates, measures, tries.

`cli` has read the command. mxnet is imported inside functions, since its environment is set first.
"""
import argparse
import logging
import math
import os
import sys
import tempfile
import time
from pathlib import Path

from gluon_resnest.config import override
from gluon_resnest.errors import UserError
from gluon_resnest.files import write_whole
from gluon_resnest.run_directory import (
    CHECKPOINTS, CLASS_NAMES, claim, enter, is_training, note_circumstances, read_recipe)

_log = logging.getLogger(__name__)

# Flags whose names end so say where a run's data and first weights are; config.json records them.
_PATHS = ("train", "val", "weights", "_annotations", "_images", "_panoptic", "detections", "root",
          "results", "synthetic_steps")


def execute(recipe, run, task_class):
    """Trains, or only evaluates, what `cli.parse` returned; returns the content of result.json.

    A run stopped by SIGTERM or SIGINT exits with 143 or 130, when it is saved. The environment is
    the caller's: `cli.main` sets DETERMINISTIC_ENVIRONMENT where `run.deterministic` asks for it.
    """
    from gluon_resnest.engine.comm import connect
    from gluon_resnest.engine.stopping import Stopped
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
        leave(128 + stopped.signal, str(stopped) if comm.is_main else "")
    comm.shutdown()
    return result


def leave(code, sentence):
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
    from gluon_resnest.engine.report import LOG, RunLog, draw_curves, logged_speed
    from gluon_resnest.engine.rollback import fit_past_faults
    if not run.workdir:
        raise UserError("--workdir DIR is missing; give the directory that takes the run's "
                        "config, log, checkpoints and result")
    workdir = Path(run.workdir)
    comm.on_main(lambda: claim(workdir, recipe, resume=run.resume))
    comm.split(recipe.batch)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, run.keep)
    task = task_class(recipe, run, comm)
    comm.on_main(lambda: _enter(workdir, recipe, run))      # nothing more to refuse
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
                     summary.images_per_second or logged_speed(workdir / LOG),
                     keep=not summary.images_per_second)
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
    from gluon_resnest.engine.heartbeat import Heart
    workdir = Path(run.workdir) if run.workdir else None
    trained = comm.on_main(lambda: is_training(workdir))
    judges_file = getattr(run, "results", None)         # of a task that can; no network runs
    if not run.weights and not judges_file and not (trained and Checkpoints(
            workdir / CHECKPOINTS).restore_best(task.net, comm)):
        raise UserError("there is nothing to evaluate: give --weights FILE, --weights published, "
                        "or the --workdir of a training run")
    apart = workdir is not None and not trained
    if apart:
        comm.on_main(lambda: claim(workdir, recipe, resume=run.resume))
    began = time.monotonic()
    Heart(comm.rank).beat("evaluation", 0)
    metrics = task.evaluate()
    seconds = time.monotonic() - began
    if apart:           # the result that was there stays until there is a new one
        comm.on_main(lambda: _enter(workdir, recipe, run))
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


def _enter(workdir, recipe, run):
    enter(workdir, recipe, model=run.model, data=_data_of(run))


def _data_of(run):
    """Returns {flag: value}: where a run's data and first weights are."""
    return {name: value for name, value in vars(run).items()
            if name == "data" or name.endswith(_PATHS)}


def _note(workdir, step, run, comm):
    """Notes what the numbers depend on from here; warns if it is not what it was."""
    changed = note_circumstances(workdir, step, {
        "workers": comm.size, "threads": os.environ.get("OMP_NUM_THREADS"), "device": run.device,
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
                              parameters=_parameters(task.params),
                              **({"recipe": recipe.to_json()} if with_recipe else {}))
    print(task.describe(metrics))
    if recipe.expected is not None:
        print(f"expected {recipe.expected:g}, tolerance {recipe.tolerance:g}: "
              f"{result['verdict']}")
    if path is not None:
        print(f"wrote {path}")
    return result


def _parameters(params):
    """Counts a ParameterDict as papers do: running statistics left out, frozen parts counted."""
    return sum(math.prod(parameter.shape) for name, parameter in params.items()
               if not name.endswith(("running_mean", "running_var")))

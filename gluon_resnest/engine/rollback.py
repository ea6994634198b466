"""Goes on after numbers that are not finite: back to the last checkpoint, past the bad steps."""
import logging
from dataclasses import replace

import mxnet as mx

from gluon_resnest.engine.finite import NotFinite
from gluon_resnest.engine.loop import STEPS_AHEAD, fit
from gluon_resnest.engine.stopping import Stop

ATTEMPTS = 3                 # rollbacks to one checkpoint before the run is given up

_log = logging.getLogger(__name__)


def fit_past_faults(task, update, lr_at, *, comm, log, checkpoints, start, on_nan, **options):
    """Trains as `loop.fit`, and knows what to do when a loss or a parameter is not finite.

    "stop" raises. "rollback" returns to the newest checkpoint and leaves out all steps, with their
    batches and rates, from there to the first that is known to be bad: the rest of the run is that
    of one that never had them. (A spike has its cause before the step that shows it, so that
    leaving out that step alone would meet it again.)

    Args:
      on_nan: "stop" or "rollback".
      task, update, lr_at, comm, log, checkpoints, start, options: as for `loop.fit`.

    Raises:
      NotFinite: on all workers: the policy is "stop", there is no checkpoint to go back to, no step
        is left to go on with, or one checkpoint was gone back to ATTEMPTS times.
    """
    attempts = {}
    with Stop(comm, STEPS_AHEAD + 1) as stop:       # who asks it to just before a fault is heard
        while True:
            try:
                return fit(task, update, lr_at, comm=comm, log=log, checkpoints=checkpoints,
                           start=start, stop=stop, **options)
            except NotFinite as fault:
                mx.nd.waitall()
                good = comm.on_main(lambda: _newest_whole(checkpoints))
                attempts[good] = attempts.get(good, 0) + 1
                problem = _problem(on_nan, good, fault.step >= options["steps"], attempts[good])
                if problem:
                    raise NotFinite(f"{fault}; {problem}", fault.step)
                _log.warning("%s; going back to step %d and on from %d, without the steps between",
                             fault, good, fault.step)
                log.rollback(fault.step, good, str(fault))
                start = replace(checkpoints.restore(task.net, update, comm), step=fault.step)


def _problem(on_nan, good, at_end, attempts):
    """Returns why a run cannot go back to the step of a checkpoint and on; "" if it can."""
    if good is None:
        return "there is no checkpoint to go back to"
    if on_nan == "stop":
        return f"the last good checkpoint is of step {good}"
    if at_end:
        return f"no step is left to go on with from step {good}"
    return f"going back to step {good} does not help" if attempts > ATTEMPTS else ""


def _newest_whole(checkpoints):
    found = checkpoints.latest()
    return found and found.state.step

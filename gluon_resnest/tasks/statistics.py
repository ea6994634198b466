"""Running statistics as they are evaluated and saved."""
import itertools

from gluon_resnest.engine.precise_bn import recompute_statistics


def settle_statistics(net, params, comm, *, batches=0, loader=None, forward=None):
    """Gives all workers the same running statistics, before an evaluation.

    Without synchronisation each worker has its own; those of worker 0 are the network's (decision
    0018).

    Args:
      net, params: the network and its parameters. comm: this worker's Comm.
      batches: from so many batches of each worker they are recomputed (PreciseBN); 0: they stay.
      loader: opens a loader of training batches, which is closed afterwards.
      forward: runs the network in training mode on one of the loader's batches.
    """
    if batches:
        source = loader()
        try:
            recompute_statistics(net, itertools.islice(source.batches(), batches), comm,
                                 forward=forward)
        finally:
            source.close()
    comm.broadcast({name: parameter for name, parameter in params.items()
                    if parameter.grad_req == "null"})

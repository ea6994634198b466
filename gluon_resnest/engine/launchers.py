"""What launchers tell the processes they start. It is asked before mxnet is loaded."""
from typing import NamedTuple, Optional


class Launcher(NamedTuple):
    """Names of the variables of a launcher.

    Attributes:
      size: of the number of workers; rank: of this worker's; local_size: of the number of workers
        on this machine, or None if the launcher gives each of them CPUs of its own.
    """

    size: str
    rank: str
    local_size: Optional[str]


# horovodrun, Open MPI, MPICH and Intel MPI, MVAPICH, srun.
LAUNCHERS = (
    Launcher("HOROVOD_SIZE", "HOROVOD_RANK", "HOROVOD_LOCAL_SIZE"),
    Launcher("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    Launcher("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
    Launcher("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    Launcher("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", None),
)


def told(environ, what, default):
    """Returns the number that a launcher tells, or `default` where none does.

    Args:
      environ: the environment.
      what: a field of Launcher.
    """
    names = filter(None, (getattr(launcher, what) for launcher in LAUNCHERS))
    return int(next((environ[name] for name in names if name in environ), default))

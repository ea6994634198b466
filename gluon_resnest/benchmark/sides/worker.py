"""One competitor of a benchmark, in a process of its own, under any Python from 3.8 on.

    python worker.py JOB.json

It builds what the job names with the module `side_<library>` beside this file, connects to the
job's socket and runs turns on request. It imports nothing but the standard library and that module:
the Python of a competitor need not have mxnet, and ours need not have torch.

A side has `make(job) -> Side`. On the socket, lines of JSON: out {"ready": ...} or {"error": ...};
then in a number of seconds, out what a turn of about so long took, until the socket is closed.
"""
import importlib
import json
import os
import resource
import socket
import sys
import time
import traceback

MARK = "GLUON_RESNEST_BENCHMARK"    # in the environment of all processes of a competitor
_TICKS = os.sysconf("SC_CLK_TCK")
_WARM_UP = 2                        # units between the first of all and the first that is timed


class Side:
    """What a library does in a benchmark.

    Args:
      unit: starts one unit of work: a batch inferred, a training step, a batch read.
      versions: {library: version}.
      wait: returns when the work that was started is done.
      flops: of a unit, where only the side knows them.
      share: returns on all processes of a competitor what the first got by calling the argument.
      device_bytes: peak memory of the GPU, or None where there is none.
      ahead: units that may lie ready when a turn begins; so many are not timed.
    """

    def __init__(self, unit, versions, *, wait=lambda: None, flops=None, share=lambda ask: ask(),
                 device_bytes=lambda: None, ahead=0):
        self.unit, self.versions, self.wait, self.flops = unit, versions, wait, flops
        self.share, self.device_bytes, self.ahead = share, device_bytes, ahead


def cpu_seconds():
    """Returns (own, busy): CPU seconds of this competitor's processes, and of the whole machine.

    Busy is everything but idling, also what a hypervisor gave to others.
    """
    mark = f"{MARK}={os.environ[MARK]}".encode()
    own = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/environ", "rb") as environ:
                if mark not in environ.read().split(b"\0"):
                    continue
            with open(f"/proc/{process}/stat") as stat:
                words = stat.read().rpartition(")")[2].split()
        except OSError:         # it has ended, or belongs to somebody else
            continue
        own += sum(map(int, words[11:15]))                  # user, system, and of ended children
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq, stolen = map(int, stat.readline().split()[1:9])
    return own / _TICKS, (user + nice + system + irq + softirq + stolen) / _TICKS


def turn(side, units):
    """Runs some units; returns the seconds of wall, own CPU and others' CPU that they took."""
    for _ in range(side.ahead):
        side.unit()
    own, busy = cpu_seconds()
    began = time.perf_counter()
    for _ in range(units):
        side.unit()
    side.wait()
    wall = time.perf_counter() - began
    own_after, busy_after = cpu_seconds()
    return {"units": units, "wall": wall, "cpu": own_after - own,
            "others": max(0.0, busy_after - busy - (own_after - own))}


def serve(job, connection):
    """Runs turns until the benchmark closes the connection.

    Args:
      job: what to build, from the job file.
      connection: stream to the benchmark, or None in the processes that only follow the first.
    """
    def tell(message):
        if connection is not None:
            connection.write(json.dumps(message) + "\n")
            connection.flush()

    try:
        side = importlib.import_module(f"side_{job['library']}").make(job)
        side.unit()
        side.wait()
        first = time.monotonic() - job["began"]
        for _ in range(_WARM_UP):
            side.unit()
        side.wait()
        seconds = turn(side, 1 + side.ahead)["wall"] / (1 + side.ahead)
    except Exception as error:      # what a foreign library throws is for the benchmark to report
        traceback.print_exc()
        tell({"error": f"{type(error).__name__}: {error}".split("\n")[0][:300]})
        sys.exit(1)                 # horovodrun then ends the others, which would wait for it

    def ask():
        line = connection.readline()
        return max(1, round(json.loads(line) / seconds)) if line else 0

    tell({"ready": {"first": first, "seconds": seconds, "versions": side.versions,
                    "flops": side.flops}})
    units = side.share(ask)
    while units:
        tell({**turn(side, units), "device_memory": side.device_bytes(),
              "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
        units = side.share(ask)


def main():
    """Serves the job of the file that the command line names, as one of its Horovod workers."""
    with open(sys.argv[1]) as file:
        job = json.load(file)
    rank = int(os.environ.get("HOROVOD_RANK", 0))
    if job["cores"]:
        os.sched_setaffinity(0, job["cores"][rank])
    if rank:
        serve(job, None)
        return
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(job["socket"])
        serve(job, connection.makefile("rw"))


if __name__ == "__main__":
    main()

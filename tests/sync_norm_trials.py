"""Does synchronised batch norm ever hang, and what does a layer of it cost?

    python tests/sync_norm_trials.py hang --runs 50      # prints one line per run and a summary
    python tests/sync_norm_trials.py cost                # prints milliseconds per layer

Both start their own Horovod workers, of which this file is the program, too.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from subprocess import TimeoutExpired

import mxnet as mx
import numpy as np
from horovod_job import launch
from mxnet import autograd, gluon, nd

from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.models.norm import norm_layer

BRANCHES, STEPS, BATCH = 24, 15, 12
MODES = ("imperative", "hybrid", "static")


class Branches(gluon.nn.HybridBlock):
    """Parallel convolutions of different sizes, each with a norm; their sum is classified.

    Nothing but the collectives orders the branches, and the small ones overtake the large ones.
    """

    def __init__(self, norm):
        super().__init__(prefix="branches_")
        with self.name_scope():
            self.convs = gluon.nn.HybridSequential()
            self.norms = gluon.nn.HybridSequential()
            for branch in range(BRANCHES):
                side = 1 + 2 * (branch % 3)
                self.convs.add(gluon.nn.Conv2D(8, side, padding=side // 2, use_bias=False,
                                               in_channels=3))
                self.norms.add(norm(in_channels=8))
            self.classify = gluon.nn.Dense(5, in_units=8)

    def hybrid_forward(self, F, x):
        maps = [F.tanh(norm(conv(x))) for conv, norm in zip(self.convs, self.norms)]
        return self.classify(F.mean(F.add_n(*maps), axis=(2, 3)))


def make(comm, mode):
    """Returns Branches with equal, synchronised parameters on all workers."""
    net = Branches(norm_layer("sync", {"workers": comm}))
    mx.random.seed(1)
    net.initialize(mx.init.Normal(0.2))
    if mode != "imperative":
        net.hybridize(static_alloc=mode == "static", static_shape=mode == "static")
    return net


def train(comm, mode, steps=STEPS):
    """Trains Branches on this worker's uneven part; never waits in between.

    Returns:
      {name: list of values} of all parameters, running statistics included.
    """
    net = make(comm, mode)
    params = net.collect_params()
    comm.broadcast(params)
    trainer = comm.trainer(params, "nag", {"momentum": 0.9, "wd": 1e-3})
    trainer.set_learning_rate(0.01)
    begin, end = part(comm)
    for step in range(steps):
        images = np.random.RandomState(step).uniform(-2, 3, (BATCH, 3, 16, 16))
        local = nd.array(images[begin:end])
        with autograd.record():
            # The trainer averages over workers; the mean over all images is wanted.
            loss = (net(local) ** 2).sum() * (comm.size / BATCH)
        loss.backward()
        trainer.step(1)
    mx.nd.waitall()
    return {name: parameter.data().asnumpy().ravel().tolist()
            for name, parameter in params.items()}


def part(comm):
    """Returns the first and one past the last of the images of this worker: 7 and 5; 6, 4, 2."""
    if comm.size == 1:
        return 0, BATCH
    edges = {2: (0, 7, 12), 3: (0, 6, 10, 12)}[comm.size]
    return edges[comm.rank], edges[comm.rank + 1]


def cost(comm, layers=10, repeats=10):
    """Returns milliseconds per layer, forward and backward, of a chain of norms, by kind."""
    milliseconds = {}
    for kind, norm in (("batch", norm_layer("batch")),
                       ("sync", norm_layer("sync", {"workers": comm}))):
        for shape in ((2, 64, 8, 8), (8, 64, 28, 28)):
            net = gluon.nn.HybridSequential(prefix=f"{kind}_")
            with net.name_scope():
                for _ in range(layers):
                    net.add(norm(in_channels=shape[1]))
            net.initialize()
            net.hybridize(static_alloc=True)
            x = nd.random.normal(shape=shape)
            x.attach_grad()
            times = []
            for _ in range(repeats):
                nd.waitall()
                comm.barrier()
                began = time.perf_counter()
                with autograd.record():
                    y = net(x)
                y.backward()
                nd.waitall()
                times.append(time.perf_counter() - began)
            milliseconds[f"{kind} {'x'.join(map(str, shape))}"] = \
                1000 * float(np.median(times[3:])) / layers
    array = nd.zeros((3, comm.size, 64))
    times = []
    for turn in range(repeats * layers):
        began = time.perf_counter()
        comm.sum_later(array, "bare").wait_to_read()
        times.append(time.perf_counter() - began)
    milliseconds["one sum of 192 numbers a worker"] = 1000 * float(np.median(times))
    return milliseconds


def work(folder):
    comm = connect()
    job = json.loads((folder / "job.json").read_text())
    result = cost(comm) if job["what"] == "cost" else train(comm, job["mode"])
    (folder / f"{comm.rank}.json").write_text(json.dumps(result))
    comm.shutdown()


def start(workers, timeout=240, **job):
    """Runs a job in `workers` processes; see `horovod_job.launch`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job))
        return launch(workers, __file__, folder, timeout=timeout)


def difference(params, expected):
    """Returns the largest difference relative to the largest value of its own tensor."""
    return max(np.abs(np.subtract(params[name], value)).max() / np.abs(value).max()
               for name, value in expected.items())


def hang(runs, workers):
    """Trains again and again; says how many runs did not end, and how right the others were."""
    expected = train(Comm(), "hybrid")
    worst, stuck, seconds = 0.0, 0, []
    for run in range(runs):
        mode = MODES[run % len(MODES)]
        began = time.monotonic()
        try:
            code, text, results = start(workers, what="train", mode=mode)
        except TimeoutExpired:
            stuck += 1
            print(f"run {run}: {mode}: STUCK", flush=True)
            continue
        if code:
            sys.exit(text)
        seconds.append(time.monotonic() - began)
        error = max(difference(result, expected) for result in results)
        worst = max(worst, error)
        print(f"run {run}: {mode}: {seconds[-1]:.1f} s, largest relative difference {error:.1e}",
              flush=True)
    print(f"{runs} runs with {workers} workers: {stuck} stuck; parameters differ from one process "
          f"by at most {worst:.1e} of each tensor's largest; median {np.median(seconds):.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("hang", "cost"))
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("-np", "--workers", type=int, default=2)
    args = parser.parse_args()
    if args.what == "hang":
        hang(args.runs, args.workers)
        return
    code, text, results = start(args.workers, timeout=300, what="cost")
    if code:
        sys.exit(text)
    for name, milliseconds in results[0].items():
        print(f"{name}: {milliseconds:.2f} ms")


if __name__ == "__main__":
    if Path(sys.argv[1]).is_dir():
        work(Path(sys.argv[1]))
    else:
        main()

"""Laws of the worker group: alone in this process, and with 2 and 3 Horovod workers.

Started by horovodrun, this file is the worker: it does everything once and writes down what it saw.
"""
import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from horovod_job import launch
from mxnet import autograd, gluon, nd

from gluon_resnest.engine.comm import Comm, connect
from gluon_resnest.engine.launchers import LAUNCHERS
from gluon_resnest.engine.optim import optimizer, set_multipliers
from gluon_resnest.errors import UserError

FLOATS = [0.1, 1e16, -1e16, 3.3, 1e-9]


def mine(rank):
    """What worker `rank` adds to a total: numbers whose float sum depends on the order."""
    return {"hits": 2 ** 53 + rank, "loss": FLOATS[rank % 5],
            "per_class": {"seen": np.arange(6).reshape(2, 3) * (rank + 1),
                          "area": np.array([FLOATS[(rank + k) % 5] for k in range(5)])}}


def expected_total(size):
    floats = [sum(Fraction(FLOATS[(rank + k) % 5]) for rank in range(size)) for k in range(5)]
    return {"hits": sum(2 ** 53 + rank for rank in range(size)), "loss": float(floats[0]),
            "per_class": {"seen": np.arange(6).reshape(2, 3) * (size * (size + 1) // 2),
                          "area": np.array([float(value) for value in floats])}}


def linear_net(seed):
    """Two layers without anything that depends on the batch; weights from `seed`."""
    net = gluon.nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(gluon.nn.Dense(7, in_units=5, activation="tanh"), gluon.nn.Dense(3, in_units=7))
    mx.random.seed(seed)
    net.initialize(mx.init.Normal(0.5))
    return net


def trained(comm, batch, steps=4):
    """Trains on this worker's part of `batch` images a step; returns the parameters."""
    net = linear_net(seed=comm.rank)
    params = net.collect_params()
    set_multipliers(params)
    comm.broadcast(params)
    trainer = comm.trainer(params, optimizer("nag", wd=1e-2, momentum=0.9))
    trainer.set_learning_rate(0.1)
    part = comm.split(batch)
    for step in range(steps):
        images = np.random.RandomState(step).standard_normal((batch, 8))
        local = nd.array(images[comm.rank * part:(comm.rank + 1) * part])
        with autograd.record():
            loss = ((net(local[:, :5]) - local[:, 5:]) ** 2).mean()
        loss.backward()
        trainer.step(1)
    return {name: parameter.data().asnumpy() for name, parameter in params.items()}


def refusing():
    raise UserError("no room on the main worker")


def filling_the_disk():
    raise OSError(28, "No space left on device", "x/log")


def observe(comm):
    """Uses every collective once; returns what came out, as JSON values."""
    total = comm.total(mine(comm.rank))
    broadcast = {"a": nd.array([comm.rank + 1.5]), "b": nd.full((2, 2), comm.rank)}
    comm.broadcast(broadcast)
    comm.broadcast(broadcast)
    deferred = gluon.nn.Dense(2, prefix="deferred_")
    mx.random.seed(comm.rank)
    deferred.initialize(mx.init.Normal(1))
    comm.broadcast(deferred.collect_params())
    deferred(nd.ones((1, 3)))
    refusals = []
    for action in (refusing, filling_the_disk):
        try:
            comm.on_main(action)
        except UserError as error:
            refusals.append(str(error))
    shared = comm.share_arrays({"x": np.arange(3, dtype="int64"), "y": np.eye(2, dtype="float32")}
                               if comm.is_main else None)
    comm.barrier()
    return {
        "rank": comm.rank, "size": comm.size, "local_rank": comm.local_rank,
        "hits": total["hits"], "loss": total["loss"].hex(),
        "seen": total["per_class"]["seen"].tolist(),
        "area": [value.hex() for value in total["per_class"]["area"]],
        "kinds": [type(total["hits"]).__name__, type(total["loss"]).__name__,
                  str(total["per_class"]["seen"].dtype), list(total)],
        "infinite": comm.total({"a": math.inf if comm.is_main else -math.inf, "b": 1.0})["b"],
        "gathered": comm.gather([comm.rank] * (comm.rank + 1)),
        "any": [comm.any(comm.rank == comm.size - 1), comm.any(False)],
        "broadcast": [float(broadcast["a"].asscalar()), broadcast["b"].asnumpy().tolist()],
        "deferred": deferred.weight.data().asnumpy().tolist(),
        "on_main": comm.on_main(lambda: {"from": comm.rank}), "refusals": refusals,
        "shared": [shared["x"].tolist(), str(shared["x"].dtype), shared["y"].tolist()],
        "trained": {name: value.tolist() for name, value in trained(comm, 12).items()}}


def work(folder):
    comm = connect()
    with open(Path(folder) / f"{comm.rank}.json", "w") as file:
        json.dump(observe(comm), file)
    comm.shutdown()


TOGETHER = [pytest.param(size, marks=pytest.mark.horovod) for size in (2, 3)]


@pytest.fixture(scope="module", params=[1, *TOGETHER])
def seen(request, tmp_path_factory):
    """What each of 1 (in this process), 2 or 3 workers saw."""
    if request.param == 1:
        return [json.loads(json.dumps(observe(connect({}))))]
    code, text, seen = launch(request.param, __file__, tmp_path_factory.mktemp("job"))
    assert code == 0, text
    return seen


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_workers_are_numbered(seen):
    assert [(worker["rank"], worker["local_rank"]) for worker in seen] == \
        [(rank, rank) for rank in range(len(seen))]
    assert all(worker["size"] == len(seen) for worker in seen)


def test_total_is_exact_and_equal_on_all_workers(seen):
    total = expected_total(len(seen))
    for worker in seen:
        assert worker["hits"] == total["hits"]
        assert worker["loss"] == total["loss"].hex()
        assert worker["seen"] == total["per_class"]["seen"].tolist()
        assert worker["area"] == [value.hex() for value in total["per_class"]["area"]]


def test_total_keeps_structure_and_kinds(seen):
    for worker in seen:
        assert worker["kinds"] == ["int", "float", "int64", ["hits", "loss", "per_class"]]


def test_total_of_opposite_infinities_does_not_fail(seen):
    assert all(worker["infinite"] == len(seen) for worker in seen)


def test_gather_keeps_the_order_of_ranks(seen):
    for worker in seen:
        assert worker["gathered"] == [[rank] * (rank + 1) for rank in range(len(seen))]


def test_any_is_true_if_one_worker_says_so(seen):
    assert all(worker["any"] == [True, False] for worker in seen)


def test_broadcast_makes_workers_equal_to_the_main_one(seen):
    for worker in seen:
        assert worker["broadcast"] == [1.5, [[0, 0], [0, 0]]]
        assert worker["deferred"] == seen[0]["deferred"]
        assert worker["shared"] == [[0, 1, 2], "int64", [[1, 0], [0, 1]]]


def test_on_main_runs_once_and_its_error_is_everybodys(seen):
    for worker in seen:
        assert worker["on_main"] == {"from": 0}
        assert worker["refusals"][0] == "no room on the main worker"


def test_a_file_that_fails_on_the_main_worker_is_everybodys_sentence(seen):
    for worker in seen:
        assert worker["refusals"][1].startswith(
            "'x/log' cannot be used: No space left on device; give a writable --workdir")


def test_averaged_gradients_equal_the_whole_batch(seen):
    alone = trained(Comm(), 12)
    for worker in seen:
        assert worker["trained"] == seen[0]["trained"]
        for name, value in alone.items():
            difference = np.array(worker["trained"][name]) - value
            assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(value)


@pytest.mark.parametrize("size, batch, message", [
    (3, 10, r"batch \(=10\) must be divisible by the number of workers \(=3\); take 9 or 12"),
    (4, 3, r"take 4$"), (1, 0, r"batch \(=0\) .* take 1$")])
def test_split_refuses_a_remainder(size, batch, message):
    comm = Comm()
    comm.size = size
    with pytest.raises(UserError, match=message):
        comm.split(batch)


def test_split_shares_the_batch():
    comm = Comm()
    comm.size = 4
    assert comm.split(64) == 16


@pytest.mark.parametrize("value", ["3", None, nd.ones(2), 1j, 2 ** 63, 2 ** 64])
def test_total_refuses_what_is_no_number(value):
    with pytest.raises(TypeError, match="total adds Python numbers"):
        Comm().total({"x": value})


def test_cpu_is_everybodys_context():
    assert Comm().context("cpu") == mx.cpu()


def test_missing_gpu_is_a_sentence(monkeypatch):
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    comm = Comm()
    comm.local_rank = 1
    with pytest.raises(UserError, match="worker 1 of this machine needs GPU 1, but mxnet sees 1"):
        comm.context("gpu")
    comm.local_rank = 0
    assert comm.context("gpu") == mx.gpu(0)


def test_unknown_device_is_a_sentence():
    with pytest.raises(UserError, match="device must be one of cpu, gpu, got 'gpus'; did you mean"):
        Comm().context("gpus")


@pytest.mark.parametrize("environ", [{}, {"HOROVOD_SIZE": "1"}, {"OMPI_COMM_WORLD_SIZE": "1"}])
def test_one_worker_needs_no_horovod(environ, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.mxnet", None)
    assert type(connect(environ)) is Comm


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_without_horovod_is_a_sentence(launcher, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.mxnet", None)
    with pytest.raises(UserError, match=r"one of 4 workers.*pip install 'gluon-resnest\[train\]'"):
        connect({launcher.size: "4"})


def test_a_launcher_that_horovod_does_not_speak_is_a_sentence(monkeypatch):
    """mpirun with a Horovod built without MPI: each process would be a worker 0 of 1."""
    class Deaf:
        init = staticmethod(lambda: None)
        size = staticmethod(lambda: 1)
    monkeypatch.setitem(sys.modules, "horovod", type(sys)("horovod"))
    monkeypatch.setitem(sys.modules, "horovod.mxnet", Deaf)
    monkeypatch.setattr(sys.modules["horovod"], "mxnet", Deaf, raising=False)
    with pytest.raises(UserError, match="one of 4 workers, but Horovod found 1; start with horov"):
        connect({"OMPI_COMM_WORLD_SIZE": "4"})


if __name__ == "__main__":
    work(sys.argv[1])

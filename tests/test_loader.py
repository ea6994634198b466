import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from gluon_resnest.data import ring
from gluon_resnest.data.loader import Loader
from gluon_resnest.data.sampling import EvalPlan, TrainPlan
from gluon_resnest.errors import UserError


class Numbers:
    """Sample i: an image of random numbers drawn for it, and i."""

    def __init__(self, length=37):
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, key):
        index, rng = key
        return rng.random((3, 2, 5), dtype=np.float32), np.int64(index)

    def name(self, index):
        return f"number {index}"


class Faulty(Numbers):
    """Sample 9 misbehaves in the way that is asked for."""

    def __init__(self, fault):
        super().__init__()
        self._fault = fault

    def __getitem__(self, key):
        image, label = super().__getitem__(key)
        if label == 9:
            if self._fault == "user":
                raise UserError("number 9 is damaged; replace it")
            if self._fault == "bug":
                raise KeyError("lost")
            if self._fault == "shape":
                return image[:, :1], label
            if self._fault == "exit":
                os._exit(3)
            if self._fault == "slow":
                time.sleep(60)
        return image, label


class Modules(Numbers):
    """Says in its label whether mxnet is imported in the process that reads."""

    def __getitem__(self, key):
        return super().__getitem__(key)[0], np.int64("mxnet" in sys.modules)


class Process(Numbers):
    """Says in its label which process reads."""

    def __getitem__(self, key):
        return super().__getitem__(key)[0], np.int64(os.getpid())


def train_loader(dataset=None, workers=0, batch=8):
    dataset = dataset or Numbers()
    return Loader(dataset, TrainPlan(len(dataset), batch, 0, 1, seed=4), seed=4, workers=workers)


def in_order_loader(dataset, workers, batch=8):
    return Loader(dataset, EvalPlan(len(dataset), batch), seed=0, workers=workers)


def pids(loader):
    return sorted({int(pid) for batch in loader.epoch(0) for pid in batch.arrays[1]})


def assert_same(one, other):
    assert (one.epoch, one.step) == (other.epoch, other.step)
    np.testing.assert_array_equal(one.indices, other.indices)
    for ours, theirs in zip(one.arrays, other.arrays):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def wait_until(condition, seconds=5):
    limit = time.time() + seconds
    while not condition() and time.time() < limit:
        time.sleep(0.02)
    return condition()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def expected():
    """Three epochs, read in this process."""
    with train_loader() as loader:
        return [list(loader.epoch(epoch)) for epoch in range(3)]


def test_batches_hold_what_the_plan_names(expected):
    plan = TrainPlan(37, 8, 0, 1, seed=4)
    for epoch, batches in enumerate(expected):
        assert [batch.step for batch in batches] == list(range(5))
        for batch in batches:
            np.testing.assert_array_equal(batch.indices, plan.indices(epoch, batch.step))
            np.testing.assert_array_equal(batch.arrays[1], batch.indices)
            assert batch.arrays[0].shape == (8, 3, 2, 5) and batch.arrays[0].dtype == np.float32


def test_a_sample_is_drawn_anew_each_epoch(expected):
    images = [dict(zip(batch.indices.tolist(), batch.arrays[0])) for epoch in expected
              for batch in epoch[:1]]
    common = set(images[0]) & set(images[1])
    assert common and all((images[0][index] != images[1][index]).any() for index in common)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_number_of_workers_makes_no_difference(expected, workers):
    with train_loader(workers=workers) as loader:
        for epoch, batches in enumerate(expected):
            for ours, theirs in zip(loader.epoch(epoch), batches):
                assert_same(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_from_a_step_is_the_rest_of_the_epoch(expected, workers):
    with train_loader(workers=workers) as loader:
        for start in range(6):
            rest = list(loader.epoch(1, start))
            assert len(rest) == 5 - start
            for ours, theirs in zip(rest, expected[1][start:]):
                assert_same(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_endless_batches_are_the_epochs_one_after_the_other(expected, workers):
    flat = [batch for epoch in expected for batch in epoch]
    with train_loader(workers=workers) as loader:
        for start in (0, 3, 7):
            for ours, theirs in zip(loader.batches(start), flat[start:]):
                assert_same(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_stream_leaves_nothing_behind(expected, workers):
    with train_loader(workers=workers) as loader:
        for _ in range(3):
            next(iter(loader.epoch(0)))
        for ours, theirs in zip(loader.epoch(2), expected[2]):
            assert_same(ours, theirs)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_stream_ends_the_first(workers):
    with train_loader(workers=workers) as loader:
        first = loader.epoch(0)
        next(first)
        loader.epoch(1)
        with pytest.raises(RuntimeError, match="has ended"):
            next(first)


def test_batches_that_are_kept_stay_as_they_are(expected):
    """All batches of an epoch are held at once, more than there are slots."""
    with train_loader(workers=2) as loader:
        kept = list(loader.epoch(0)) + list(loader.epoch(1))
        list(loader.epoch(2))
    gc.collect()
    for ours, theirs in zip(kept, expected[0] + expected[1]):
        assert_same(ours, theirs)


def test_batches_that_are_let_go_are_not_copied():
    with train_loader(workers=1) as loader:
        assert all(batch.arrays[0].base is not None
                   for batch in itertools.islice(loader.batches(), 12))
    with train_loader(workers=1) as loader:
        kept = list(loader.epoch(0))
    assert sum(batch.arrays[0].base is None for batch in kept) == 3


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("length, size", [(10, 3), (1, 2)])
def test_evaluation_reads_each_sample_once_over_all_workers(length, size, workers):
    seen, steps = [], set()
    for rank in range(size):
        plan = EvalPlan(length, 6, rank, size)
        with Loader(Numbers(length), plan, seed=0, workers=workers) as loader:
            batches = list(loader.epoch(0))
        steps.add(len(batches))
        for batch in batches:
            assert batch.arrays[0].shape[1:] == (3, 2, 5)
            assert len(batch.arrays[0]) == len(batch.indices)
            seen += batch.arrays[1].tolist()
    assert sorted(seen) == list(range(length)) and len(steps) == 1


def test_workers_do_not_import_mxnet():
    import mxnet  # noqa: F401  (it is imported here, and must not be there)
    with in_order_loader(Modules(), workers=2) as loader:
        assert all(not batch.arrays[1].any() for batch in loader.epoch(0))


def test_all_workers_take_part_and_none_is_this_process():
    with in_order_loader(Process(2000), workers=2, batch=200) as loader:
        found = pids(loader)
    assert len(found) == 2 and os.getpid() not in found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_the_datasets_own_sentence(workers):
    with in_order_loader(Faulty("user"), workers) as loader:
        with pytest.raises(UserError, match="^number 9 is damaged; replace it$"):
            list(loader.epoch(0))
        assert len(list(loader.epoch(0, 2))) == 3            # the loader is still good


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault, message", [("bug", "reading number 9 failed: 'lost'"),
                                            ("shape", r"expected an array of shape \(3, 2, 5\)")])
def test_a_bug_in_the_dataset_names_the_sample(workers, fault, message):
    with in_order_loader(Faulty(fault), workers) as loader:
        with pytest.raises(RuntimeError, match=message):
            list(loader.epoch(0))


def test_a_worker_that_ends_is_reported_with_its_samples():
    with in_order_loader(Faulty("exit"), workers=2) as loader:
        with pytest.raises(RuntimeError, match="ended with exit code 3 while reading .*number 9"):
            list(loader.epoch(0))
        with pytest.raises(RuntimeError, match="closed"):
            list(loader.epoch(0))


def test_a_killed_worker_is_noticed_within_a_second():
    with in_order_loader(Faulty("slow"), workers=1, batch=16) as loader:
        victim = loader._pool._processes[0]
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {victim.pid}"])
        start = time.time()
        with pytest.raises(RuntimeError, match="worker 0 was killed by SIGKILL while reading .*"
                                               "number 9.*out of memory"):
            list(loader.epoch(0))
        assert time.time() - start < 1.3
        killer.wait()


def test_a_worker_killed_between_batches_is_noticed_at_the_next():
    with in_order_loader(Process(), workers=2, batch=4) as loader:
        stream = loader.epoch(0)
        next(stream)
        time.sleep(0.3)                                       # everything ahead is ready
        victim = loader._pool._processes[1]
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        with pytest.raises(RuntimeError, match="worker 1 was killed by SIGKILL"):
            next(stream)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_loader(expected, number):
    with train_loader(workers=2) as loader:
        stream = loader.epoch(0)
        batches = [next(stream)]
        for process in loader._pool._processes:
            os.kill(process.pid, number)
        batches += list(stream)
    for ours, theirs in zip(batches, expected[0]):
        assert_same(ours, theirs)


@pytest.mark.parametrize("end", ["close", "forget"])
def test_a_loader_leaves_no_process_and_no_descriptor(end):
    before = len(os.listdir("/proc/self/fd"))
    loader = in_order_loader(Process(), workers=2)
    found = [process.pid for process in loader._pool._processes]
    list(loader.epoch(0))
    if end == "close":
        loader.close()
        loader.close()
    del loader
    gc.collect()
    assert not any(map(alive, found))
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise KeyError(1)", ""])
def test_nothing_survives_the_loaders_process(end):
    script = textwrap.dedent(f"""
        import os, signal
        import test_loader
        loader = test_loader.in_order_loader(test_loader.Process(2000), workers=2)
        stream = loader.epoch(0)
        next(stream)
        print(*[process.pid for process in loader._pool._processes], flush=True)
        {end}
    """)
    before = set(os.listdir("/dev/shm"))
    done = subprocess.run([sys.executable, "-c", script], cwd=os.path.dirname(__file__),
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    found = [int(pid) for pid in done.stdout.split()]
    assert len(found) == 2
    assert wait_until(lambda: not any(map(alive, found)))
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "gluon" in name}


def test_a_dataset_that_cannot_be_pickled_is_refused():
    dataset = Numbers()
    dataset.transform = lambda image: image
    with pytest.raises(UserError, match="cannot be sent to a worker process.*--data-workers 0"):
        in_order_loader(dataset, workers=1)


def test_a_dataset_of_the_main_script_is_refused(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        import test_loader
        class Mine(test_loader.Numbers):
            pass
        try:
            test_loader.in_order_loader(Mine(), workers=1)
        except test_loader.UserError as error:
            print(error)
    """))
    text = subprocess.run([sys.executable, script, os.path.dirname(__file__)], timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
    assert "define its class and its transform in an importable module" in text


def test_too_little_memory_is_a_sentence_before_anything_starts(monkeypatch):
    monkeypatch.setattr(ring, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"needs 0 MB of shared memory for 4 batches of 8 samples, "
                                        r"but 0 MB are available; .* --data-workers 0"):
        train_loader(workers=1)


@pytest.mark.parametrize("use, message", [
    (lambda: train_loader(workers=-1), "0 or more data workers, got -1"),
    (lambda: train_loader().epoch(0, 6), "a step from 0 to 5, got 6"),
])
def test_impossible_requests_are_refused(use, message):
    with pytest.raises(UserError, match=message):
        use()


def test_ring_slots_do_not_overlap():
    layout = ring.Layout((ring.Spec((3, 5), "<f4"), ring.Spec((), "<i8"), ring.Spec((7,), "|u1")),
                         batch=3, slots=4, workers=2)
    memory = ring.Ring(layout)
    memory.taken[:] = (101, 102)
    for number in range(4):
        indices, arrays, _ = memory.slot(number)
        for value, part in enumerate((indices,) + arrays):
            part[...] = 10 * number + value
    other = ring.Ring(layout, memory.fd)
    assert other.taken.tolist() == [101, 102] and other.cancelled.tolist() == [0]
    for number in range(4):
        indices, arrays, _ = other.slot(number)
        assert [part.shape for part in arrays] == [(3, 3, 5), (3,), (3, 7)]
        for value, part in enumerate((indices,) + arrays):
            assert (part == 10 * number + value).all()
    os.close(memory.fd)


def test_a_worker_that_cannot_start_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="data worker 0 ended with exit code 1"):
        train_loader(workers=2)

"""Laws of the checkpoints of a run: the newest and the best are there, whatever happens."""
import errno
import logging
import os
import shutil
import stat

import numpy as np
import pytest
from mxnet import gluon, nd
from test_checkpoint import NAMES, assert_same, example, net_of, stepped, update_of

from gluon_resnest.engine import checkpoint as module
from gluon_resnest.engine.checkpoint import State, snapshot
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm
from gluon_resnest.errors import UserError


def test_restore_inverts_save(tmp_path):
    net, checkpoints = net_of(), Checkpoints(tmp_path)
    update = update_of(net)
    stepped(net, update)
    checkpoints.save(net, update, example(4).state)
    other = net_of(prefix="other_")
    again = update_of(other)
    assert checkpoints.restore(other, again, Comm()) == example(4).state
    assert_same(snapshot(other, again, State()), snapshot(net, update, State()))


def test_restore_fills_a_network_that_has_seen_no_input(tmp_path):
    net = net_of()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(net, update_of(net), State(step=1))
    other = gluon.nn.HybridSequential()
    other.add(gluon.nn.Dense(3), gluon.nn.BatchNorm())
    other.initialize()
    checkpoints.restore(other, update_of(other), Comm())
    np.testing.assert_array_equal(other(nd.ones((1, 2))).asnumpy(), net(nd.ones((1, 2))).asnumpy())


def test_restore_of_nothing_is_a_fresh_state(tmp_path):
    net = net_of()
    assert Checkpoints(tmp_path / "none").restore(net, update_of(net), Comm()) == State()


def test_the_best_is_restored_and_else_the_newest(tmp_path):
    nets, checkpoints = [net_of(), net_of()], Checkpoints(tmp_path)
    assert checkpoints.restore_best(nets[0], Comm()) is None
    for step, net in zip((1, 2), nets):
        checkpoints.save(net, update_of(net), State(step=step, best=0.5, best_step=1))
    for step, net in zip((1, 2), nets):
        other = net_of()
        assert checkpoints.restore_best(other, Comm()).step == step
        np.testing.assert_array_equal(other[0].weight.data().asnumpy(),
                                      net[0].weight.data().asnumpy())
        (checkpoints.path(1) / "state.json").write_text("")


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(10, 60, 10):
        checkpoints.store(example(step, best_step=min(step, 20)))
    assert checkpoints.steps() == [20, 40, 50]
    assert_same(checkpoints.latest(), example(50, best_step=20))
    assert_same(checkpoints.best(), example(20, best_step=20))
    checkpoints.store(example(60, best_step=60))
    assert checkpoints.steps() == [50, 60]
    assert_same(checkpoints.best(), checkpoints.latest())


def test_one_that_is_unevaluated_is_the_newest_until_it_is_evaluated(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.store(example(step, best_step=10))
    pending = example(40, best_step=10, unevaluated=True)
    assert checkpoints.store(pending) == tmp_path / "unevaluated-00000040"
    assert_same(checkpoints.latest(), pending)
    assert checkpoints.path_of(pending) == tmp_path / "unevaluated-00000040"
    assert checkpoints.steps() == [10, 30]                      # it counts as one of the two
    assert_same(checkpoints.best(), example(10, best_step=10))
    assert checkpoints.store(example(40, best_step=40)) == checkpoints.path(40)
    assert_same(checkpoints.latest(), example(40, best_step=40))
    assert sorted(os.listdir(tmp_path)) == ["step-00000030", "step-00000040"]


def test_without_any_other_the_unevaluated_one_is_restored(tmp_path):
    net, checkpoints = net_of(), Checkpoints(tmp_path)
    state = State(step=7, unevaluated=True)
    checkpoints.save(net, update_of(net), state)
    other = net_of()
    assert checkpoints.restore_best(other, Comm()) == state
    np.testing.assert_array_equal(other[0].weight.data().asnumpy(), net[0].weight.data().asnumpy())
    (checkpoints.path(7, unevaluated=True) / "state.json").write_text("")
    with pytest.raises(UserError, match="none of the 1 checkpoints in .* is whole"):
        checkpoints.latest()


def test_what_was_just_written_outlives_a_damaged_one_of_its_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (4, 6, 8):
        checkpoints.store(example(step, best_step=4))
    (tmp_path / "step-00000008/model.params").write_bytes(b"damaged")
    checkpoints.store(example(6, best_step=4))                  # trained again from step 4
    pending = example(8, best_step=4, unevaluated=True)
    checkpoints.store(pending)
    assert_same(checkpoints.latest(), pending)
    assert sorted(os.listdir(tmp_path)) == ["step-00000004", "unevaluated-00000008"]


def test_of_a_step_there_is_one(tmp_path):
    """A kill before the unevaluated one is removed leaves both."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.store(example(10))
    shutil.copytree(checkpoints.store(example(20, unevaluated=True)), tmp_path / "copy")
    checkpoints.store(example(20))
    os.rename(tmp_path / "copy", tmp_path / "unevaluated-00000020")
    newest, older = checkpoints.whole()
    assert_same(newest, example(20))
    assert_same(older, example(10))


def test_there_may_be_no_best(tmp_path):
    assert Checkpoints(tmp_path).best() is None
    Checkpoints(tmp_path).store(example(1))
    assert Checkpoints(tmp_path).best() is None


def test_saving_again_at_the_same_step_replaces(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.store(example(5))
    checkpoints.store(example(5, seed=1))
    assert_same(checkpoints.latest(), example(5, seed=1))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [truncate, flip, os.remove, lambda path: path.write_text("")],
                         ids=["truncated", "flipped", "absent", "empty"])
def test_the_newest_whole_one_is_taken(name, damage, tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.store(example(10))
    damage(checkpoints.store(example(20)) / name)
    found = checkpoints.latest()
    if found.state.step == 20:          # a bit of the manifest's white space
        assert_same(found, example(20))
        return
    assert_same(found, example(10))
    assert len(caplog.records) == 1
    assert "step-00000020 is damaged (" in caplog.text and "it is passed over" in caplog.text
    checkpoints.store(example(20))
    assert_same(checkpoints.latest(), example(20))


def test_starting_anew_over_damaged_checkpoints_must_be_a_decision(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        truncate(checkpoints.store(example(step)) / "model.params")
    with pytest.raises(UserError, match="none of the 2 checkpoints in .* is whole; move them away"):
        checkpoints.latest()


def boundaries():
    """The calls between which a kill can leave different things on the disk."""
    return [(os, "mkdir"), (os, "fsync"), (os, "rename"), (os, "rmdir"), (os, "unlink")]


def killed_at(moment, action):
    """Runs `action` in a child that dies, without any clean-up, before its n-th change of the disk.

    Returns:
      Whether it was killed (False: it was done before).
    """
    child = os.fork()
    if child == 0:
        left = [moment]

        def mortal(function):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return function(*args, **kwargs)
            return call
        for owner, name in boundaries():
            setattr(owner, name, mortal(getattr(owner, name)))
        try:
            action()
        finally:
            os._exit(0)
    return os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("pending", [False, True])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(pending, tmp_path):
    """The save of step 40 writes, renames and removes step 20, or the unevaluated step 40; each of
    its moments is tried."""
    moments = 0
    while True:
        checkpoints = Checkpoints(tmp_path / str(moments), keep=2)
        for step in (10, 20, 30):
            checkpoints.store(example(step, best_step=10))
        if pending:
            checkpoints.store(example(40, best_step=10, unevaluated=True))
        if not killed_at(moments, lambda: checkpoints.store(example(40, best_step=10))):
            break
        found = checkpoints.latest()
        assert found.state.step in ((40,) if pending else (30, 40))
        assert_same(found, example(found.state.step, best_step=10,
                                   unevaluated=found.state.unevaluated))
        assert_same(checkpoints.best(), example(10, best_step=10))
        checkpoints.store(example(40, best_step=10))
        assert sorted(os.listdir(checkpoints.directory)) == \
            ["step-00000010", "step-00000030", "step-00000040"]
        moments += 1
    assert moments >= 15


@pytest.mark.parametrize("moment", range(6))
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_loses_nothing(call, moment, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.store(example(10))
    left = [moment]

    def full(function):
        def failing(*args, **kwargs):
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)
        return failing

    owner, name = (module, "_write_file") if call == "write" else (os, call)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full(getattr(owner, name)))
        try:
            checkpoints.store(example(20))
        except UserError as error:
            assert str(error).startswith(f"cannot save step-00000020 in {tmp_path}: No space left "
                                         "on device; what was saved before is whole")
        else:
            assert left[0] >= 0         # that call does not happen so often
    assert_same(checkpoints.latest(), example(checkpoints.latest().state.step))
    assert not list(tmp_path.glob("unfinished-*"))


def test_an_unwritable_directory_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot save step-00000001 in .*: Not a directory; what"):
        Checkpoints(tmp_path / "file" / "checkpoints").store(example(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_a_sentence(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="Permission denied; .* give a writable --workdir"):
        Checkpoints(tmp_path).store(example(1))


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(UserError, match="at least 1 checkpoint must be kept, got 0"):
        Checkpoints(tmp_path, keep=0)


def test_other_names_in_the_directory_are_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for name in ("step-12", "notes.txt", "step-00000001.bak"):
        (tmp_path / name).mkdir()
    checkpoints.store(example(1))
    checkpoints.store(example(2))
    assert checkpoints.steps() == [2]
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "step-12").exists()


def test_a_moved_run_directory_goes_on(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    Checkpoints(tmp_path / "here").store(example(3))
    shutil.move(str(tmp_path / "here"), str(tmp_path / "there"))
    assert_same(Checkpoints(tmp_path / "there").latest(), example(3))
    assert not caplog.records

"""Laws of writing beside training: in order, one at a time, and no error is lost."""
import logging
import threading

import pytest

from gluon_resnest.engine.writer import Writer
from gluon_resnest.errors import UserError


class Slow:
    """Stands for Checkpoints: a store lasts until it is let go."""

    def __init__(self, fails=()):
        self.begun, self.let_go, self.stored, self._fails = threading.Event(), \
            threading.Event(), [], fails

    def store(self, checkpoint):
        self.begun.set()
        assert self.let_go.wait(10)
        if checkpoint in self._fails:
            raise UserError(f"cannot save {checkpoint}")
        self.stored.append(checkpoint)


def test_training_goes_on_while_it_writes():
    slow = Slow()
    with Writer(slow) as writer:
        writer.store(1)
        assert slow.begun.wait(10) and slow.stored == []
        slow.let_go.set()
    assert slow.stored == [1]


def test_the_next_waits_for_the_last_and_all_are_written_in_order():
    slow = Slow()
    with Writer(slow) as writer:
        writer.store(1)
        assert slow.begun.wait(10)
        slow.begun.clear()
        later = threading.Thread(target=writer.store, args=(2,))
        later.start()
        assert not slow.begun.wait(0.1)                      # not two at a time
        slow.let_go.set()
        later.join()
        writer.store(3)
        writer.finish()
        assert slow.stored == [1, 2, 3]


@pytest.mark.parametrize("call", [lambda writer: writer.store(2), Writer.finish])
def test_an_error_surfaces_at_the_next_save_or_at_the_end(call):
    slow = Slow(fails=[1])
    slow.let_go.set()
    with Writer(slow) as writer:
        writer.store(1)
        with pytest.raises(UserError, match="cannot save 1"):
            call(writer)
        writer.finish()                                      # told once
    assert slow.stored == []


def test_an_error_beside_another_is_logged(caplog):
    slow = Slow(fails=[1])
    slow.let_go.set()
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="first"):
        with Writer(slow) as writer:
            writer.store(1)
            raise ValueError("first")
    assert "cannot save 1" in caplog.text


def test_a_failing_run_still_finishes_its_checkpoint():
    slow = Slow()
    with pytest.raises(ValueError), Writer(slow) as writer:
        writer.store(1)
        threading.Timer(0.1, slow.let_go.set).start()
        raise ValueError
    assert slow.stored == [1]

"""A supervised training of two workers survives faults; tests/kill_trials.py does it at length."""
import pytest
from kill_trials import trial


@pytest.mark.horovod
def test_a_disturbed_run_equals_the_undisturbed_bit_for_bit(tmp_path):
    faults = ["kill -9 of a worker", "truncated checkpoint, kill -9"]
    events, different = trial(tmp_path, faults, seed=1)
    assert [event.fault for event in events] == faults
    assert not different

"""Laws of the mean of checkpoints."""
import importlib.util
import logging
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon, nd

from gluon_resnest.engine.checkpoint import State
from gluon_resnest.engine.checkpoints import Checkpoints
from gluon_resnest.engine.comm import Comm
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.update import Update
from gluon_resnest.errors import UserError
from gluon_resnest.tasks.averaging import average, read_models, write_model

TOOL = Path(__file__).resolve().parents[1] / "tools/average_checkpoints.py"


def model(seed):
    random = np.random.RandomState(seed)
    return {"fc.weight": random.standard_normal((3, 4)).astype("float32"),
            "bn.running_var": random.standard_normal(3).astype("float32") ** 2}


def test_the_average_equals_numpy_in_float64():
    models = [model(seed) for seed in range(5)]
    for name, array in average(models).items():
        slow = sum(one[name].astype("float64") for one in models) / 5
        np.testing.assert_array_equal(array, slow.astype("float32"))
        assert array.dtype == np.float32


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_the_average_of_one_model_with_itself_is_the_model(count):
    np.testing.assert_equal(average([model(0)] * count), model(0))


def test_small_differences_survive():
    """In float32 the sum of a thousand would lose them."""
    near = [{"w": np.float32([1 + 2 ** -23 * (k % 2 * 2)])} for k in range(1000)]
    assert average(near)["w"][0] == np.float32(1 + 2 ** -23)


def test_running_statistics_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        average([{"w": np.ones(2, "float32")}])
        assert not caplog.text
        average([model(0), model(1)])
    assert "running statistics of batch norms are averaged like weights" in caplog.text


@pytest.mark.parametrize("other, message", [
    ({"fc.weight": np.ones((3, 4))}, "checkpoint 2 is of another network .* 'bn.running_var'"),
    ({"fc.weight": np.ones((3, 5)), "bn.running_var": np.ones(3)},
     "'fc.weight' is missing in one or of another shape")])
def test_another_network_is_a_sentence(other, message):
    with pytest.raises(UserError, match=message):
        average([model(0), other])


@pytest.fixture
def run(tmp_path):
    """A run directory with three checkpoints whose weight is 1, 2 and 6."""
    net = gluon.nn.Dense(1, in_units=1, use_bias=False)
    net.initialize(mx.init.One())
    update = Update(Comm().trainer(net.collect_params(), optimizer("sgd", wd=0)), net)
    for step, value in ((1, 1), (2, 2), (3, 6)):
        net.weight.set_data(nd.full((1, 1), value))
        Checkpoints(tmp_path / "checkpoints").save(net, update, State(step=step))
    return tmp_path


@pytest.mark.parametrize("last, expected", [(None, 3), (2, 4), (1, 6)])
def test_the_command_averages_the_newest_of_a_run(last, expected, run, capsys):
    spec = importlib.util.spec_from_file_location("average_checkpoints", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = run / "mean.params"
    tool.main([str(run), "--out", str(out)] + (["--last", str(last)] if last else []))
    assert f"the mean of {last or 3}" in capsys.readouterr().out
    assert mx.nd.load(str(out))["weight"].asscalar() == expected
    with pytest.raises(SystemExit) as exit:
        tool.main([str(run), "--out", str(out), "--last", "0"])
    assert exit.value.code == 2 and "--last must be at least 1" in capsys.readouterr().err


def test_files_and_checkpoints_mix(run):
    write_model({"weight": np.float32([[9]])}, run / "a.params")
    models = read_models([run / "a.params", run / "checkpoints/step-00000002"])
    assert average([found for _, found in models])["weight"].item() == 5.5


def test_nothing_to_average_and_nowhere_to_write_are_sentences(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="there are no checkpoints to average"):
        read_models([tmp_path])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*file.* give a path"):
        write_model(model(0), tmp_path / "file/x.params")


def test_what_belongs_to_one_run_directory_is_refused_elsewhere(run):
    write_model({"weight": np.float32([[9]])}, run / "a.params")
    with pytest.raises(UserError, match="--last belongs to a run directory; leave it out"):
        read_models([run / "a.params", run / "a.params"], last=1)
    with pytest.raises(UserError, match="is a run directory, which is averaged alone; give one"):
        read_models([run, run])


def test_damaged_checkpoints_are_left_out(run):
    steps = sorted((run / "checkpoints").glob("step-*"))
    whole = [path for path, _ in read_models([run], last=2)]
    assert whole == steps[-2:]
    (steps[-1] / "model.params").write_bytes(b"cut")
    assert [path for path, _ in read_models([run], last=2)] == steps[-3:-1]

import os
import struct

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from gluon_resnest.errors import UserError
from gluon_resnest.interop.weights import load_parameters, read_params, save_parameters


class Net(nn.HybridBlock):
    """Two blocks with the family's names; 3 channels in, any size."""

    def __init__(self, classes=5, bias=True):
        super().__init__()
        with self.name_scope():
            self.conv1 = nn.Conv2D(4, 3, use_bias=bias)
            self.bn1 = nn.BatchNorm()
            self.pool = nn.GlobalAvgPool2D()
            self.fc = nn.Dense(classes)

    def hybrid_forward(self, F, x):
        return self.fc(self.pool(self.bn1(self.conv1(x))))


def image():
    return mx.nd.array(np.random.RandomState(0).rand(2, 3, 5, 7))


def ready(**options):
    net = Net(**options)
    net.initialize(mx.init.Normal(1))
    net(image())
    return net


def values(net):
    return {name: param.data().asnumpy() for name, param in
            net._collect_params_with_prefix().items()}


@pytest.fixture
def saved(tmp_path):
    net = ready()
    file = tmp_path / "net.params"
    save_parameters(net, file)
    return net, file


def blank():
    return Net()


def deferred():
    net = Net()
    net.initialize()
    return net


@pytest.mark.parametrize("build", [blank, deferred, ready])
@pytest.mark.parametrize("ctx", [None, mx.cpu(1), [mx.cpu(0), mx.cpu(1)]])
def test_load_restores_what_save_wrote(saved, build, ctx):
    net, file = saved
    other = build()
    load_parameters(other, file, ctx=ctx)
    contexts = [mx.cpu(0)] if ctx is None else ctx if isinstance(ctx, list) else [ctx]
    assert other.fc.weight.list_ctx() == contexts
    for context in contexts:
        np.testing.assert_array_equal(other(image().as_in_context(context)).asnumpy(),
                                      net(image()).asnumpy())


def test_reads_the_same_arrays_as_mxnet(tmp_path):
    file = str(tmp_path / "types.params")
    rng = np.random.RandomState(1)
    arrays = {f"{dtype}.é": mx.nd.array(rng.randint(0, 99, (2, 3, 1)), dtype=dtype)
              for dtype in ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")}
    arrays["empty"] = mx.nd.array(np.zeros((1,)))
    mx.nd.save(file, arrays)
    ours = read_params(file)
    assert list(ours) == list(arrays)
    for name, array in arrays.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array.asnumpy())


def test_reads_files_written_under_numpy_semantics(tmp_path):
    file = str(tmp_path / "np.params")
    with mx.util.np_shape(True), mx.util.np_array(True):
        mx.npx.save(file, {"a.b": mx.np.arange(6).reshape(2, 3)})
    np.testing.assert_array_equal(read_params(file)["a.b"], np.arange(6).reshape(2, 3))


def test_exported_names_load_whatever_their_counters(tmp_path):
    net = ready()
    net.hybridize()
    net(image())
    net.export(str(tmp_path / "net"))
    other = Net()                                   # gets another number in its prefix
    load_parameters(other, tmp_path / "net-0000.params")
    np.testing.assert_array_equal(other(image()).asnumpy(), net(image()).asnumpy())
    with pytest.raises(UserError, match=r"names of another net than Dense; .*convert_weights"):
        load_parameters(nn.Dense(3), tmp_path / "net-0000.params")


def test_a_failed_load_changes_nothing(saved, tmp_path):
    _, file = saved
    for wrong in (Net(classes=7), ready(classes=7)):
        started = wrong.fc.weight._data is not None
        before = values(wrong) if started else None
        with pytest.raises(UserError):
            load_parameters(wrong, file)
        assert (wrong.fc.weight._data is not None) == started
        if started:
            for name, value in values(wrong).items():
                np.testing.assert_array_equal(value, before[name])


def test_misfit_lists_both_sides_with_counts(saved):
    _, file = saved
    other = Net(bias=False)
    other.extra = nn.Dense(2, in_units=3)
    with pytest.raises(UserError) as caught:
        load_parameters(other, file)
    message = str(caught.value)
    assert "2 missing: extra.weight, extra.bias; 1 unexpected: conv1.bias; " in message
    assert 'ignore=("conv1.*", "extra.*",)' in message


def test_long_lists_show_ten_and_the_rest_as_a_number(tmp_path):
    net = nn.HybridSequential()
    for _ in range(7):
        net.add(nn.Dense(2, in_units=2))
    mx.nd.save(str(tmp_path / "other.params"), {"a.b": mx.nd.zeros((1,))})
    with pytest.raises(UserError, match=r"14 missing: 0.weight, .*, 4.bias and 4 more; "
                                        r"1 unexpected: a.b; no name agrees.*convert_weights"):
        load_parameters(net, tmp_path / "other.params")


def test_another_number_of_classes_offers_both_ways_out(saved):
    net, file = saved
    other = ready(classes=7)
    with pytest.raises(UserError, match=r"2 mis-shaped: fc.weight \(net \(7, 4\), file \(5, 4\)\)"
                                        r".*reset_classifier.*ignore=\(\"fc\.\*\",\)"):
        load_parameters(other, file)
    before = other.fc.weight.data().asnumpy()
    load_parameters(other, file, ignore=("fc.*",))
    np.testing.assert_array_equal(other.fc.weight.data().asnumpy(), before)
    np.testing.assert_array_equal(other.conv1.weight.data().asnumpy(),
                                  net.conv1.weight.data().asnumpy())


@pytest.mark.parametrize("ignore, message", [
    ("fc.*", "takes a sequence of patterns, got the string"),
    (("fd.weight",), r"'fd.weight' matches no parameter .*did you mean 'fc.weight'"),
])
def test_an_ignore_without_effect_is_refused(saved, ignore, message):
    with pytest.raises(UserError, match=message):
        load_parameters(Net(), saved[1], ignore=ignore)


def test_shared_parameters_may_be_stored_once(tmp_path):
    def shared():
        net = nn.HybridSequential()
        net.add(nn.Dense(3, in_units=3))
        net.add(nn.Dense(3, in_units=3, params=net[0].params))
        return net
    net = shared()
    net.initialize(mx.init.Normal(1))
    net.save_parameters(str(tmp_path / "once.params"), deduplicate=True)
    assert len(read_params(tmp_path / "once.params")) == 2
    other = shared()
    load_parameters(other, tmp_path / "once.params")
    np.testing.assert_array_equal(other[0].weight.data().asnumpy(), net[1].weight.data().asnumpy())


def rewrite(file, change):
    arrays = {name: array.copy() for name, array in read_params(file).items()}
    change(arrays)
    mx.nd.save(str(file), {name: mx.nd.array(array, dtype=array.dtype)
                           for name, array in arrays.items()})


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floating_point_is_cast_to_the_type_of_the_parameter(saved, dtype):
    net, file = saved
    rewrite(file, lambda arrays: arrays.update(
        {name: array.astype(dtype) for name, array in arrays.items()}))
    other = Net()
    load_parameters(other, file)
    assert other.fc.weight.data().dtype == np.float32
    np.testing.assert_array_equal(other.fc.weight.data().asnumpy(),
                                  net.fc.weight.data().asnumpy().astype(dtype).astype("float32"))


@pytest.mark.parametrize("value, message", [
    (np.float32("nan"), r"bn1.running_var .* holds NaN or infinity"),
    (np.float32("-inf"), r"bn1.running_var .* holds NaN or infinity"),
    (np.float64(1e60), r"bn1.running_var .* beyond the range of float32; .* float64"),
    (np.int32(1), r"bn1.running_var .* is int32, the net wants float32"),
])
def test_values_a_net_cannot_use_are_refused_by_name(saved, value, message):
    _, file = saved
    rewrite(file, lambda arrays: arrays.update({"bn1.running_var": np.array([1, 1, value, 1])
                                                .astype(value.dtype)}))
    with pytest.raises(UserError, match=message):
        load_parameters(Net(), file)


def test_every_truncation_is_refused(saved, tmp_path):
    data = saved[1].read_bytes()
    cut = tmp_path / "cut.params"
    for length in list(range(0, 200)) + list(range(200, len(data), 37)) + [len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(UserError, match="is not an intact MXNet parameter file"):
            load_parameters(Net(), cut)


def test_every_changed_header_byte_loads_equal_or_is_refused(saved, tmp_path):
    """Sizes in a file are never believed: no huge allocation, no crash, no foreign exception."""
    net, file = saved
    data = file.read_bytes()
    broken = tmp_path / "broken.params"
    refused = 0
    for at in list(range(0, 100)) + list(range(len(data) - 150, len(data))):
        for bit in (0x01, 0x80):
            broken.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1:])
            try:
                assert set(read_params(broken)) == set(read_params(file))
            except (UserError, AssertionError):
                refused += 1
    assert refused > 300


@pytest.mark.parametrize("data, reason", [
    (b"", "\\(0 bytes\\)"),
    (b"PK\x03\x04" * 20, "first bytes are those of another format"),
    (b"<html>not found</html>" * 9, "first bytes are those of another format"),
    (struct.pack("<QQQ", 0x112, 0, 1 << 62), "it ends early"),
    (struct.pack("<QQQIiiqq", 0x112, 0, 1, 0xF993FAC9, 0, 2, 1 << 40, 1 << 40)
     + struct.pack("<iii", 1, 0, 0), r"shape \(1099511627776, 1099511627776\) does not fit"),
    (struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FAC9, 0, 1 << 30), "1073741824 dimensions"),
    (struct.pack("<QQQIi", 0x112, 0, 1, 0xF993FAC9, 1), "a sparse array"),
    (struct.pack("<QQQQQ", 0x112, 0, 0, 1, 1 << 60), "ends within a name"),
    (struct.pack("<QQQQQc", 0x112, 0, 0, 1, 1, b"\xff"), "decode"),
    (struct.pack("<QQQQQc", 0x112, 0, 0, 1, 1, b"a"), "0 arrays and 1 distinct names"),
])
def test_junk_is_refused_in_one_sentence(tmp_path, data, reason):
    file = tmp_path / "junk.params"
    file.write_bytes(data)
    with pytest.raises(UserError, match=reason):
        load_parameters(Net(), file)


def test_a_missing_file_names_its_neighbours(saved):
    with pytest.raises(UserError, match="No such file .*did you mean 'net.params'"):
        load_parameters(Net(), saved[1].with_name("nett.params"))
    with pytest.raises(UserError, match="Is a directory"):
        load_parameters(Net(), saved[1].parent)


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing(saved):
    _, file = saved
    before = file.read_bytes()
    with pytest.raises(UserError, match="6 parameters that have no values yet .conv1.weight"):
        save_parameters(deferred(), file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]
    with pytest.raises(UserError, match="cannot write .*No such file or directory"):
        save_parameters(ready(), file.parent / "absent" / "net.params")


def test_a_full_disk_is_noticed_before_the_old_file_is_replaced(saved, monkeypatch):
    _, file = saved
    before = file.read_bytes()

    def short_write(net, name):
        with open(name, "wb") as stream:
            stream.write(before[:-9])
    monkeypatch.setattr(Net, "save_parameters", short_write)
    with pytest.raises(UserError, match="cannot write .*came out damaged"):
        save_parameters(ready(), file)
    assert file.read_bytes() == before

"""The benchmark: statistics by hand, what is dropped, who may take part, one real tiny run."""
import importlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from gluon_resnest.benchmark import process, report, rounds
from gluon_resnest.benchmark.competitors import chosen
from gluon_resnest.benchmark.process import Process
from gluon_resnest.benchmark.sides import worker
from gluon_resnest.benchmark.timing import Turn, summarize, undisturbed
from gluon_resnest.engine.processes import descendants
from gluon_resnest.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = {False: sys.executable, True: str(ROOT / "no/such/python")}


def load_tool():
    spec = importlib.util.spec_from_file_location("benchmark_tool", ROOT / "tools/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = load_tool()


def turn(seconds, *, units=1, cpu=1.0, others=0.0):
    return Turn(units, seconds * units, cpu * units, others)


# Ours is 2, 2.5 and 2 times as fast as theirs.
ROUNDS = [{"ours": turn(1.0, units=3), "theirs": turn(2.0)},
          {"ours": turn(1.2, units=3), "theirs": turn(3.0, cpu=4.0)},
          {"ours": turn(2.0, units=3), "theirs": turn(4.0, cpu=2.0)}]


def test_summary_by_hand():
    found = summarize(ROUNDS, "ours")
    assert (found["ours"].seconds, found["theirs"].seconds) == (pytest.approx(1.2), 3.0)
    assert found["theirs"].spread == pytest.approx(2 / 3)
    assert (found["theirs"].low, found["theirs"].speed, found["theirs"].high) == pytest.approx(
        (0.4, 0.5, 0.5))
    assert found["theirs"].cpu == 2.0 and found["theirs"].cpu_speed == pytest.approx(0.5)
    assert found["ours"].speed == found["ours"].cpu_speed == 1


def test_ratio_is_paired_by_round():
    """Both twice as slow in a round: the ratio of the medians would move, the paired one not."""
    slow = [{name: turn(2 * was.seconds) for name, was in turns.items()} for turns in ROUNDS]
    assert summarize(slow[:2] + ROUNDS[2:], "ours")["theirs"].speed == pytest.approx(
        summarize(ROUNDS, "ours")["theirs"].speed)


def test_a_turn_too_short_for_the_clock_has_no_cpu_ratio():
    assert summarize([{"ours": turn(1.0, cpu=0.0), "theirs": turn(1.0)}],
                     "ours")["theirs"].cpu_speed is None


def test_a_round_is_dropped_for_one_disturbed_turn():
    busy = {"ours": turn(10.0), "theirs": turn(10.0, others=1.1)}
    calm = {"ours": turn(10.0, others=0.9), "theirs": turn(10.0)}
    assert undisturbed([busy, calm], limit=0.1) == [calm]


def test_units_that_lie_ready_are_not_timed(monkeypatch):
    monkeypatch.setenv(worker.MARK, "a test")
    ready = [None] * 3
    side = worker.Side(lambda: ready.pop() if ready else time.sleep(0.05), {}, ahead=3)
    assert worker.turn(side, 2)["wall"] >= 0.1


def test_cpu_time_of_marked_processes_is_own(monkeypatch):
    monkeypatch.setenv(worker.MARK, "a test of CPU time")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        side = worker.Side(lambda: time.sleep(1.5), {})
        assert worker.turn(side, 1)["cpu"] > 0
    finally:
        busy.kill()
        busy.wait()


def outcome(all_rounds):
    labels = all_rounds[0]
    return rounds.Outcome(all_rounds, {label: {"first": 2.0, "versions": {"lib": "1"},
                                               "flops": 1e9} for label in labels},
                          dict.fromkeys(labels, 2 ** 20), dict.fromkeys(labels))


def documented(all_rounds, **options):
    with_peak = [{**turns, rounds.PEAK: turn(0.01)} for turns in all_rounds]
    entries = [rounds.Entry(label, "python", {}, {}, images) for label, images in
               (("ours", 16), ("theirs", 16), (rounds.PEAK, 1))]
    return report.document("train", entries, rounds.Plan(3, 1.0, 1.0, 0.1), outcome(with_peak),
                           settings={"batch": 16}, **options)


def test_document_has_everything_and_survives_json():
    made = documented(ROUNDS, flops=1e9)
    assert json.loads(json.dumps(made)) == made
    assert set(made) == {"format", "kind", "settings", "machine", "commit", "time", "plan",
                         "peak_flops", "rounds", "rows", "turns"}
    assert made["rounds"] == {"all": 3, "undisturbed": 3, "used": 3, "valid": True}
    assert made["peak_flops"] == pytest.approx(1e11)            # 1 GFLOP in 10 ms
    ours, theirs = made["rows"]                                 # the peak is no competitor
    assert ours["images_per_second"] == pytest.approx(16 / 1.2)
    assert ours["share_of_peak"] == pytest.approx(16 / 1.2 * 1e9 / 1e11)
    assert (theirs["competitor"], theirs["ratio"]) == ("theirs", 0.5)
    assert set(theirs) == {"competitor", "seconds", "spread", "images_per_second", "ratio",
                           "ratio_low", "ratio_high", "cpu_seconds", "cpu_ratio", "share_of_peak",
                           "first_seconds", "peak_memory", "device_memory", "versions"}
    assert {"cpu", "cpus", "vectors", "system", "load"} == set(made["machine"])


def test_report_says_that_too_few_rounds_are_no_measurement():
    busy = {"ours": turn(1.0, others=1.0), "theirs": turn(1.0)}
    made = documented([*ROUNDS[:2], busy])
    assert made["rounds"] == {"all": 3, "undisturbed": 2, "used": 3, "valid": False}
    assert "NOT A MEASUREMENT: only 2 of 3 rounds" in report.text(made)
    assert "1 of 4 were dropped" in report.text(documented([*ROUNDS, busy]))


def test_text_has_a_row_for_each_competitor():
    lines = report.text(documented(ROUNDS)).split("\n")
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ") and "ms |" not in line
            ] == ["| ours", "| theirs"]
    assert "0.500 (0.40 to 0.50)" in "\n".join(lines)


def test_plot_is_written(tmp_path):
    report.draw(documented(ROUNDS), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_unknown_competitor_names_the_nearest():
    with pytest.raises(UserError, match="infer knows no competitor 'opnvino'; did you mean 'open"):
        chosen("infer", ["ours", "opnvino"], "fp32", PYTHONS)
    with pytest.raises(UserError, match="data knows no competitor 'gluoncv'"):
        chosen("data", ["ours", "gluoncv"], "fp32", PYTHONS)


def test_absent_library_is_named_with_the_command_that_brings_it():
    found, left_out = chosen("train", ["ours", "timm"], "fp32", PYTHONS)
    assert list(found) == ["ours"]
    assert left_out[0].startswith("timm is left out: ")
    assert "cannot import torch, timm; install with `make benchmark-peers`" in left_out[0]
    with pytest.raises(UserError, match="timm cannot run: .* install with"):
        chosen("train", ["timm"], "fp32", PYTHONS)


def test_only_equal_precisions_are_compared():
    with pytest.raises(UserError, match="gluoncv offers fp32, not int8, and only equal"):
        chosen("infer", ["deployed", "gluoncv"], "int8", PYTHONS)


@pytest.mark.parametrize("words, message", [
    (["train", "--paper", "table4"], "--paper table4 belongs to infer, not to train"),
    (["infer", "--with-recipe"], "--with-recipe belongs to train, not to infer"),
    (["infer", "--batch", "0"], "--batch must be positive, got 0"),
    (["train", "--workers", "a"], "--workers must be whole numbers such as 1,2, got 'a'"),
    (["train", "--workers", "99"], "asks for 99 processes on"),
    (["train", "--threads", "99"], "1 worker.s. with 99 thread.s. each need more than the"),
    (["train", "--workers", "1", "--vs", "timm"], "--workers and --paper compare ours with ours"),
    (["train", "--horovod", "64:5"], "must be pairs of MB and ms .* '64:5' with 1 worker"),
    (["data", "--data", "no/such"], "--data must be a folder .* got 'no/such'"),
    (["infer", "--threads", "-2"], "--threads must be positive, got -2"),
    (["infer", "--rounds", "2"], "--rounds must be at least 3, .* got 2"),
    (["infer", "--deployed", "x", "--paper", "table4"], "--paper times networks of the zoo"),
    (["infer", "--deployed", "x", "--model", "resnest14"], "--model resnest14 would change"),
    (["infer", "--model", "resnest14", "--paper", "table4"], "--model is said by the table"),
    (["infer", "--size", "32", "--paper", "table4"], "--size is said by the table of --paper"),
    (["data", "--data", ".", "--model", "resnest14"], "--model resnest14 would change"),
    (["data", "--data", ".", "--device", "gpu"], "--device gpu belongs to infer and train, not to"),
    (["infer", "--engine", "mxnet"], "--engine is what runs the file of --deployed"),
    (["infer", "--json", "no/such/x.json"], "--json no/such/x.json cannot be written"),
    (["infer", "--plot", "no/such/x.png"], "cannot write 'no/such/x.png'"),
    (["train", "--workers", "1,1", "--threads", "1"], "several rows .* called '1 worker.s.'"),
    (["train", "--paper", "cifar1", "--workers", "1,2", "--threads", "1"],
     "several rows would be called 'resnet14_0s1x64d'"),
    (["train", "--workers", "2", "--threads", "1", "--horovod", "64:5,64:5"],
     "several rows would be called '64 MB, 5 ms'"),
])
def test_impossible_commands_are_refused_in_one_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        TOOL.main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_the_first_competitor_cannot_be_left_out():
    with pytest.raises(UserError, match="ours offers fp32, not int8.*give --deployed FILE of that"):
        chosen("infer", ["ours", "openvino"], "int8", PYTHONS)
    with pytest.raises(UserError, match="ours offers fp32, bf16, not int8.* --precision fp32 or b"):
        chosen("train", ["ours"], "int8", PYTHONS)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_competitor_of_cpus_is_refused_on_a_gpu(name):
    with pytest.raises(UserError, match=f"{name} runs on cpu here, not on gpu; leave it out"):
        chosen("infer", ["ours", name], "fp32", PYTHONS, device="gpu")


def test_settings_name_the_network_where_one_runs():
    for words, expected in ((["infer"], {"model": "resnest50", "size": 224}),
                            (["infer", "--paper", "table4"], {}),
                            (["infer", "--deployed", "x"], {"size": 224}),
                            (["infer", "--deployed", "x", "--vs", "ours", "--model", "resnest14"],
                             {"model": "resnest14", "size": 224})):
        flags = TOOL.parse(words)
        TOOL.check(flags)
        found = TOOL.settings_of(flags, 2)
        assert {name: found[name] for name in ("model", "size") if name in found} == expected


def test_bfloat16_is_refused_where_the_cpu_has_none(monkeypatch):
    flags = TOOL.parse(["train", "--precision", "bf16"])
    monkeypatch.setattr(report, "machine", lambda: {"vectors": ["avx2", "avx512f"]})
    with pytest.raises(UserError, match="bf16 needs a CPU with AVX-512 BF16 or AMX"):
        TOOL.check(flags)
    monkeypatch.setattr(report, "machine", lambda: {"vectors": ["avx512_bf16"]})
    TOOL.check(flags)


def test_paper_tables_name_networks_of_the_zoo():
    from gluon_resnest.zoo import VARIANTS
    assert all(name in VARIANTS for _, rows in TOOL.PAPER.values() for name, _ in rows)
    flags = TOOL.parse(["infer", "--paper", "table4", "--threads", "1"])
    entries = TOOL.entries_of(flags, print)
    assert [(entry.label, entry.job["size"], entry.images) for entry in entries[:3]] == [
        ("resnest101", 256, 16), ("resnest200", 320, 16), ("resnest269", 416, 16)]
    entries = TOOL.entries_of(TOOL.parse(["infer", "--paper", "speeds", "--threads", "1"]), print)
    labels = [entry.label for entry in entries]
    assert {"resnest50 at 224", "resnest50 at 256", "resnest50 at 320", "resnest200"} < set(labels)
    assert len(set(labels)) == len(labels)


def test_workers_have_cpus_of_their_own(monkeypatch):
    monkeypatch.setattr(TOOL.os, "sched_getaffinity", lambda pid: {0, 1, 4, 5})
    entries = TOOL.entries_of(TOOL.parse(["train", "--workers", "1,2"]), print)
    assert [entry.job["cores"] for entry in entries[:2]] == [[[0, 1]], [[0, 1], [4, 5]]]
    assert [entry.images for entry in entries[:2]] == [16, 32]
    assert entries[2].label == rounds.PEAK and entries[2].job["threads"] == 4


def test_several_workers_need_horovod(monkeypatch):
    monkeypatch.setattr(TOOL.sys, "executable", "no/such/python")
    with pytest.raises(UserError, match="--workers 2 needs no/such/horovodrun, which is not"):
        TOOL.worker_counts("2", 4)


def test_settings_of_horovod_are_rows():
    flags = TOOL.parse(["train", "--workers", "2", "--threads", "1", "--horovod", "64:5,16:1"])
    first, second, peak = TOOL.entries_of(flags, print)
    assert (first.label, second.label, peak.label) == ("64 MB, 5 ms", "16 MB, 1 ms", rounds.PEAK)
    assert second.environ == {"HOROVOD_FUSION_THRESHOLD": "16777216", "HOROVOD_CYCLE_TIME": "1"}


def test_a_competitor_that_fails_says_why(tmp_path):
    job = {"library": "absent", "cores": [], "workers": 1, "threads": 1}
    with pytest.raises(UserError, match="theirs failed: ModuleNotFoundError.*leave it out of --vs"):
        Process("theirs", sys.executable, job, environ={}, log=tmp_path / "log", patience=60)


def test_between_turns_everything_stands_still(tmp_path, monkeypatch):
    """A launcher like horovodrun gives its worker a session of its own."""
    launcher = "import subprocess, sys; subprocess.call(sys.argv[1:], start_new_session=True)"
    monkeypatch.setattr(process, "_launcher", lambda *_: [sys.executable, "-c", launcher])
    probe = TOOL.entries_of(TOOL.parse(["infer", "--threads", "1"]), print)[-1]
    with Process("peak", sys.executable, probe.job, environ={}, log=tmp_path / "log",
                 patience=60) as started:
        for _ in range(2):
            below = descendants(started._process.pid)
            end = time.monotonic() + 20         # a busy machine stops them a little later
            while states_of(below) != {"T"} and time.monotonic() < end:
                time.sleep(0.01)
            assert below and states_of(below) == {"T"}
            assert started.turn(0.01).wall > 0
        for each in below:
            os.kill(each, signal.SIGKILL)
        while states_of(below) != {"Z"}:        # the launcher stands still and does not bury them
            time.sleep(0.01)
        with pytest.raises(UserError, match="peak ended; the last it printed"):
            started.turn(0.01)
    assert not any(Path(f"/proc/{each}").exists() for each in below)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_leaves_nothing_behind(number):
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "infer", "--model", "resnest_tiny",
               "--size", "64", "--batch", "2", "--threads", "1", "--seconds", "0.01", "--limit",
               "0", "--rounds", "9999"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=str(ROOT)) as running:
        while "round 1" not in running.stderr.readline():
            assert running.poll() is None
        below = descendants(running.pid)
        running.send_signal(number)
        said = running.stderr.read()
    assert running.returncode == 128 + number and "Traceback" not in said
    assert below and not any(Path(f"/proc/{each}").exists() for each in below)


def states_of(processes):
    return {Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[0]
            for each in processes}


def test_openvino_calibrates_on_the_batch_its_network_was_written_for(monkeypatch):
    """The file has a fixed batch; neither library is installed here, so both are stood in for."""
    monkeypatch.syspath_prepend(str(ROOT / "gluon_resnest/benchmark/sides"))
    given = []
    monkeypatch.setitem(sys.modules, "nncf", mock.MagicMock(
        Dataset=given.extend, __version__="3.4.0"))
    monkeypatch.setitem(sys.modules, "openvino", mock.MagicMock(__version__="2026.4"))
    monkeypatch.delitem(sys.modules, "side_onnx", raising=False)
    images = np.zeros((16, 3, 8, 6), np.float32)
    importlib.import_module("side_onnx")._openvino({"precision": "int8", "threads": 1}, "x", images)
    assert given and {batch.shape for batch in given} == {images.shape}


def side(name, monkeypatch):
    """Imports a file of sides/ as its worker does."""
    monkeypatch.syspath_prepend(str(ROOT / "gluon_resnest/benchmark/sides"))
    monkeypatch.delitem(sys.modules, f"side_{name}", raising=False)
    return importlib.import_module(f"side_{name}")


@pytest.mark.parametrize("competitor, ours", [("ours", True), ("gluoncv", False),
                                              ("authors", False)])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_only_our_networks_run_with_the_variables_of_our_recipes(competitor, ours, device,
                                                                 monkeypatch):
    from gluon_resnest import cli
    from gluon_resnest.engine.comm import Comm
    made, seen = side("mxnet", monkeypatch), {}

    def look(comm, device):
        seen.update(os.environ)
        raise UserError("seen")

    monkeypatch.setattr(Comm, "context", look)
    with mock.patch.dict(os.environ), pytest.raises(UserError, match="seen"):
        for name in cli.ENGINE_ENVIRONMENT:
            os.environ.pop(name, None)
        made.make({"competitor": competitor, "device": device, "kind": "infer"})
    assert {name in seen for name in cli.ENGINE_ENVIRONMENT} == {ours}


def test_fewer_pictures_than_a_batch_are_refused(monkeypatch):
    """With none of a whole batch, the endless reading would never yield."""
    libraries = {name: mock.MagicMock(__version__="1")
                 for name in ("torch", "torchvision", "timm", "timm.data")}
    libraries["torchvision"].datasets.ImageFolder.return_value = range(5)
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name, library)
    job = {"file": "x", "batch": 6, "size": 32, "auto_augment": False, "threads": 1,
           "competitor": "timm"}
    with pytest.raises(ValueError, match="x has 5 pictures, fewer than a batch of 6"):
        side("torch_loader", monkeypatch).make(job)
    side("torch_loader", monkeypatch).make({**job, "batch": 5})


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_fails_ends_with_an_error(rank, tmp_path):
    """That is how horovodrun learns of it."""
    (tmp_path / "job").write_text(json.dumps({"library": "absent", "cores": [], "began": 0.0,
                                              "socket": str(tmp_path / "socket")}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(1)
        done = subprocess.run([sys.executable, worker.__file__, str(tmp_path / "job")],
                              stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "HOROVOD_RANK": str(rank)})
    assert done.returncode == 1 and "No module named 'side_absent'" in done.stderr


def test_real_run(tmp_path):
    """The command as a user calls it; the machine may be busy, so all rounds count."""
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "infer", "--model", "resnest14",
               "--size", "32", "--batch", "2", "--seconds", "0.05", "--rounds",
               "3", "--minutes", "2", "--limit", "99", "--vs", "timm", "--peers-python",
               "no/such/python", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "timm is left out" in done.stderr and "NOT A MEASUREMENT" not in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    row, = found["rows"]
    assert row["competitor"] == "ours" and row["versions"]["mxnet"] == "1.9.1"
    assert found["settings"]["threads"] == len(os.sched_getaffinity(0))
    assert 0 < row["cpu_seconds"] < 60
    assert 0 < row["share_of_peak"] < 50        # the peak was probed in other moments
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    assert row["peak_memory"] > 50 * 2 ** 20
    assert len(found["turns"]) == 3 and set(found["turns"][0]) == {"ours", rounds.PEAK}

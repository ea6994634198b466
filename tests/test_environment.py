"""What `import gluon_resnest` refuses, tried on made-up environments; where the recipes are."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gluon_resnest
from gluon_resnest import _environment

ROOT = Path(__file__).resolve().parents[1]


def is_one_sentence(text):
    return "\n" not in text and not text.endswith(".") and ". " not in text


@pytest.mark.parametrize("version", [(3, 8, 0), (3, 11, 7)])
def test_supported_python_is_accepted(version):
    assert _environment.python_problem(version) is None


@pytest.mark.parametrize("version", [(2, 7), (3, 7, 17), (3, 12, 0), (4, 0)])
def test_other_python_is_refused(version):
    problem = _environment.python_problem(version)
    assert f"this is Python {version[0]}.{version[1]}" in problem and "3.8 to 3.11" in problem
    assert is_one_sentence(problem)


@pytest.mark.parametrize("version, accepted", [
    ("1.17.0", True), ("1.23.5", True), ("1.24.0", False), ("1.26.4", False), ("2.0.0rc1", False)])
def test_numpy_must_be_below_1_24(version, accepted):
    problem = _environment.numpy_problem(version)
    assert (problem is None) is accepted
    if not accepted:
        assert f"numpy {version} is installed" in problem and "numpy==1.23.5" in problem
        assert is_one_sentence(problem)


def test_exactly_one_mxnet_is_accepted():
    assert _environment.mxnet_problem(True, {"mxnet": "1.9.1"}) is None
    assert _environment.mxnet_problem(True, {"mxnet-cu112": "1.9.1"}) is None
    assert _environment.mxnet_problem(True, {}) is None      # built from source: no metadata
    both = _environment.mxnet_problem(True, {"mxnet": "1.9.1", "mxnet-cu112": "1.9.1"})
    assert "both installed" in both and is_one_sentence(both)


@pytest.mark.parametrize("wheel", ["mxnet", "mxnet-cu112"])
@pytest.mark.parametrize("version, accepted", [
    ("1.9.1", True), ("1.9.1+own", True), ("1.6.0", False), ("1.9.0", False), ("1.9.10", False),
    ("2.0.0b1", False)])
def test_mxnet_must_be_1_9_1(wheel, version, accepted):
    problem = _environment.mxnet_problem(True, {wheel: version})
    assert (problem is None) is accepted
    if not accepted:
        assert f"{wheel} {version} is installed" in problem and f"{wheel}==1.9.1`" in problem
        assert is_one_sentence(problem)


def make_cuda(root, without=()):
    for soname, folder, wheel in _environment.CUDA_LIBRARIES:
        if wheel not in without:
            (root / folder / "lib").mkdir(parents=True)
            (root / folder / "lib" / soname).write_bytes(b"not a library")


def test_cuda_libraries_are_found_in_any_folder_of_the_namespace_package(tmp_path):
    make_cuda(tmp_path / "second")
    paths = _environment.cuda_paths([str(tmp_path / "first"), str(tmp_path / "second")])
    assert _environment.cuda_problem(paths) is None
    assert [Path(path).name for path in paths] == [
        soname for soname, _, _ in _environment.CUDA_LIBRARIES]


def test_missing_cuda_wheels_are_named(tmp_path):
    absent = ["nvidia-nccl-cu11", "nvidia-cudnn-cu11"]
    make_cuda(tmp_path, without=absent)
    problem = _environment.cuda_problem(_environment.cuda_paths([str(tmp_path)]))
    assert f"but {', '.join(absent)} cannot be found" in problem and "[cu112]" in problem
    assert is_one_sentence(problem)


def test_cuda_is_loaded_when_mxnet_is_imported_and_not_before():
    loaded = []
    finder = _environment.CudaBeforeMxnet(["a/libcudart.so.11.0", "b/libcudnn.so.8"], loaded.append)
    assert finder.find_spec("numpy") is None and loaded == []
    assert finder.find_spec("mxnet") is None
    assert loaded == ["libcuda.so.1", "a/libcudart.so.11.0", "b/libcudnn.so.8"]


@pytest.mark.parametrize("broken, words", [
    ("libcuda.so.1", r"NVIDIA's driver \(libcuda.so.1\).*\[cpu\]"),
    ("nccl/libnccl.so.2", r"libnccl.so.2, which cannot be loaded \(no such file\).*\[cu112\]")])
def test_a_library_that_cannot_be_loaded_is_named(broken, words):
    def load(path):
        if path == broken:
            raise OSError("no such file")

    with pytest.raises(ImportError, match=words) as caught:
        _environment.load_cuda(["nccl/libnccl.so.2"], load)
    assert is_one_sentence(str(caught.value).replace("libcuda.so.1", ""))


def import_in(site, *statements):
    """Returns the last line of stderr of an interpreter that sees only `site` and the package."""
    package = site / "gluon_resnest"
    if not package.exists():
        package.symlink_to(Path(gluon_resnest.__file__).resolve().parent)
    program = "\n".join([f"import sys; sys.path.insert(0, {str(site)!r})", *statements])
    done = subprocess.run([sys.executable, "-S", "-c", program], stderr=subprocess.PIPE,
                          universal_newlines=True, cwd=str(site))
    assert done.returncode in (0, 1)
    return (done.stderr.splitlines() or [""])[-1]


def install(site, distribution, version, module=None):
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\n"
                                   f"Version: {version}\n")
    if module:
        (site / module).mkdir()
        (site / module / "__init__.py").write_text("")


def test_waiting_is_set_unless_the_user_has_said_how():
    environ = {"PATH": "/bin"}
    _environment.set_waiting(environ)
    assert environ == {"PATH": "/bin", **_environment.WAITING}
    assert _environment.without_waiting(environ) == {"PATH": "/bin"}
    for said in ({"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "5"},
                 {"OMP_WAIT_POLICY": "active"}):
        environ = dict(said)
        _environment.set_waiting(environ)
        assert environ == said == _environment.without_waiting(environ)


def test_waiting_is_set_before_mxnet_is_imported():
    program = ("import gluon_resnest, os, sys; assert 'mxnet' not in sys.modules; "
               "print(os.environ['OMP_WAIT_POLICY'])")
    environ = {name: value for name, value in os.environ.items()
               if name not in _environment.WAITING}
    done = subprocess.run([sys.executable, "-c", program], cwd=str(ROOT), env=environ, check=True,
                          stdout=subprocess.PIPE, universal_newlines=True)
    assert done.stdout.strip() == "active"


def test_import_names_each_missing_piece_in_turn(tmp_path):
    """Installs one piece after the other, as a user does who follows the messages."""
    statement = "import gluon_resnest"
    assert import_in(tmp_path, statement).startswith("ImportError: gluon_resnest needs numpy, ")
    install(tmp_path, "numpy", "1.26.4")
    assert "numpy 1.26.4 is installed" in import_in(tmp_path, statement)
    (tmp_path / "numpy-1.26.4.dist-info/METADATA").unlink()
    (tmp_path / "numpy-1.26.4.dist-info").rmdir()
    install(tmp_path, "numpy", "1.23.5")
    problem = import_in(tmp_path, statement)
    assert "needs MXNet" in problem and "[cpu]" in problem and "[cu112]" in problem
    install(tmp_path, "mxnet", "1.6.0", module="mxnet")
    assert "mxnet 1.6.0 is installed" in import_in(tmp_path, statement)
    (tmp_path / "mxnet-1.6.0.dist-info/METADATA").unlink()
    (tmp_path / "mxnet-1.6.0.dist-info").rmdir()
    install(tmp_path, "mxnet", "1.9.1")
    assert import_in(tmp_path, statement) == ""


def test_import_with_the_gpu_wheel_needs_cuda_and_loads_it_with_mxnet(tmp_path):
    install(tmp_path, "numpy", "1.23.5")
    install(tmp_path, "mxnet-cu112", "1.9.1", module="mxnet")
    assert "nvidia-cuda-runtime-cu11, " in import_in(tmp_path, "import gluon_resnest")
    make_cuda(tmp_path / "nvidia")
    assert import_in(tmp_path, "import gluon_resnest") == ""
    problem = import_in(tmp_path, "import gluon_resnest", "import mxnet")
    assert problem.startswith("ImportError: mxnet-cu112 needs ")   # no driver, or files of junk


def test_every_public_name_is_there():
    for name in gluon_resnest.__all__:
        assert name in dir(gluon_resnest) and callable(getattr(gluon_resnest, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'get_modell'"):
        gluon_resnest.get_modell


def test_every_recipe_is_installed_in_the_package():
    for file in sorted((ROOT / "recipes").glob("*.py")):
        spec = importlib.util.find_spec(f"gluon_resnest.recipes.{file.stem}")
        assert spec is not None, f"{file.name} is not installed"
        assert Path(spec.origin).read_text() == file.read_text()


def test_the_installed_recipe_is_the_file(tmp_path):
    """`python -m gluon_resnest.recipes.imagenet` and `python recipes/imagenet.py` answer alike."""
    def help_of(*command):
        done = subprocess.run([sys.executable, *command, "--help"], stdout=subprocess.PIPE,
                              check=True, cwd=str(tmp_path), universal_newlines=True)
        return done.stdout.split("\n\n", 1)[1]         # the usage names the program

    assert help_of("-m", "gluon_resnest.recipes.imagenet") == help_of(
        str(ROOT / "recipes/imagenet.py"))

"""The import table of docs/architecture.md, and other rules that hold for every tracked file."""
import ast
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Part -> the parts it may import; itself and SHARED are always allowed.
INTERNAL = {
    "__init__": {"_environment"},
    "_environment": set(),
    "errors": set(),
    "files": set(),
    "processor": set(),
    "provenance": set(),
    "params_file": set(),
    "run_directory": {"__init__", "engine.occupied"},
    "config": set(),
    "losses": set(),
    "metrics": set(),
    "models": set(),
    "data": set(),
    "engine": {"params_file"},
    "interop": {"models", "zoo", "data", "params_file"},
    "zoo": {"models", "interop.weights", "interop.store"},
    "tasks": {"models", "data", "losses", "metrics", "engine", "zoo", "config", "params_file",
              "run_directory", "interop.analysis", "interop.weights", "interop.deployed",
              "interop.export", "interop.evaluation_drawing"},
    "cli": {"config", "engine", "execution"},
    "execution": {"config", "engine", "run_directory"},
    "benchmark": {"_environment", "cli", "data", "engine", "interop", "recipes", "tasks", "zoo"},
    "reproduction": {"cli", "config", "engine", "models", "recipes", "run_directory", "zoo"},
    "recipes": {"cli", "config", "tasks"},
    "tools": {"cli", "config", "run_directory", "tasks", "interop", "data", "zoo", "recipes",
              "engine.plan", "engine.comm", "__init__", "metrics", "benchmark", "reproduction"},
}

SHARED = ("errors", "files", "processor", "provenance")

# Part -> the libraries it may import at module level.
LIBRARIES = {
    "models": {"mxnet", "numpy"},
    "losses": {"mxnet", "numpy"},
    "metrics": {"numpy"},
    "data": {"numpy", "PIL", "cv2", "tqdm"},
    "engine": {"mxnet", "numpy", "tqdm"},
    "params_file": {"mxnet"},
    "interop": {"mxnet", "numpy", "PIL", "tqdm", "filelock"},
    "zoo": {"mxnet"},
    "tasks": {"mxnet", "numpy", "tqdm"},
    "tools": {"mxnet", "numpy", "PIL", "cv2", "tqdm"},
    # The files in sides/ are scripts of processes that may not have this package.
    "benchmark": {"numpy", "worker", "side_torch"},
}

# Libraries that may be absent: imported only inside the function that needs them.
OPTIONAL = {"gluoncv", "pycocotools", "onnx", "onnxruntime", "torch", "tensorboard", "matplotlib",
            "safetensors", "sklearn", "wandb", "timm", "torchvision", "nncf", "openvino", "resnest",
            "lvis"}

Import = namedtuple("Import", "file line module at_module_level")


def part_of(module):
    """Returns the part of the project that a dotted module belongs to, or None if foreign."""
    names = module.split(".")
    if names[0] != "gluon_resnest":
        return None
    return names[1] if len(names) > 1 else "__init__"


def module_of(file):
    """Returns the dotted name of a source file; recipes and tools are named as if installed."""
    names = list(file.relative_to(ROOT).with_suffix("").parts)
    if names[0] in ("recipes", "tools"):
        names.insert(0, "gluon_resnest")
    return ".".join(names)


def imports_of(file):
    """Yields every import of a source file, relative ones resolved."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    inside = {id(node) for function in ast.walk(tree)
              if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
              for node in ast.walk(function)}
    package = module_of(file).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            modules = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            yield Import(file, node.lineno, module, id(node) not in inside)


def complaint(found, allowed_parts=INTERNAL, allowed_libraries=LIBRARIES):
    """Returns why an import breaks the table, or None."""
    module = module_of(found.file)
    part, target = part_of(module), part_of(found.module)
    if target is not None:
        # Not in the table: a name of __init__ itself.
        if target in (part, *SHARED) or target not in allowed_parts:
            return None
        allowed = allowed_parts[part]
        if target in allowed or any(f"{found.module}.".startswith(f"gluon_resnest.{name}.")
                                    for name in allowed):
            return None
        return f"{part} may not import {target}"
    library = found.module.split(".")[0]
    if library in sys.stdlib_module_names or library == "__future__":
        return None
    if library == "horovod":
        fits = module == "gluon_resnest.engine.comm" and not found.at_module_level
        return None if fits else "horovod is imported inside the functions of engine/comm.py only"
    if library in allowed_libraries.get(part, ()):
        return None
    if library == "mxnet" and part == "data":
        return "data never imports mxnet"
    if library in OPTIONAL | {"mxnet", "numpy"} and not found.at_module_level:
        return None
    if library in OPTIONAL:
        return f"{library} is optional: import it inside the function that needs it"
    return f"{part} may not import {library}"


def source_files():
    files = [file for folder in ("gluon_resnest", "recipes", "tools")
             for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    return files


needs_module_names = pytest.mark.skipif(
    sys.version_info < (3, 10), reason="sys.stdlib_module_names came with Python 3.10")


@needs_module_names
def test_imports_follow_the_table():
    wrong = [f"{found.file.relative_to(ROOT)}:{found.line}: imports {found.module}: {why}"
             for file in source_files() for found in imports_of(file)
             for why in [complaint(found)] if why]
    assert not wrong, "\n" + "\n".join(wrong)


@needs_module_names
@pytest.mark.parametrize("file, module, at_module_level, why", [
    ("models/a.py", "gluon_resnest.data.sampling", True, "models may not import data"),
    ("models/a.py", "gluon_resnest.data.sampling", False, "models may not import data"),
    ("models/a.py", "gluon_resnest.models.norm", True, None),
    ("models/a.py", "gluon_resnest.errors.UserError", True, None),
    ("models/a.py", "cv2", True, "models may not import cv2"),
    ("data/a.py", "mxnet.nd", False, "data never imports mxnet"),
    ("data/a.py", "pycocotools.coco", False, None),
    ("data/a.py", "pycocotools.coco", True, "is optional"),
    ("engine/loop.py", "horovod.mxnet", False, "engine/comm.py only"),
    ("engine/comm.py", "horovod.mxnet", True, "engine/comm.py only"),
    ("engine/comm.py", "horovod.mxnet", False, None),
    ("zoo/table.py", "gluon_resnest.interop.weights.load_parameters", True, None),
    ("zoo/table.py", "gluon_resnest.interop.export", True, "zoo may not import interop"),
    ("tasks/a.py", "gluon_resnest.interop.export", True, None),
    ("tasks/a.py", "gluon_resnest.interop.export.check", True, None),
    ("tasks/a.py", "gluon_resnest.interop.export_drawing", True, "tasks may not import interop"),
    ("config/fields.py", "mxnet", True, "config may not import mxnet"),
    ("config/fields.py", "json", True, None),
])
def test_the_table_is_enforced(file, module, at_module_level, why):
    found = complaint(Import(ROOT / "gluon_resnest" / file, 1, module, at_module_level))
    assert (found is None) if why is None else why in found


def test_relative_imports_are_resolved(monkeypatch, tmp_path):
    file = tmp_path / "gluon_resnest/models/a.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ..data import sampling\nfrom . import norm\ndef f():\n    import cv2\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [(found.module, found.at_module_level) for found in imports_of(file)] == [
        ("gluon_resnest.data.sampling", True), ("gluon_resnest.models.norm", True),
        ("cv2", False)]


def test_importing_the_package_and_its_data_part_does_not_import_mxnet():
    modules = [module_of(file) for file in source_files()
               if "data" in file.parts and file.stem != "__init__"]
    program = (f"import sys, importlib, gluon_resnest\n"
               f"[importlib.import_module(name) for name in {modules}]\n"
               f"assert 'mxnet' not in sys.modules, 'mxnet was imported'")
    done = subprocess.run([sys.executable, "-c", program], cwd=str(ROOT), stderr=subprocess.PIPE,
                          universal_newlines=True)
    assert done.returncode == 0, done.stderr


@needs_module_names
def test_modules_do_not_import_each_other_in_circles():
    from graphlib import CycleError, TopologicalSorter
    known = {module_of(file) for file in source_files()}
    graph = {module_of(file): {name for found in imports_of(file) if found.at_module_level
                               for name in (found.module, found.module.rpartition(".")[0])
                               if name in known}
             for file in source_files()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


# The lookbehind lets URLs and relative paths such as runs/tmp/x pass.
MACHINE_PATH = re.compile(r"(?<![\w.$})~*-])/(?:work|root|home|Users|tmp|mnt|media)/\w")


@pytest.mark.parametrize("text, found", [
    ("cd /" + "work/main", True), ("'/" + "tmp/x'", True), ("https://host/" + "home/x", False),
    ("runs/" + "tmp/x", False), ("/usr/bin/python", False), ("$HOME/" + "work/x", False)])
def test_machine_paths_are_recognised(text, found):
    assert bool(MACHINE_PATH.search(text)) is found


def test_no_tracked_file_holds_a_path_of_one_machine():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=str(ROOT), stdout=subprocess.PIPE,
                           check=True).stdout.decode().split("\0")
    wrong = [f"{name}:{number}: {line.strip()}"
             for name in names if name and (ROOT / name).is_file()
             for number, line in enumerate(
                 (ROOT / name).read_bytes().decode("utf-8", "ignore").splitlines(), 1)
             if MACHINE_PATH.search(line)]
    assert not wrong, "\n" + "\n".join(wrong)

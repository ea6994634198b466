"""Fixtures shared by all tests: repeatable seeds, both execution modes, real data where present."""
import importlib.util
import os
import random
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]
SEED_VARIABLE = "GLUON_RESNEST_TEST_SEED"

# No deadline: the first call of an operator in MXNet may take a second, later ones microseconds.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


def seed_of(nodeid):
    """Returns the seed of a test, made from its own name only."""
    return (zlib.crc32(nodeid.encode()) + int(os.environ.get(SEED_VARIABLE, "0"))) % 2 ** 31


@pytest.fixture(autouse=True)
def seeded(request):
    """Seeds python, numpy and mxnet before every test."""
    import mxnet as mx
    seed = seed_of(request.node.nodeid)
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(seed)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """Prints the seed below a failed test."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("seed", f"{seed_of(item.nodeid)}; set {SEED_VARIABLE}=1, 2, ... "
                                        "for other seeds (0 gives this one)"))


@pytest.fixture(params=[False, True], ids=["imperative", "hybridized"])
def hybridize(request):
    """False, then True: whether a layer test calls `net.hybridize()`."""
    return request.param


@pytest.fixture(scope="session")
def data_root():
    """Returns the folder of small real data sets; skips the test where it does not exist."""
    root = Path(os.environ.get("GLUON_RESNEST_DATA", str(PROJECT_ROOT / "../shared/data")))
    if not root.is_dir():
        pytest.skip(f"no real data at {os.path.relpath(root)}: set GLUON_RESNEST_DATA to a folder "
                    "with imagenet_sample/, cifar10/ ... (docs/install.md)")
    return root.resolve()


def pytest_make_parametrize_id(val, argname):
    """Names bytes and long texts by their place: an archive's bytes hold the time it was made.

    Workers of pytest-xdist refuse to start when they have collected other names.
    """
    return argname if isinstance(val, (bytes, str)) and len(val) > 60 else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests that use `data_root` as realdata; skips what this machine cannot run."""
    horovod = importlib.util.find_spec("horovod") is not None
    for item in items:
        if "data_root" in item.fixturenames:
            item.add_marker("realdata")
        if item.get_closest_marker("horovod") and not horovod:
            item.add_marker(pytest.mark.skip(reason="needs horovod: make demo builds it"))
        if item.get_closest_marker("gpu") and not _gpus():
            item.add_marker(pytest.mark.skip(reason="needs a GPU and mxnet-cu112"))


def _gpus():
    import mxnet as mx
    return mx.context.num_gpus()

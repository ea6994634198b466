"""What is said of the processor: by hand, and where nothing tells it."""
import platform

import pytest

from gluon_resnest import processor

TOLD = """processor\t: 0
model name\t: Some CPU: 2.1 GHz
flags\t\t: fpu avx2 avx512f avx512_bf16

processor\t: 1
power management:
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """The file that stands for /proc/cpuinfo; absent until it is written."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "Path", lambda _: file)
    processor._facts.cache_clear()
    yield file
    processor._facts.cache_clear()


def test_name_and_extensions(cpuinfo):
    cpuinfo.write_text(TOLD)
    assert processor.name() == "Some CPU: 2.1 GHz"
    assert processor.has("avx512f") and processor.has("avx512_bf16")
    assert not processor.has("avx512") and not processor.has("amx_bf16")


@pytest.mark.parametrize("told", [None, "", "processor : 0\nFeatures : fp asimd\n"])
def test_another_system_or_architecture(cpuinfo, told):
    if told is not None:
        cpuinfo.write_text(told)
    assert processor.name() == platform.machine()
    assert not processor.has("avx512f")

"""Installs gluon_resnest; the recipes come along as the package `gluon_resnest.recipes`."""
import re
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "gluon_resnest/__init__.py").read_text(),
                    re.MULTILINE).group(1)

EXTRAS = {
    # One of these two. Both install the module `mxnet`, hence neither is in `install_requires`.
    "cpu": ["mxnet==1.9.1"],
    "cu112": ["mxnet-cu112==1.9.1",
              "nvidia-cuda-runtime-cu11==11.8.89", "nvidia-cublas-cu11==11.11.3.6",
              "nvidia-cufft-cu11==10.9.0.58", "nvidia-curand-cu11==10.3.0.86",
              "nvidia-cusolver-cu11==11.4.1.48", "nvidia-cuda-nvrtc-cu11==11.8.89",
              "nvidia-nvtx-cu11==11.8.86", "nvidia-nccl-cu11==2.21.5",
              "nvidia-cudnn-cu11==8.9.6.50"],
    "train": ["horovod==0.28.1"],    # needs cmake 3.18 to 3.31; see docs/install.md
    "gluoncv": ["gluoncv==0.10.5.post0"],
    "coco": ["pycocotools>=2.0.7"],
    "lvis": ["lvis==0.5.3", "pycocotools>=2.0.7"],
    # libturbojpeg 3 for data/jpeg.py, where the system has none; wheels for Linux on x86-64 only.
    "fast": ["turbojpeg==0.0.2; sys_platform == 'linux' and platform_machine == 'x86_64'"],
    "onnx": ["onnx==1.16.2", "onnxruntime>=1.19,<1.21"],
    "convert": [],                   # the readers of foreign weights are our own
    "wandb": ["wandb"],
    "dev": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "flake8", "isort",
            "scikit-learn", "tensorboard"],
}


class BuildWithCommit(build_py):
    """Writes down the commit: what is installed has no checkout to ask."""

    def run(self):
        """Builds."""
        super().run()
        if not getattr(self, "editable_mode", False):
            provenance = run_path(str(ROOT / "gluon_resnest/provenance.py"))
            target = Path(self.build_lib) / "gluon_resnest" / provenance["COMMIT"]
            target.write_text(provenance["commit"]() + "\n")


setup(
    name="gluon-resnest",
    version=VERSION,
    description="ResNeSt (Split-Attention Networks) for MXNet Gluon: models, training, evaluation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["gluon_resnest", "gluon_resnest.*"]),
              "gluon_resnest.recipes"],
    package_dir={"gluon_resnest.recipes": "recipes"},
    package_data={"gluon_resnest": ["**/*.json", "**/*.csv", "**/*.txt"]},
    python_requires=">=3.8,<3.12",
    cmdclass={"build_py": BuildWithCommit},
    install_requires=["numpy>=1.17,<1.24", "Pillow>=9.5", "opencv-python-headless>=4.5",
                      "matplotlib>=3.5", "tqdm>=4.60", "filelock>=3.10"],
    extras_require=EXTRAS,
)

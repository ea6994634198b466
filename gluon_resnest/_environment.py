"""Checks, when the package is imported, what it cannot run without; prepares the import of mxnet.

Nothing here imports mxnet or numpy: versions are read from the installed metadata. The `*_problem`
functions are pure; each returns one sentence that says what to install, or None.
"""
import importlib.util
import os
import sys

PYTHON_FIRST, PYTHON_LAST = (3, 8), (3, 11)
MXNET = "1.9.1"
NUMPY_LIMIT = (1, 24)    # mxnet 1.9.1 uses np.bool, which numpy 1.24 removed
GPU_WHEEL = "mxnet-cu112"

# Library, its folder in the package `nvidia`, and the wheel that brings it: what libmxnet.so of
# mxnet-cu112 links to. Its RPATH is $ORIGIN, so the loader finds them only if already loaded.
CUDA_LIBRARIES = (
    ("libcudart.so.11.0", "cuda_runtime", "nvidia-cuda-runtime-cu11"),
    ("libcublas.so.11", "cublas", "nvidia-cublas-cu11"),
    ("libcufft.so.10", "cufft", "nvidia-cufft-cu11"),
    ("libcurand.so.10", "curand", "nvidia-curand-cu11"),
    ("libcusolver.so.11", "cusolver", "nvidia-cusolver-cu11"),
    ("libnvrtc.so.11.2", "cuda_nvrtc", "nvidia-cuda-nvrtc-cu11"),
    ("libnvToolsExt.so.1", "nvtx", "nvidia-nvtx-cu11"),
    ("libnccl.so.2", "nccl", "nvidia-nccl-cu11"),
    ("libcudnn.so.8", "cudnn", "nvidia-cudnn-cu11"),
)

# libgomp counts MXNet's threads to be more than the CPUs, for MXNet asks for parallel regions from
# several threads of its own. It then lets them look for work 100 times between two operators and
# sleep; waking them takes a third of the time of a small batch. `active` makes that 1000 times,
# some ten microseconds, and where threads are few forever, unless a count says otherwise: 300000
# is what libgomp has without any policy, some three milliseconds (decision 0139).
WAITING = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}


def python_problem(version):
    """Judges `version`, a tuple like `sys.version_info`."""
    if PYTHON_FIRST <= tuple(version[:2]) <= PYTHON_LAST:
        return None
    return (f"gluon_resnest needs Python 3.8 to 3.11 because mxnet 1.9.1 does, but this is "
            f"Python {version[0]}.{version[1]}; make an environment with python3.11")


def numpy_problem(version):
    """Judges `version`, a string like "1.23.5", or None if numpy is not installed."""
    if version is None:
        return ("gluon_resnest needs numpy, which is not installed; "
                "run `pip install numpy==1.23.5`")
    if tuple(int(part) for part in version.split(".")[:2]) < NUMPY_LIMIT:
        return None
    return (f"gluon_resnest needs numpy below 1.24 because mxnet 1.9.1 does, but numpy {version} "
            "is installed; run `pip install numpy==1.23.5`")


def mxnet_problem(importable, distributions):
    """Judges whether exactly one MXNet is there, of the right version.

    Args:
      importable: whether a module `mxnet` can be found.
      distributions: {name: version} of the installed ones among "mxnet" and "mxnet-cu112", which
        both bring the module `mxnet`; one that was built in place is none.
    """
    if not importable:
        return ("gluon_resnest needs MXNet, which is not installed; run `pip install "
                "'gluon-resnest[cpu]'`, or `pip install 'gluon-resnest[cu112]'` for NVIDIA GPUs")
    if len(distributions) > 1:
        return ("mxnet and mxnet-cu112 are both installed and overwrite each other's files; run "
                "`pip uninstall mxnet mxnet-cu112` and install one of them again")
    for wheel, version in distributions.items():
        if version.partition("+")[0] != MXNET:
            return (f"gluon_resnest needs MXNet {MXNET}, but {wheel} {version} is installed; run "
                    f"`pip install {wheel}=={MXNET}`")
    return None


def cuda_problem(paths):
    """Judges `paths`, the result of `cuda_paths`."""
    missing = [wheel for (_, _, wheel), path in zip(CUDA_LIBRARIES, paths) if path is None]
    if not missing:
        return None
    return (f"mxnet-cu112 needs NVIDIA's CUDA 11 libraries, but {', '.join(missing)} cannot be "
            "found; run `pip install 'gluon-resnest[cu112]'`")


def cuda_paths(nvidia_folders):
    """Returns the file of each of CUDA_LIBRARIES below the folders of package `nvidia`, or None."""
    def find(folder, soname):
        candidates = (os.path.join(root, folder, "lib", soname) for root in nvidia_folders)
        return next((path for path in candidates if os.path.exists(path)), None)

    return [find(folder, soname) for soname, folder, _ in CUDA_LIBRARIES]


def load_cuda(paths, load):
    """Loads the driver's library and then `paths`.

    Args:
      paths: files to load.
      load: `ctypes.CDLL` or a stand-in.

    Raises:
      ImportError: if one cannot be loaded.
    """
    try:
        load("libcuda.so.1")
    except OSError as error:
        raise ImportError("mxnet-cu112 needs NVIDIA's driver (libcuda.so.1), which is not "
                          "installed; install the driver, or replace the wheel by "
                          "`pip install 'gluon-resnest[cpu]'`") from error
    for path in paths:
        try:
            load(path)
        except OSError as error:
            raise ImportError(f"mxnet-cu112 needs {os.path.basename(path)}, which cannot be loaded "
                              f"({error}); reinstall 'gluon-resnest[cu112]'") from error


class CudaBeforeMxnet:
    """An import finder that finds nothing, but loads CUDA when somebody imports mxnet.

    Loading a gigabyte of libraries with the package itself would burden every data worker, which
    never imports mxnet.
    """

    def __init__(self, paths, load):
        self._paths = paths
        self._load = load

    def find_spec(self, name, path=None, target=None):
        """Loads the libraries if `name` is mxnet; always leaves the search to the next finder."""
        if name == "mxnet":
            load_cuda(self._paths, self._load)
        return None


def set_waiting(environ=os.environ):
    """Sets what WAITING says in `environ`, unless one of its variables is set."""
    if not WAITING.keys() & environ.keys():
        environ.update(WAITING)


def without_waiting(environ):
    """Returns a copy of `environ` without what `set_waiting` has set: for foreign programs."""
    ours = all(environ.get(name) == value for name, value in WAITING.items())
    return {name: value for name, value in environ.items() if not (ours and name in WAITING)}


def check():
    """Raises ImportError with one sentence if the package cannot run here."""
    _raise_if(python_problem(sys.version_info))
    _raise_if(numpy_problem(_version("numpy")))
    importable = "mxnet" in sys.modules or importlib.util.find_spec("mxnet") is not None
    wheels = {name: _version(name) for name in ("mxnet", GPU_WHEEL) if _version(name)}
    _raise_if(mxnet_problem(importable, wheels))
    if GPU_WHEEL in wheels and "mxnet" not in sys.modules:
        _prepare_cuda()


def _prepare_cuda():
    import ctypes
    nvidia = importlib.util.find_spec("nvidia")
    paths = cuda_paths(nvidia.submodule_search_locations if nvidia else [])
    _raise_if(cuda_problem(paths))
    sys.meta_path.insert(0, CudaBeforeMxnet(paths, ctypes.CDLL))


def _version(distribution):
    """Returns the installed version or None."""
    from importlib import metadata  # since Python 3.8, which has been checked before
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _raise_if(problem):
    if problem:
        raise ImportError(problem)

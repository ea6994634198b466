"""Our input pipeline: folder of JPEG files to batches in shared memory."""
from worker import Side

_AHEAD = 4          # slots of the loader


def make(job):
    """Returns the `Side` that reads training batches float32 (N, 3, H, W) of job["file"]."""
    import numpy as np

    from gluon_resnest.data.classification import FolderDataset
    from gluon_resnest.data.loader import Loader
    from gluon_resnest.data.sampling import TrainPlan
    from gluon_resnest.data.transforms import train_transform
    transform = train_transform(job["size"],
                                auto_augment="paper" if job["auto_augment"] else "none")
    dataset = FolderDataset(job["file"], transform)
    loader = Loader(dataset, TrainPlan(len(dataset), job["batch"], 0, 1, 0), seed=0,
                    workers=job["threads"])
    batches = loader.batches()
    return Side(lambda: next(batches), {"numpy": np.__version__}, ahead=_AHEAD)

"""PyTorch's DataLoader with the training transforms of timm or torchvision."""
from worker import Side

_AHEAD = 2          # batches each process prepares


def make(job):
    """Returns the `Side` that reads training batches of the class folders in job["file"]."""
    import torch
    from side_torch import import_timm
    timm = import_timm()
    import torchvision
    compose = {"timm": _timm, "torchvision": _torchvision}[job["competitor"]]
    torch.set_num_threads(1)
    dataset = torchvision.datasets.ImageFolder(job["file"], compose(job))
    if len(dataset) < job["batch"]:
        raise ValueError(f"{job['file']} has {len(dataset)} pictures, fewer than a batch of "
                         f"{job['batch']}: give a smaller --batch")
    loader = torch.utils.data.DataLoader(dataset, job["batch"], shuffle=True, drop_last=True,
                                         num_workers=job["threads"], persistent_workers=True,
                                         prefetch_factor=_AHEAD)

    def endless():
        while True:
            yield from loader

    batches = endless()
    return Side(lambda: next(batches), {"torch": torch.__version__, "timm": timm.__version__,
                                        "torchvision": torchvision.__version__},
                ahead=_AHEAD * job["threads"])


def _timm(job):
    from timm.data import create_transform
    return create_transform(job["size"], is_training=True, color_jitter=0.4,
                            auto_augment="original" if job["auto_augment"] else None)


def _torchvision(job):
    from torchvision import transforms
    colours = transforms.AutoAugment() if job["auto_augment"] else \
        transforms.ColorJitter(0.4, 0.4, 0.4)
    return transforms.Compose([
        transforms.RandomResizedCrop(job["size"]), transforms.RandomHorizontalFlip(), colours,
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

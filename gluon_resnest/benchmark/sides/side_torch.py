"""PyTorch: timm's networks, eager or compiled."""
import contextlib

from worker import Side

NETWORKS = {"resnest50": "resnest50d", "resnest14": "resnest14d", "resnest26": "resnest26d",
            "resnest101": "resnest101e", "resnest200": "resnest200e", "resnest269": "resnest269e",
            "resnest50_fast_4s2x40d": "resnest50d_4s2x40d",
            "resnest50_fast_1s4x24d": "resnest50d_1s4x24d"}


def make(job):
    """Returns the `Side` of inference or of a training step, channels last, by job["kind"]."""
    import torch
    torch.set_num_threads(job["threads"])
    device = torch.device("cuda" if job["device"] == "gpu" else "cpu")
    net, versions = network(job)
    net = net.to(device, memory_format=torch.channels_last)
    images = torch.randn(job["batch"], 3, job["size"], job["size"], device=device).to(
        memory_format=torch.channels_last)
    precision = contextlib.nullcontext if job["precision"] == "fp32" else (
        lambda: torch.autocast(device.type, dtype=torch.bfloat16))
    make_unit = {"infer": _inference, "train": _training}[job["kind"]]
    on_gpu = device.type == "cuda"
    return Side(make_unit(job, net, images, precision), versions,
                wait=torch.cuda.synchronize if on_gpu else lambda: None,
                device_bytes=torch.cuda.max_memory_reserved if on_gpu else lambda: None)


def network(job):
    """Returns (timm's network of the job's model, versions)."""
    import torch
    timm = import_timm()
    net = timm.create_model(NETWORKS[job["model"]], num_classes=job["classes"])
    return net, {"torch": torch.__version__, "timm": timm.__version__}


def import_timm():
    """Imports timm, which needs torchvision's Python but not its compiled operators.

    The torchvision of a package index may be built for another torch than the one beside it; its
    compiled part does not load then, and two operators of detection are missing that it describes.
    """
    import sys

    import torch
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import_timm.operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            import_timm.operators.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    return timm


def _inference(job, net, images, precision):
    import torch
    net.eval()
    if job["competitor"] == "torch-compile":
        import torch._inductor.config
        torch._inductor.config.freezing = True
        net = torch.compile(net)

    def unit():
        with torch.no_grad(), precision():
            net(images)

    return unit


def _training(job, net, images, precision):
    import torch
    net.train()
    labels = torch.arange(job["batch"], device=images.device) % job["classes"]
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4,
                                nesterov=True)
    loss = torch.nn.CrossEntropyLoss()
    if job["competitor"] == "torch-compile":
        net = torch.compile(net)

    def unit():
        optimizer.zero_grad(set_to_none=True)
        with precision():
            error = loss(net(images), labels)
        error.backward()
        optimizer.step()

    return unit

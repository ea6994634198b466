"""MXNet: our networks, GluonCV's, the authors', and what was exported for deployment."""
import functools
import os
import tempfile

from worker import Side

from gluon_resnest._environment import without_waiting

FOREIGN = ("gluoncv", "authors")        # they run as their users run them


def make(job):
    """Returns the `Side` of inference or of a training step, by job["kind"]."""
    if job["competitor"] in FOREIGN:
        for name in os.environ.keys() - without_waiting(os.environ).keys():
            del os.environ[name]
    else:
        from gluon_resnest.cli import set_engine_environment
        set_engine_environment()
    from gluon_resnest.engine.comm import connect
    comm = connect()
    import mxnet as mx
    context = comm.context(job["device"])
    make_unit = {"infer": _inference, "train": _training}[job["kind"]]
    unit, versions = make_unit(job, comm, context)

    def device_bytes():
        if job["device"] == "cpu":
            return None
        free, total = mx.context.gpu_memory_info(context.device_id)
        return total - free

    return Side(unit, {"mxnet": mx.__version__, **versions}, wait=mx.nd.waitall,
                share=comm.on_main, device_bytes=device_bytes)


def _network(job, context):
    """Returns (network, versions) of the job's competitor, initialised and hybridized."""
    import mxnet as mx
    options, versions = {"classes": job["classes"]}, {}
    if job["competitor"] == "gluoncv":
        from gluoncv import __version__
        from gluoncv.model_zoo import get_model
        versions["gluoncv"] = __version__
    elif job["competitor"] == "authors":
        from resnest.gluon.model_zoo import get_model
        versions["resnest"] = _version("resnest")
    else:
        from gluon_resnest.zoo import get_model
        options["dropblock"] = job["dropblock"]
        if job["precision"] == "bf16":
            from gluon_resnest.engine.amp import enable
            enable("bfloat16", context)
    net = get_model(job["model"], **options)
    net.initialize(mx.init.Xavier(magnitude=2), ctx=context)
    foreign = job["competitor"] in FOREIGN
    if foreign and job["kind"] == "train":
        _set_dropblock(net, job["dropblock"])
    net.hybridize(static_alloc=True, static_shape=foreign or job["kind"] == "infer")
    return net, versions


def _set_dropblock(net, p):
    """Sets the probability of another library's DropBlocks, which is built into its networks."""
    for block in net._children.values():
        if hasattr(block, "drop_prob"):
            block.drop_prob = p
        _set_dropblock(block, p)


def _images(job, context):
    import mxnet as mx
    return mx.nd.random.normal(shape=(job["batch"], 3, job["size"], job["size"]), ctx=context)


def _inference(job, comm, context):
    images = _images(job, context)
    if job["competitor"] == "deployed":
        return _deployed(job, images.asnumpy())
    net, versions = _network(job, context)
    return lambda: net(images).wait_to_read(), versions


def _deployed(job, images):
    from gluon_resnest.interop import deployed
    network = deployed.load(job["file"], engine=job["engine"], device=job["device"])
    if network.precision != job["precision"]:
        raise ValueError(f"the file is {network.precision}, the benchmark {job['precision']}: "
                         f"give --precision {network.precision}")
    return lambda: network(images), network.versions


def _training(job, comm, context):
    if job["competitor"] == "ours-recipe":
        return _recipe(job, comm, context)
    from mxnet import gluon, nd

    from gluon_resnest.engine.optim import optimizer
    from gluon_resnest.engine.update import Update
    net, versions = _network(job, context)
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    loss.hybridize()
    batch = (_images(job, context),
             nd.arange(job["batch"], ctx=context) % job["classes"])
    trainer = comm.trainer(net.collect_params(), optimizer("nag", wd=1e-4))
    update = Update(trainer, net, parts=job["parts"])

    def unit():
        update.step(lambda part: {"loss": loss(net(part[0]), part[1]).mean()}, batch, 1e-3)

    return unit, versions


def _recipe(job, comm, context):
    """The step of the real recipe: mixup, smoothed labels, losses kept and logged."""
    import numpy as np

    from gluon_resnest.cli import parse
    from gluon_resnest.data.loader import Batch
    from gluon_resnest.engine.loop import Window
    from gluon_resnest.engine.report import RunLog
    from gluon_resnest.recipes.imagenet import RECIPES
    from gluon_resnest.tasks.classification import Classification
    words = {"network": job["model"], "batch": job["batch"] * comm.size, "classes": job["classes"],
             "crop-px": job["size"], "dropblock": job["dropblock"], "data": "synthetic",
             "data-workers": 0, "device": job["device"]}
    argv = [text for name, value in words.items() for text in (f"--{name}", str(value))]
    task = Classification(*parse(RECIPES, Classification, argv), comm)
    task.on_epoch(0)
    rng = np.random.RandomState(0)
    shape = (job["batch"], 3, job["size"], job["size"])
    batch = Batch((rng.standard_normal(shape).astype("float32"),
                   np.arange(job["batch"]) % job["classes"]), np.arange(job["batch"]), 0, 0)

    def steps():
        window, done = Window(comm), 0
        with tempfile.TemporaryDirectory() as folder, \
                RunLog(folder, comm, total_steps=10 ** 6, steps_per_epoch=10 ** 6,
                       batch=job["batch"] * comm.size) as log:
            log.begin(0)
            while True:
                with window.waiting():
                    moved = task.on_device(batch)
                window.add(done + 1, task.update.step(task.losses, moved, 1e-3))
                log.advance()
                done += 1
                if done % 50 == 0:
                    log.training(done, 1e-3, window.close())
                yield

    return functools.partial(next, steps()), {}


def _version(package):
    from importlib.metadata import version
    return version(package)

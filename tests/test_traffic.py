"""What a training step sends, against what `--plan` says it does.

Started by horovodrun, this file is the worker: it trains a step and counts what it reduces.
"""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from horovod_job import launch
from mxnet import nd

from gluon_resnest.config import ClassificationRecipe
from gluon_resnest.engine.comm import connect
from gluon_resnest.engine.optim import optimizer
from gluon_resnest.engine.plan import Cluster, estimate
from gluon_resnest.engine.update import make_update
from gluon_resnest.models.resnest import initialize
from gluon_resnest.tasks.workload import classification_workload
from gluon_resnest.zoo import get_model

WORKERS = 2


def recipe(compression):
    return ClassificationRecipe(network="resnest14_1s1x40d", source="a test", classes=5, batch=4,
                                crop_px=32, epochs=6, compression=compression)


@pytest.mark.horovod
def test_bytes_of_a_step_are_those_of_the_plan(tmp_path):
    code, output, counted = launch(WORKERS, __file__, tmp_path)
    assert code == 0, output
    for compression in ("none", "fp16"):
        cluster = Cluster(images=64, workers=WORKERS, images_per_second=1)
        plan = estimate(classification_workload(recipe(compression), cluster), cluster)
        for worker in counted:
            reduced = worker[compression]
            assert plan.sent == 2 * (WORKERS - 1) / WORKERS * reduced
    assert counted[0]["none"] == 2 * counted[0]["fp16"] > 10 ** 7


def count(comm, compression):
    """Returns the bytes of the gradients that one step hands to Horovod's all-reduce."""
    import horovod.mxnet as hvd
    made = recipe(compression)
    net = get_model(made.network, classes=made.classes)
    initialize(net)
    update = make_update(made, net, comm, optimizer(made.optimizer, wd=made.wd))
    images = nd.array(np.ones((2, 3, 32, 32)))
    real, sizes = hvd.allreduce_, []

    def counting(tensor, *args, **kwargs):
        sizes.append(tensor.size * np.dtype(tensor.dtype).itemsize)
        return real(tensor, *args, **kwargs)

    hvd.allreduce_ = counting
    try:
        update.step(lambda batch: {"loss": net(batch[0]).mean()}, (images,), 0.1)
        nd.waitall()
    finally:
        hvd.allreduce_ = real
    return sum(sizes)


if __name__ == "__main__":
    workers = connect()
    found = {name: count(workers, name) for name in ("none", "fp16")}
    Path(sys.argv[1], f"{workers.rank}.json").write_text(json.dumps(found))
    workers.shutdown()

"""Times each convolution of a network apart, forward and with its gradients; the dearest first.

    OMP_NUM_THREADS=1 python tests/convolution_speed.py resnest14 --px 32 --batch 256
"""
import argparse
import time
from collections import Counter

import mxnet as mx
from mxnet import autograd, nd

import gluon_resnest


def convolutions(net, x):
    """Returns Counter {(input shape, weight shape, stride, pad, groups): calls} of one pass."""
    found = Counter()

    def hook(layer, inputs):
        options = layer._kwargs
        found[inputs[0].shape, layer.weight.shape, options["stride"], options["pad"],
              options["num_group"]] += 1

    net.apply(lambda block: block.register_forward_pre_hook(hook)
              if isinstance(block, mx.gluon.nn.Conv2D) else None)
    net(x).wait_to_read()
    return found


def seconds(work, rounds=5):
    """Returns the least of some times, the first left out."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        nd.waitall()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--most", type=int, default=12, help="rows to print")
    flags = parser.parse_args()
    net = gluon_resnest.get_model(flags.network, classes=10)
    net.initialize()
    rows = []
    found = convolutions(net, nd.zeros((flags.batch, 3, flags.px, flags.px)))
    for (shape, weights, stride, pad, groups), calls in found.items():
        x, weight = nd.random.normal(shape=shape), nd.random.normal(shape=weights)
        x.attach_grad()
        weight.attach_grad()

        def forward():
            return nd.Convolution(x, weight, kernel=weights[2:], stride=stride, pad=pad,
                                  num_filter=weights[0], num_group=groups, no_bias=True)

        def forward_in_training():
            with autograd.train_mode():         # inference would keep the weight in oneDNN's layout
                forward()

        def both():
            with autograd.record():
                y = forward()
            y.backward(ones)

        ones = nd.ones_like(forward())
        once, whole = seconds(forward_in_training), seconds(both)
        operations = 2 * ones.size * weight[0].size / 1e9
        rows.append((whole * calls, f"{calls} x {shape} by {weights}, {groups} groups: "
                     f"{operations / once:.0f} GFLOP/s forward, {3 * operations / whole:.0f} with "
                     "gradients"))
    print(f"all: {1e3 * sum(spent for spent, _ in rows):.0f} ms")
    for spent, text in sorted(rows, reverse=True)[:flags.most]:
        print(f"{1e3 * spent:7.1f} ms: {text}")


if __name__ == "__main__":
    main()

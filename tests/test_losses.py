import numpy as np
import pytest
from mxnet import autograd, nd

from gluon_resnest.losses import Distillation, SoftCrossEntropy


def logits_and_targets(n=3, k=5):
    random = np.random.RandomState(0)
    targets = random.rand(n, k).astype("float32")
    return random.randn(n, k).astype("float32") * 3, targets / targets.sum(1, keepdims=True)


def log_softmax(x):
    x = x.astype("float64")
    return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(
        1, keepdims=True))


def test_cross_entropy_equals_numpy(hybridize):
    logits, targets = logits_and_targets()
    loss = SoftCrossEntropy()
    loss.hybridize(hybridize)
    expected = -(targets * log_softmax(logits)).sum(1).mean()
    assert loss(nd.array(logits), nd.array(targets)).asscalar() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_softmax_minus_target_over_n(hybridize):
    logits, targets = logits_and_targets()
    loss = SoftCrossEntropy()
    loss.hybridize(hybridize)
    x = nd.array(logits)
    x.attach_grad()
    with autograd.record():
        value = loss(x, nd.array(targets))
    value.backward()
    expected = (np.exp(log_softmax(logits)) - targets) / len(logits)
    np.testing.assert_allclose(x.grad.asnumpy(), expected, atol=1e-6)


def test_uniform_logits_cost_log_k():
    targets = nd.array([[0, 1, 0, 0]])
    cost = SoftCrossEntropy()(nd.zeros((1, 4)), targets).asscalar()
    assert cost == pytest.approx(np.log(4), rel=1e-5)


def test_hard_weight_one_ignores_the_teacher(hybridize):
    logits, targets = map(nd.array, logits_and_targets())
    loss = Distillation(temperature=20, hard_weight=1)
    loss.hybridize(hybridize)
    expected = SoftCrossEntropy()(logits, targets).asscalar()
    assert loss(logits, targets, nd.ones_like(logits)).asscalar() == pytest.approx(expected)


def test_soft_part_is_least_where_the_student_equals_the_teacher():
    teacher, targets = map(nd.array, logits_and_targets())
    loss = Distillation(temperature=2, hard_weight=0)
    best = loss(teacher, targets, teacher).asscalar()
    assert best < loss(teacher * 0.9, targets, teacher).asscalar()
    probabilities = np.exp(log_softmax(teacher.asnumpy() / 2))
    entropy = -(probabilities * np.log(probabilities)).sum(1).mean()
    assert best == pytest.approx(4 * entropy, rel=1e-5)         # T^2 times the entropy


def test_targets_of_weight_two_count_their_image_twice_with_a_teacher_too(hybridize):
    logits, targets = map(nd.array, logits_and_targets())
    teacher, loss = logits[:, ::-1], Distillation(temperature=2, hard_weight=0.25)
    loss.hybridize(hybridize)
    once, twice, none = (loss(logits[k:k + 1], weight * targets[k:k + 1], teacher[k:k + 1])
                         for k, weight in ((0, 1), (1, 2), (2, 0)))
    weighted = loss(logits, nd.array([[1], [2], [0]]) * targets, teacher)
    assert weighted.asscalar() == pytest.approx((once + twice + none).asscalar() / 3, rel=1e-5)
    again = loss(logits[1:2], targets[1:2], teacher[1:2])
    assert twice.asscalar() == pytest.approx(2 * again.asscalar(), rel=1e-5)


@pytest.mark.parametrize("temperature, hard_weight", [(0, 0.5), (-1, 0.5), (1, 1.5)])
def test_senseless_distillation_is_refused(temperature, hard_weight):
    with pytest.raises(ValueError, match="temperature > 0"):
        Distillation(temperature, hard_weight)

import numpy as np

from gluon_resnest.metrics import TopK


def slow_top_k(logits, labels, k):
    """Sorts; valid only without ties."""
    return sum(label in np.argsort(-row)[:k] for row, label in zip(logits, labels))


def test_counts_equal_a_sort():
    random = np.random.RandomState(1)
    logits, labels = random.randn(57, 11), random.randint(0, 11, 57)
    metric = TopK((1, 5))
    metric.update(logits, labels)
    assert list(metric.counts()) == [slow_top_k(logits, labels, 1), slow_top_k(logits, labels, 5),
                                     57]


def test_counts_add_up_over_batches():
    random = np.random.RandomState(2)
    logits, labels = random.randn(20, 7), random.randint(0, 7, 20)
    whole, parts = TopK(), TopK()
    whole.update(logits, labels)
    for part in (slice(0, 3), slice(3, 3), slice(3, 20)):
        parts.update(logits[part], labels[part])
    assert list(whole.counts()) == list(parts.counts())


def test_constant_or_nan_output_hits_nothing():
    metric = TopK((1, 2))
    metric.update(np.zeros((4, 3)), [0, 1, 2, 0])
    metric.update(np.full((4, 3), np.nan), [0, 1, 2, 0])
    assert list(metric.counts()) == [0, 0, 8]


def test_k_of_all_classes_always_hits():
    metric = TopK((3,))
    metric.update(np.array([[3.0, 2.0, 1.0]]), [2])
    assert list(metric.counts()) == [1, 1]

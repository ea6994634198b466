"""Mixing plans: what depends on what, conserved mass, hand numbers of both smoothing formulas."""
import numpy as np
import pytest

from gluon_resnest.data.mixing import box_mask, cutmix_plan, mixup_plan, picks_cutmix, soft_targets
from gluon_resnest.data.sampling import random_for
from gluon_resnest.errors import UserError

INDICES = np.array([40, 7, 3, 12, 5, 60])
MODES = ["none", "batch", "example"]


# --- mixup -----------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_mixup_plan_is_a_function_of_its_arguments(mode):
    lam, partner = mixup_plan(1, 2, INDICES, 0.2, mode)
    again, _ = mixup_plan(1, 2, list(INDICES), 0.2, mode)
    assert lam.dtype == np.float32 and partner.dtype == np.int64
    assert lam.shape == partner.shape == (6,)
    assert lam.min() >= 0 and lam.max() <= 1
    np.testing.assert_array_equal(lam, again)
    others = [mixup_plan(9, 2, INDICES, 0.2, mode), mixup_plan(1, 9, INDICES, 0.2, mode)]
    assert all((lam != other).any() == (mode != "none") for other, _ in others)


@pytest.mark.parametrize("mode", MODES)
def test_partners_are_an_involution(mode):
    _, partner = mixup_plan(1, 2, INDICES, 0.2, mode)
    np.testing.assert_array_equal(partner[partner], np.arange(6))


def test_batch_mode_is_one_lambda_and_reversed_order():
    lam, partner = mixup_plan(1, 2, INDICES, 0.2, "batch")
    assert set(lam) == {np.float32(random_for(1, 2, 40, "mixup").beta(0.2, 0.2))}
    assert partner.tolist() == [5, 4, 3, 2, 1, 0]
    assert mixup_plan(1, 2, INDICES[:3], 0.2, "batch")[1].tolist() == [2, 1, 0]


def test_example_mode_does_not_depend_on_the_number_of_workers():
    lam, partner = mixup_plan(1, 2, INDICES, 0.2, "example")
    assert len(set(lam)) == 6 and partner.tolist() == [1, 0, 3, 2, 5, 4]
    parts = [mixup_plan(1, 2, INDICES[start:start + 2], 0.2, "example") for start in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), lam)
    assert all(own.tolist() == [1, 0] for _, own in parts)


def test_lambda_is_beta_distributed():
    lam, _ = mixup_plan(1, 2, np.arange(3000), 0.2, "example")
    assert lam.mean() == pytest.approx(0.5, abs=0.03)
    assert lam.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)     # of Beta(a, a)


# --- CutMix ----------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_cutmix_lambda_is_the_share_of_own_pixels(mode):
    for epoch in range(20):
        boxes, lam, partner = cutmix_plan(1, epoch, INDICES, 1.0, 7, 9, mode)
        mask = box_mask(boxes, 7, 9)
        assert mask.shape == (6, 1, 7, 9) and mask.dtype == np.float32
        np.testing.assert_allclose(mask.mean(axis=(1, 2, 3)), lam, atol=1e-6)
        assert (boxes >= 0).all() and (boxes[:, 2] <= 7).all() and (boxes[:, 3] <= 9).all()
        assert boxes.dtype == np.int64 and lam.dtype == np.float32
        assert (boxes[0] == boxes).all() or mode == "example"


def test_cutmix_boxes_have_the_aspect_of_the_image_and_reach_its_edges():
    boxes, lam, _ = cutmix_plan(1, 0, np.arange(2000), 1.0, 100, 200, "example")
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 100
    assert boxes[:, 1].min() == 0 and boxes[:, 3].max() == 200
    inner = boxes[(boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, 2] < 100)
                  & (boxes[:, 3] < 200)]
    rows, columns = inner[:, 2] - inner[:, 0], inner[:, 3] - inner[:, 1]
    assert abs(columns - 2 * rows).max() <= 1
    assert lam.mean() > 0.5             # boxes cut at the edge leave more of the image


def test_both_kinds_are_picked():
    picks = [picks_cutmix(1, 0, [index, 5]) for index in range(400)]
    assert sum(picks) == pytest.approx(200, abs=45)
    assert picks_cutmix(1, 0, [3]) is picks_cutmix(1, 0, [3, 8])


# --- targets ---------------------------------------------------------------------------------

PLAIN = (np.ones(2, np.float32), np.arange(2))


@pytest.mark.parametrize("formula, on, off", [
    ("uniform", 0.925, 0.025),          # 1 - .1 + .1 / 4, .1 / 4
    ("paper", 0.9, 0.1 / 3),            # 1 - .1, .1 / (4 - 1)
])
def test_smoothing_hand_numbers(formula, on, off):
    targets = soft_targets([2, 0], *PLAIN, 4, 0.1, formula)
    np.testing.assert_allclose(targets, [[off, off, on, off], [on, off, off, off]], atol=1e-7)
    assert targets.dtype == np.float32


def test_the_released_weights_saw_9001_on_the_class():
    assert soft_targets([7], [1.0], [0], 1000, 0.1)[0, 7] == pytest.approx(0.9001)


@pytest.mark.parametrize("formula", ["uniform", "paper"])
def test_no_smoothing_is_one_hot(formula):
    np.testing.assert_array_equal(soft_targets([2, 0], *PLAIN, 3, 0.0, formula),
                                  np.eye(3)[[2, 0]])


@pytest.mark.parametrize("formula", ["uniform", "paper"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_targets_keep_mass_one(formula, mode, smoothing):
    lam, partner = mixup_plan(3, 4, INDICES, 0.2, mode)
    targets = soft_targets([0, 1, 2, 3, 4, 4], lam, partner, 5, smoothing, formula)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert (targets >= 0).all()


def test_mixed_targets_hand_number():
    targets = soft_targets([0, 1], [0.75, 0.5], [1, 0], 3, 0.0)
    np.testing.assert_allclose(targets, [[0.75, 0.25, 0], [0.5, 0.5, 0]])


def test_each_image_brings_its_own_weight_into_a_mixture():
    weights = np.array([2, 4, 1], np.float32)
    targets = soft_targets([0, 1], [0.75, 0.5], [1, 0], 3, 0.0, weights=weights)
    np.testing.assert_allclose(targets, [[1.5, 1, 0], [1, 2, 0]])


# --- mistakes --------------------------------------------------------------------------------

@pytest.mark.parametrize("plan", [
    lambda indices, alpha, mode: mixup_plan(1, 2, indices, alpha, mode),
    lambda indices, alpha, mode: cutmix_plan(1, 2, indices, alpha, 7, 9, mode),
], ids=["mixup", "cutmix"])
def test_plan_mistakes(plan):
    with pytest.raises(UserError, match="even batch per worker, got 5"):
        plan(INDICES[:5], 0.2, "example")
    with pytest.raises(UserError, match="mode must be one of none, batch, example.*'batch'"):
        plan(INDICES, 0.2, "bacth")
    with pytest.raises(UserError, match="_alpha must be positive, got 0"):
        plan(INDICES, 0, "batch")


def test_target_mistakes():
    with pytest.raises(UserError, match="labels must lie in 0..3, got 4"):
        soft_targets([0, 4], *PLAIN, 4, 0.1)
    with pytest.raises(UserError, match="labels must lie in 0..3, got -1"):
        soft_targets([0, -1], *PLAIN, 4, 0.1)
    with pytest.raises(UserError, match="smoothing must lie in 0..1, got 1.5"):
        soft_targets([0, 1], *PLAIN, 4, 1.5)
    with pytest.raises(UserError, match="formula must be one of .*did you mean 'uniform'"):
        soft_targets([0, 1], *PLAIN, 4, 0.1, "unifrom")

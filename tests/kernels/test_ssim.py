"""Structural similarity against an independent implementation, and its policy for what has no similarity."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from xreg.kernels.ssim import one_window_ssim, prepare, ssim, ssim_matrix, ssim_pairs


@pytest.fixture
def pictures():
    rng = np.random.default_rng(1)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(5, 32, 32)), axis=1), axis=2)
    smooth -= smooth.min(axis=(1, 2), keepdims=True)
    return np.round(255 * smooth / smooth.max(axis=(1, 2), keepdims=True)).astype(np.uint8)


def test_agrees_with_scikit_image(pictures):
    wanted = [
        [
            structural_similarity(
                a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for b in pictures[2:]
        ]
        for a in pictures
    ]
    np.testing.assert_allclose(ssim_matrix(pictures, pictures[2:], 255), wanted, atol=1e-12)


def test_one_for_equal_pictures_and_below_for_others(pictures):
    similarity = ssim_matrix(pictures, pictures, 255)
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-12)
    assert similarity[~np.eye(5, dtype=bool)].max() < 0.9


def test_symmetric_to_the_bit(pictures):
    np.testing.assert_array_equal(ssim_matrix(pictures, pictures, 255), ssim_matrix(pictures, pictures, 255).T)


def test_pairs_do_not_depend_on_company(pictures):
    many = np.concatenate([pictures] * 70)
    together = ssim(many, many[::-1], 255)
    alone = [ssim(a, b, 255) for a, b in zip(pictures, pictures[::-1], strict=True)]
    np.testing.assert_array_equal(together[:5], alone)


def test_unrelated_noise_is_not_similar_with_its_own_data_range():
    a, b = np.random.default_rng(0).integers(0, 1000, (2, 32, 32)).astype(np.uint16)
    assert abs(ssim(a, b, 1000)) < 0.15


def test_windows_with_nan_are_left_out(pictures):
    holed = pictures.astype(float)
    holed[0, :12, :] = np.nan
    cropped = ssim(pictures[0, 12:], pictures[1, 12:], 255)
    assert ssim(holed[0], holed[1], 255) == pytest.approx(cropped, abs=1e-12)
    holed[0, ::5] = np.nan
    assert np.isnan(ssim(holed[0], holed[1], 255))


def test_a_picture_without_contrast_has_no_similarity(pictures):
    flat = np.full((32, 32), 7, dtype=np.uint8)
    assert np.isnan(ssim(flat, flat, 255))
    assert np.isnan(ssim(flat, pictures[0], 255))
    holed = np.where(np.arange(32) < 3, np.nan, 7.0) * np.ones((32, 1))
    assert np.isnan(ssim(holed, pictures[0].astype(float), 255))


def test_one_window_is_the_formula_of_the_whole_picture(pictures):
    a, b = pictures[0].astype(float), pictures[1].astype(float)
    c1, c2 = 2.55**2, 7.65**2
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    wanted = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
    wanted /= (a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var() + b.var() + c2)
    assert one_window_ssim(pictures, pictures, 255)[0, 1] == pytest.approx(wanted)


@pytest.mark.parametrize("shape", [(32, 32), (2, 10, 32), (1, 2, 32, 32)])
def test_too_small_or_not_a_stack_is_refused(shape):
    with pytest.raises(ValueError, match=r"need \(n, h, w\) with h and w of at least 11"):
        prepare(np.zeros(shape), 255)


@pytest.mark.parametrize("data_range", [0, -1, np.nan, np.inf])
def test_impossible_data_range_is_refused(data_range):
    with pytest.raises(ValueError, match="need the positive span of a sample's values, 255 for uint8"):
        prepare(np.zeros((1, 32, 32)), data_range)


def test_unlike_shapes_are_refused(pictures):
    with pytest.raises(ValueError, match="need equal shapes"):
        ssim(pictures[0], pictures[0, 1:], 255)
    with pytest.raises(ValueError, match="resample and scale them alike first"):
        ssim_pairs(prepare(pictures, 255), prepare(pictures, 100), [0], [0])
    with pytest.raises(ValueError, match="resample and scale them alike first"):
        ssim_matrix(pictures, pictures[:, 1:], 255)

import numpy as np
import pytest

from xreg.kernels.absorption import changing, edge_jump, expected_contrast, tabulated_edge

ENERGY = np.array([8200.0, 8300.0, 8330.0, 8340.0, 8400.0, 8600.0])


def test_edge_jump_of_oxide_carbon_and_what_is_not_known():
    contrast = np.array([[0.3, 0.3, 0.7, 0.5, 1.0, 1.0], [0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
                         [np.nan, np.nan, 0.3, 1.0, 1.0, 1.0], [0.3, 0.3, 0.3, 0.3, -1.0, -1.0]])
    jump, sigma = edge_jump(contrast, np.full(contrast.shape, 0.1), ENERGY, 8333.0)
    np.testing.assert_allclose(jump, [0.7, 0, np.nan, np.nan], atol=1e-12)
    # Two frames on either side: 0.1 / sqrt(2) each, and 0.3 of it from behind the edge.
    np.testing.assert_allclose(sigma[0], 0.1 / np.sqrt(2) * np.hypot(1, 0.3))
    assert np.isnan(sigma[2:]).all()


def test_a_weak_frame_weighs_little():
    sigma = np.array([[0.01, 1.0, 0.1, 0.1, 0.01, 0.01]])
    jump, _ = edge_jump(np.array([[0.3, 1.0, 0.3, 1.0, 1.0, 1.0]]), sigma, ENERGY, 8333.0)
    assert jump == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize(("energy", "e0"), [(ENERGY, None), (ENERGY[:2], 8333.0), (ENERGY[3:], 8333.0)])
def test_energies_that_do_not_say(energy, e0):
    assert np.isnan(edge_jump(np.ones((2, len(energy))), np.ones((2, len(energy))), energy, e0)).all()


def test_contrasts_run_alike_but_for_what_does_not_hold_the_element():
    curve = np.array([0.3, 0.3, 0.3, 1.0, 1.2, 1.1])
    contrast = np.outer([1.0, 2.0, 0.5, 1.0], curve)
    contrast[3] = 0.7
    seen = contrast.copy()
    seen[2, :3] = seen[3, :3] = np.nan
    # Two that are seen behind the edge alone; what the fits say before it tells them apart.
    np.testing.assert_allclose(expected_contrast(seen, contrast)[:3], contrast[:3], rtol=0.01)
    np.testing.assert_allclose(expected_contrast(seen, contrast)[3], 0.7)
    wrong = contrast.copy()
    wrong[3, :3] = [0.2, 2.0, 0.21]
    np.testing.assert_allclose(expected_contrast(seen, wrong)[3], 0.7 / 1.1 * curve, rtol=0.01)
    # An invention before the edge, of which nothing is left behind it.
    gone = contrast.copy()
    gone[3] = [0.3, 0.31, 0.29, 0.03, 0.02, 0.03]
    once = np.where(np.arange(6) < 3, gone, np.nan)
    expected = expected_contrast(np.vstack([contrast[:3], once[3:]]), gone)[3]
    np.testing.assert_allclose(expected, 0.3 / 0.3 * curve, rtol=0.01)
    # One frame of an odd contrast changes nothing.
    odd = np.repeat(contrast, 8, axis=1)
    odd[:, 30] = [np.nan, 3.0, np.nan, np.nan]
    np.testing.assert_allclose(expected_contrast(odd)[3], 0.7)
    assert expected_contrast(np.empty((0, 4))).shape == (0, 4)
    assert np.isnan(expected_contrast(np.full((2, 4), np.nan))).all()
    behind = np.outer([1.0, 2.0, 0.5, 0.7 / 1.1], curve[3:])
    np.testing.assert_allclose(expected_contrast(contrast[:, 3:]), behind, rtol=0.01)


def test_most_may_hold_nothing_of_the_element():
    rng = np.random.default_rng(0)
    curve = np.repeat([0.3, 1.0], [8, 12])
    contrast = np.concatenate([np.outer([1.0, 0.6], curve), np.outer([0.2, 0.3, 0.2, 0.4, 0.3], np.ones(20))])
    seen = contrast * rng.normal(1, 0.05, contrast.shape)
    seen[0, :3] = seen[4, 12:] = np.nan
    assert changing(seen).tolist() == [True, True, False, False, False, False, False]
    np.testing.assert_allclose(expected_contrast(seen, contrast), contrast, rtol=0.08)
    # Where none changes much, or nothing is known, all tell.
    assert changing(seen[2:]).all()
    assert changing(np.full((2, 4), np.nan)).all()


def test_tabulated_edge():
    assert tabulated_edge({"element": "ni", "edge": "k"}) == 8333.0
    assert tabulated_edge({"element": "Xx"}) is None
    assert tabulated_edge({}) is None

import numpy as np
import pytest

from xreg.kernels.absorption import edge_jump, tabulated_edge

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


def test_tabulated_edge():
    assert tabulated_edge({"element": "ni", "edge": "k"}) == 8333.0
    assert tabulated_edge({"element": "Xx"}) is None
    assert tabulated_edge({}) is None

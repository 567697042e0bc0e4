"""Spectra of the phantom: an edge that moves as nickel is oxidised, on a smooth background."""

import numpy as np

#: Ni K-edge energy (eV) near which the spectra are drawn.
NI_K_EDGE = 8333.0


def ni_energies(n: int = 143) -> np.ndarray:
    """`n` energies (eV) over the Ni K-edge: coarse before and after, 0.7 eV steps in the edge for n = 143."""
    edge = round(n * 0.59)
    pre = round(n * 0.17)
    post = n - edge - pre
    return np.concatenate([
        np.linspace(8200, 8322, pre, endpoint=False),
        np.linspace(8322, 8380, edge, endpoint=False),
        np.linspace(8380, 8700, post),
    ])


def edge_spectrum(energy: np.ndarray, oxidised: bool) -> np.ndarray:
    """Edge part of the absorption of one end member: 0 well before the edge, 1 (with wiggles) well after it.

    An arctangent step, a white line and a damped oscillation. From reduced to oxidised the half-step moves by about
    1.7 eV and the white line by about 2.8 eV, as in a charge of layered nickel oxides.
    """
    e0, line, height, width = (8343.6, 8352.0, 0.45, 3.0) if oxidised else (8341.6, 8349.2, 0.65, 2.6)
    de = np.asarray(energy, dtype=float) - e0
    step = 0.5 + np.arctan(de / 1.1) / np.pi
    white = height * np.exp(-0.5 * ((energy - line) / width) ** 2)
    above = np.clip(de - 12, 0, None)
    wiggle = 0.06 * np.sin(np.sqrt(above) * 1.25 + 0.6 * oxidised) * (above / 15) * np.exp(-above / 45)
    return step + white + wiggle


def pre_edge_absorption(energy: np.ndarray) -> np.ndarray:
    """Absorption of everything but the edge, in units of the edge step (Victoreen-like fall, 0.45 at the edge)."""
    return 0.45 * (NI_K_EDGE / np.asarray(energy, dtype=float)) ** 3


def half_step_energy(fraction: np.ndarray) -> np.ndarray:
    """Energy (eV) where a mixture with the given oxidised fraction crosses half of its edge step."""
    grid = np.linspace(8330, 8350, 4001)
    reduced, oxidised = edge_spectrum(grid, False), edge_spectrum(grid, True)
    nodes = np.linspace(0, 1, 201)
    crossing = [grid[np.argmax((1 - x) * reduced + x * oxidised > 0.5)] for x in nodes]
    return np.interp(fraction, nodes, crossing)

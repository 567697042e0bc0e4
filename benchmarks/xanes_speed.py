"""Spectra per second for normalisation and half-step edge energy: a Larch loop, a SciPy loop, and xreg.

    python benchmarks/xanes_speed.py [--pixels 400000] [--threads 2] [--rounds 5] [--memory]

All get the same noisy Ni K-edge spectra of 143 energies and the same explicit ranges. The loops run over a sample,
because they would take hours for the rest. The contestants take turns, and the ratio to Larch is the median of the
rounds' ratios, so that other work on the machine hits all alike. Larch is timed only where xraylarch is installed. With
--memory the peak memory of xreg is printed for a quarter of the spectra and for all of them: it must not grow.
"""

import argparse
import os
import resource
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # dask brings the threads; BLAS must not add its own

import dask
import dask.array as da
import numpy as np
import xarray as xr
from scipy.optimize import brentq

from xreg.plainly import number, plain_errors
from xreg.xanes import fit_edges, normalize_stack

ENERGY = np.concatenate([np.linspace(8200, 8320, 22, endpoint=False), np.linspace(8320, 8374, 90, endpoint=False),
                         np.linspace(8374, 8700, 31)])
RANGES = {"e0": 8343.0, "pre1": -140.0, "pre2": -40.0, "norm1": 30.0, "norm2": 350.0, "nnorm": 1}
SIDE = 160
_LARCH = "Larch loop, one core"


def spectra(pixels: int, seed: int = 0) -> np.ndarray:
    """Noisy optical densities (energies, pixels), float32; edge steps 0.3 to 0.6, shifts 0 to 3 eV."""
    rng = np.random.default_rng(seed)
    shift, step = rng.uniform(0, 3, pixels), rng.uniform(0.3, 0.6, pixels)
    de = ENERGY[:, None] - 8341.0 - shift
    edge = 0.5 + np.arctan(de / 1.4) / np.pi + 0.55 * np.exp(-0.5 * ((de - 7.0) / 2.8) ** 2)
    clean = step * (0.4 * (8333.0 / ENERGY[:, None]) ** 3 + edge)
    return (clean + rng.normal(size=clean.shape) * np.sqrt(np.exp(clean) / 9000)).astype(np.float32)


def made_stack(particles: int, lazy: bool = False) -> xr.DataArray:
    """Stack of square particles, made block by block when `lazy`."""
    def block(block_id):
        return spectra(SIDE * SIDE, block_id[0]).reshape(1, len(ENERGY), SIDE, SIDE)

    chunks = ((1,) * particles, (len(ENERGY),), (SIDE,), (SIDE,))
    data = da.map_blocks(block, chunks=chunks, dtype=np.float32, meta=np.empty((0,) * 4, np.float32))
    if not lazy:
        data = da.from_array(data.compute(), chunks=chunks)
    return xr.DataArray(data, dims=("particle", "frame", "y", "x"),
                        coords={"energy": ("frame", ENERGY), "scan": ("frame", np.zeros(len(ENERGY), int))})


def larch_loop(mu: np.ndarray) -> float | None:
    """Seconds per spectrum of Larch's pre_edge and an interpolated crossing; None where Larch is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from larch import Group
            from larch.xafs import pre_edge
    except ImportError:
        return None
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for column in mu.T:
            group = Group(energy=ENERGY, mu=column.astype(float))
            pre_edge(group, **RANGES)
            _first_crossing(group.norm)
    return (time.perf_counter() - start) / mu.shape[1]


def scipy_loop(mu: np.ndarray) -> float:
    """Seconds per spectrum of polynomial fits and a root, as one writes them for one spectrum."""
    de = ENERGY - RANGES["e0"]
    below = (de >= RANGES["pre1"]) & (de <= RANGES["pre2"])
    above = (de >= RANGES["norm1"]) & (de <= RANGES["norm2"])
    start = time.perf_counter()
    for column in mu.T.astype(float):
        pre = np.polyval(np.polyfit(de[below], column[below], 1), de)
        post = np.polyfit(de[above], (column - pre)[above], 1)
        norm = (column - pre) / np.polyval(post, 0.0)
        k = int(np.argmax((norm > 0.5) & (de > -10)))
        brentq(lambda e, norm=norm: np.interp(e, ENERGY, norm) - 0.5, ENERGY[k - 1], ENERGY[k])
    return (time.perf_counter() - start) / mu.shape[1]


def _first_crossing(norm: np.ndarray) -> float:
    k = int(np.argmax((norm > 0.5) & (ENERGY > RANGES["e0"] - 10)))
    return float(np.interp(0.5, norm[k - 1 : k + 1], ENERGY[k - 1 : k + 1]))


def xreg_time(particles: int, threads: int, with_norm: bool, lazy: bool = False) -> float:
    """Seconds per spectrum of the maps (edge energy, error, step, white line, status) and, if asked, of `norm`."""
    stack = made_stack(particles, lazy)
    wanted = [fit_edges(stack, slope="particle", **RANGES)]
    if with_norm:
        # All of a block is normalised for its first value; where the stack would be written is not what is timed.
        wanted.append(normalize_stack(stack, **RANGES)[:, 0, 0, 0])
    start = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=threads):
        dask.compute(*wanted)
    return (time.perf_counter() - start) / (particles * SIDE * SIDE)


def main(
    pixels: int = 400_000, threads: int = 2, sample: int = 100, rounds: int = 5, memory: bool = False
) -> dict[str, float]:
    """Print the table; returns spectra per second by name, the median of all rounds."""
    particles = max(1, pixels // SIDE**2)
    if memory:
        for count in (max(1, particles // 4), particles):
            xreg_time(count, threads, True, lazy=True)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"peak memory after {count * SIDE**2:,} spectra, made block by block: {peak:,.0f} MiB")
    mu = spectra(sample)
    contestants = {
        _LARCH: lambda: larch_loop(mu),
        "SciPy loop, one core": lambda: scipy_loop(mu),
        f"xreg, {threads} threads, normalise + half_step maps": lambda: xreg_time(particles, threads, True),
        f"xreg, {threads} threads, half_step maps": lambda: xreg_time(particles, threads, False),
    }
    xreg_time(1, threads, True)  # operators, imports and threads are warm for all that follow
    if larch_loop(mu[:, :1]) is None:
        print("xraylarch is not installed, so its loop is not timed.")
        del contestants[_LARCH]
    turns = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            turns[name].append(1.0 / contestant())
    base = np.array(turns.get(_LARCH, np.nan))
    print(f"{'':50s}{'spectra/s':>12s}{'x Larch':>10s}")
    for name, speed in turns.items():
        print(f"{name:50s}{np.median(speed):12,.0f}{np.median(np.array(speed) / base):10,.0f}")
    return {name: float(np.median(speed)) for name, speed in turns.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=number(int, 1), default=400_000)
    parser.add_argument("--threads", type=number(int, 1), default=2)
    parser.add_argument("--sample", type=number(int, 1), default=100, help="spectra for the loops")
    parser.add_argument("--rounds", type=number(int, 1), default=5)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    with plain_errors():
        main(**vars(options))

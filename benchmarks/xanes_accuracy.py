"""Edge energies of a simulated measurement against the truth: aligned by the true positions, and registered by xreg.

    python benchmarks/xanes_accuracy.py [FOLDER] [--scans 3] [--seed 0] [--threads 2] [--no-registration]

Simulates three scans of 143 energies at 9,000 counts with all distortions, registers them, and prints every named
energy's errors in the inner pixels (more than 3 px within the outline). Stacks aligned by the true positions show what
noise, drifts and the fit itself cost; what the registration adds is the difference to the other table. With FOLDER the
stores are kept, and taken from there if they exist.

The truth of `half_step` is where the noise-free spectrum passes half of its step far above the edge. Larch's lines
leave a noise-free spectrum a smaller step, so that its half-step energy lies lower; a line of its own says by how much.
`template_shift` has the truth of `half_step`; each other named energy is compared with its own value for the noise-free
spectrum of the pixel's mixture. The Cramer-Rao bound is that of the photons of the sample's exposures, for three
unknowns per pixel (shift, thickness, offset).
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # dask brings the threads; BLAS must not add its own

import dask
import numpy as np
import xarray as xr
from scipy import ndimage
from scipy.interpolate import CubicSpline

import xreg
from xreg import record
from xreg.evaluation import RIM_PX, Evaluation, evaluate
from xreg.kernels.edge import edge_energies
from xreg.kernels.operators import DEFINITIONS, EdgeSettings
from xreg.kernels.preedge import normalize_spectrum
from xreg.kernels.scoring import MAD_TO_SIGMA
from xreg.plainly import folder_type, number, plain_errors
from xreg.synthetic import Phantom, PhantomConfig, edge_spectrum
from xreg.synthetic.spectra import pre_edge_absorption

ALSO = tuple(name for name in DEFINITIONS if name != "half_step")
_NODES = np.linspace(0.0, 1.0, 41)  # oxidised fractions at which noise-free spectra are worked out


def mixtures(energy: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Noise-free spectra (energies, pixels) of unit step with the given oxidised fractions (pixels,)."""
    reduced, oxidised = (edge_spectrum(energy, which)[:, None] for which in (False, True))
    return pre_edge_absorption(energy)[:, None] + (1 - fraction) * reduced + fraction * oxidised


def larch_half_steps(energy: np.ndarray, e0: float) -> np.ndarray:
    """Half-step energies (eV) of the noise-free spectra of `_NODES` with Larch's automatic lines."""
    found = []
    for spectrum in mixtures(energy, _NODES).T:
        s = normalize_spectrum(energy, spectrum, e0=e0)
        roots = CubicSpline(s.energy, s.norm - 0.5).roots(extrapolate=False)
        found.append(roots[roots > e0 - 10.0][0])
    return np.array(found)


def fractions(phantom: Phantom, truth: xr.Dataset) -> np.ndarray:
    """Oxidised fraction of every pixel of the truth's maps, (particle, scan, y, x)."""
    dy, dx = np.meshgrid(truth["y"], truth["x"], indexing="ij")
    return np.array([[p.oxidised_fraction(dy, dx, phantom.progress(s)) for s in range(phantom.config.n_scans)]
                     for p in phantom.particles])


def shift_bound(phantom: Phantom, truth: xr.Dataset, fraction: np.ndarray, beam: np.ndarray) -> float:
    """Cramer-Rao bound (eV) of a pixel's shift, median over the inner pixels; `beam` (y, x) are open-beam counts."""
    energy, bounds = np.unique(phantom.energy), []
    substrate = phantom.config.substrate * (pre_edge_absorption(energy) / 0.45)[:, None]
    for p in range(truth.sizes["particle"]):
        inner = ndimage.binary_erosion(truth["contour"][p].values, iterations=RIM_PX)
        place = np.rint(truth["position"][p].mean("frame").values).astype(int)
        for s in range(truth.sizes["scan"]):
            step, x = truth["edge_step"][p, s].values[inner], fraction[p, s][inner]
            unit = mixtures(energy, x)
            rise = (mixtures(energy + 0.01, x) - mixtures(energy - 0.01, x)) / 0.02
            slopes = np.stack([-step * rise, unit, np.ones_like(unit)], axis=-1)
            photons = beam[tuple(place)] * np.exp(-step * unit - substrate)
            information = np.einsum("npi,np,npj->pij", slopes, photons, slopes)
            bounds.append(np.sqrt(np.linalg.inv(information)[:, 0, 0]))
    return float(np.median(np.concatenate(bounds)))


def fitted(aligned: xr.DataArray, contour: xr.DataArray, position: xr.DataArray) -> xr.Dataset:
    """Every named energy of the aligned stacks, in memory, with the positions that `evaluate` needs."""
    maps = xreg.fit_edges(aligned.assign_attrs(element="Ni", edge="K"), contour, also=ALSO).compute()
    return maps.assign(position=position, contour=contour).assign_coords(energy=aligned["energy"])


def compare(result: xr.Dataset, truth: xr.Dataset, fraction: np.ndarray) -> dict[str, Evaluation]:
    """Errors of every named energy in `result`."""
    energy = np.unique(truth["energy"].values)
    settings = EdgeSettings(e0=float(result["edge_energy"].attrs["e0"]), slope="pixel", also=ALSO, max_sigma=np.inf)
    own = edge_energies(energy, mixtures(energy, _NODES), settings)
    rows = {"half_step": evaluate(result, truth)}
    for name in ALSO:
        true = truth["edge_energy"]
        if name != "template_shift":
            true = true.copy(data=np.interp(fraction, _NODES, own[f"{name}_energy"])).where(truth["contour"])
        like = {"edge_energy": result[f"{name}_energy"], "edge_energy_sigma": result[f"{name}_energy_sigma"]}
        rows[name] = evaluate(result.assign(like), truth.assign(edge_energy=true))
    return rows


def main(folder: Path, *, threads: int = 2, registration: bool = True, **settings) -> dict[str, dict[str, Evaluation]]:
    """Print the tables; returns the errors by alignment and named energy. `settings` are those of the phantom."""
    config = PhantomConfig(**settings)
    raw, out = folder / "raw.zarr", folder / "out.zarr"
    phantom = Phantom(config)
    truth = phantom.truth()
    if not raw.exists():
        record.simulate(config, raw)
    frames = xreg.open_frames(raw)
    with dask.config.set(scheduler="threads", num_workers=threads):
        stacks = xreg.align_stacks(xreg.normalize_frames(frames), truth, int(truth["y"].max()))["aligned"]
        columns = {"by the truth": fitted(stacks, truth["contour"], truth["position"])}
        if registration:
            result = xreg.open_result(out) if out.exists() else xreg.register(raw, out)
            columns["by xreg"] = fitted(result["aligned"], result["contour"], result["position"])
        open_beam = (frames["flats"].mean("flat") - frames["darks"].mean("dark")).values
    fraction = fractions(phantom, truth)
    bound = shift_bound(phantom, truth, fraction, open_beam * config.exposure / config.flat_exposure)
    errors = {name: compare(result, truth, fraction) for name, result in columns.items()}
    e0 = float(columns["by the truth"]["edge_energy"].attrs["e0"])
    larch = np.interp(fraction, _NODES, larch_half_steps(np.unique(phantom.energy), e0))
    print(f"offset of half_step made by Larch's lines alone: {np.nanmedian(larch - truth['edge_energy']):+.3f} eV")
    print(f"Cramer-Rao bound of a pixel's shift, median: {bound:.3f} eV")
    for name, rows in errors.items():
        _print(f"aligned {name}", rows, bound)
    return errors


def _print(title: str, rows: dict[str, Evaluation], bound: float) -> None:
    """Print one row for each named energy; errors are median absolute ones, less the offset."""
    print(f"\n{title:22s}{'fitted':>9s}{'offset':>10s}{'error':>10s}{'SD/sigma':>10s}{'SD/bound':>10s}")
    for name, e in rows.items():
        part = f"{MAD_TO_SIGMA * e.edge_error_centred / bound:10.2f}" if name == "template_shift" else ""
        print(f"{name:22s}{e.edge_fitted:9.2%}{e.edge_offset:+7.3f} eV{e.edge_error_centred:7.3f} eV"
              f"{e.edge_sigma_ratio:10.2f}{part}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=folder_type, nargs="?")
    parser.add_argument("--scans", type=number(int, 1), default=3)
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_argument("--threads", type=number(int, 1), default=2)
    parser.add_argument("--no-registration", dest="registration", action="store_false")
    options = parser.parse_args()
    with plain_errors(), tempfile.TemporaryDirectory() as spare:
        place = options.folder or Path(spare)
        place.mkdir(parents=True, exist_ok=True)
        main(place, threads=options.threads, registration=options.registration, n_scans=options.scans,
             seed=options.seed)

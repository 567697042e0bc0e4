"""Position errors of xreg and of every conventional method against the truth, and against what photons allow.

    python benchmarks/registration.py FOLDER [--counts 9000 1500 300 100] [--only all noise jitter ...] [--seeds 0]
                                      [--methods xreg quick slow NAME ...] [--every 4] [--positions] [--table]

A case is one scan of 143 energies, 460x460 pixels, nine particles of `xreg.synthetic`: `all` distortions together at
each number of counts, or one distortion alone at the first number. A distortion alone means: that one and photon noise
(with read noise), since without noise every error is the method's rounding; `noise` is noise alone. Of those only
jitter, walk, jumps, deformation and magnification move anything; in the others a method that always answers zero is
right.

Conventional methods (`xreg.baselines`) see the same normalised optical density as xreg, once as whole frames, once in
windows about the particles' true places in the first frame, with room for the motion. A method that measures against
the first frame judges each frame on its own, so that with `--every N` it is given every Nth frame only. One that
measures against the frame before gets all frames; the optical flows, which are too slow for that, get every Nth frame
as a stack of its own. The table says how many frames each was given.

Errors are lengths (y and x together), after every particle's constant offset (median over frames) has been taken off.
`tracked` is the share of true positions with an estimate within the particle's radius.

Every case leaves FOLDER/CASE.csv, a row per method; rows that are there are not made again, so that the command can be
stopped and started, and methods can be added. `--keep` keeps the stores, which are made anew where they are missing.
`--positions` leaves out how well the aligned stacks agree, which takes most of the time.

Cramer-Rao bound: let m be the expected counts of a frame's pixels as a function of one particle's place u. Counts of
the sample S and of the average F of the energy's own flats are independent, so that the optical density -ln(S / F) has
the variance v = (S + r^2) / S^2 + (F + r^2) / (n F^2), with r the read noise, n the number of flats and F scaled to
one flat's exposure. With dD/du = -(dm/du) / m the Fisher information of u = (y, x) is I_ab = sum (dD/da) (dD/db) / v
over the pixels, and no unbiased estimate from this frame has a mean square error below trace(I^-1). The slopes are
differences of the noise-free picture with the particle alone moved by a quarter of a pixel to either side. Everything
else is taken as known exactly: thickness, chemistry, contrast, neighbours, background. The bound is therefore one that
no method which must find these out from the data can quite reach.
"""

import argparse
import csv
import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # dask brings the threads; BLAS must not add its own

import dask
import numpy as np
import xarray as xr
from scipy import ndimage

import xreg
from xreg import baselines, quality, record
from xreg.evaluation import PRE_EDGE_MARGIN_EV, evaluate
from xreg.kernels import scoring
from xreg.plainly import folder_type, number, plain_errors
from xreg.synthetic import DISTORTIONS, Phantom, PhantomConfig, edge_spectrum
from xreg.synthetic.spectra import pre_edge_absorption

COUNTS = (9000, 1500, 300, 100)
QUICK = ("absolute-template", "relative-template", "phase-correlation", "normalised-cross-correlation",
         "variation-of-difference")
SLOW = tuple(name for name in baselines.METHODS if name not in QUICK)
FLOWS = ("optical-flow-tvl1", "optical-flow-ilk")
COLUMNS = ("method", "where", "frames", "rms", "p95", "pre_edge", "tracked", "seconds", "rigid", "bound", "bound_ratio",
           "bound_pre_edge", "measured", "sigma_ratio", "switches", "invented", "found", "worst_tracked", "ssim",
           "ssim_variance", "difference", "correlation", "flow")
#: Greatest numbers that all distortions together should leave, by counts.
GOALS = {9000: {"rms": 0.06, "p95": 0.12, "pre_edge": 0.08, "bound_ratio": 2.0}, 1500: {"rms": 0.14},
         300: {"rms": 0.32}, 100: {}}
TRACKED = 0.9  # a particle is tracked that has a position near the true one in this share of the frames
_STEP = 0.25  # px by which a particle is moved for its picture's slope


def cases(counts: list[int], only: list[str], seeds: list[int], **settings) -> dict[str, PhantomConfig]:
    """Phantom of every case by name; `settings` replace those of the phantom."""
    found = {}
    for seed in seeds:
        for name in only:
            for level in counts if name == "all" else counts[:1]:
                shared = {"n_scans": 1, "counts": float(level), "seed": seed, **settings}
                config = PhantomConfig(**shared) if name == "all" else PhantomConfig.only(name, "noise", **shared)
                found[f"{name}-{level}-seed{seed}"] = config
    return found


# -- the bound ---------------------------------------------------------------------------------------------------------


def position_bounds(phantom: Phantom, beam: np.ndarray) -> np.ndarray:
    """Square root of the Cramer-Rao bound of every position, (particle, frame), px; NaN in bad frames.

    `beam` (y, x) is the expected open beam, in counts of the sample's exposure.
    """
    bounds = np.full((len(phantom.particles), phantom.config.n_frames), np.nan)
    for frame in np.flatnonzero(phantom.frame_status == 0):
        density = phantom.optical_density(frame)
        for p in range(len(phantom.particles)):
            information = _information(phantom, frame, p, density, beam)
            if np.linalg.det(information) > 0:
                bounds[p, frame] = np.sqrt(np.trace(np.linalg.inv(information)))
    return bounds


def open_beam(raw: xr.Dataset, config: PhantomConfig) -> np.ndarray:
    """Open beam (y, x) in counts of the sample's exposure: the mean of all flats, whose noise is averaged out."""
    mean = (raw["flats"].mean("flat") - raw["darks"].mean("dark")).values * config.exposure / config.flat_exposure
    return np.maximum(mean, 1e-3 * config.counts)  # dead pixels


def _information(phantom: Phantom, frame: int, p: int, density: np.ndarray, beam: np.ndarray) -> np.ndarray:
    """Fisher information (2, 2) of one particle's place in one frame."""
    c, particle, centre, scale = phantom.config, phantom.particles[p], phantom.position(frame)[p], phantom.scale(frame)
    reach = particle.reach / scale + 4 + 4 * c.blur
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, c.shape).astype(int)
    if (high <= low).any():
        return np.zeros((2, 2))
    window = slice(low[0], high[0]), slice(low[1], high[1])
    y, x = np.mgrid[window]
    energy, progress = phantom.energy[frame], phantom.progress(phantom.scan[frame])
    reduced, oxidised = (float(edge_spectrum(energy, o)) for o in (False, True))

    def own(dy: float, dx: float) -> np.ndarray:
        place = (y - centre[0] - dy) * scale, (x - centre[1] - dx) * scale
        mixture = reduced + particle.oxidised_fraction(*place, progress) * (oxidised - reduced)
        return particle.thickness(*place, scale) * (pre_edge_absorption(energy) + mixture)

    def transmission(seen: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(np.exp(-seen), c.blur) if c.blur else np.exp(-seen)

    others = density[window] - own(0, 0)
    here = transmission(density[window])
    slopes = [(transmission(others + own(*(-_STEP * axis))) - transmission(others + own(*(_STEP * axis))))
              / (2 * _STEP) / here for axis in np.eye(2)]
    sample, flat = beam[window] * here, beam[window] * c.flat_exposure / c.exposure
    variance = (sample + c.read_noise**2) / sample**2 + (flat + c.read_noise**2) / (c.flats_per_energy * flat**2)
    return np.array([[(a * b / variance).sum() for a in slopes] for b in slopes])


# -- errors ------------------------------------------------------------------------------------------------------------


def score(tracks: np.ndarray, truth: xr.Dataset, frames: np.ndarray) -> dict[str, float]:
    """Errors of `tracks` (particle, frame, 2), which follow the true particles in their order, in some frames."""
    true_tracks, radius = truth["position"].values[:, frames], truth["radius"].values
    difference = tracks - true_tracks
    error = np.stack([np.linalg.norm(d - scoring.constant_offset(d), axis=-1) for d in difference])
    near = [scoring.seen_fraction(t, q, r) for t, q, r in zip(tracks, true_tracks, radius, strict=True)]
    before = truth["energy"].values[frames] < _edge(truth) - PRE_EDGE_MARGIN_EV
    return {"frames": len(frames), "rms": scoring.rms(error), "p95": float(np.nanpercentile(error, 95)),
            "pre_edge": scoring.rms(error[:, before]), "tracked": float(np.mean(near))}


def _edge(truth: xr.Dataset) -> float:
    return float(np.nanmedian(truth["edge_energy"].isel(scan=0).values))


def conventional(density: np.ndarray, truth: xr.Dataset, method: str, every: int) -> list[dict]:
    """Rows of a method on whole frames and in windows."""
    alone = baselines.METHODS[method].reference == "first" or method in FLOWS
    frames = np.arange(0, len(density), every if alone else 1)
    start = truth["position"].values[:, :1]
    rows = []
    for where in ("frame", "roi"):
        began = time.perf_counter()
        if where == "frame":
            shift = baselines.register(density[frames], method)
            rigid = shift - truth["rigid"].values[frames]
            also = {"rigid": scoring.rms(np.linalg.norm(rigid - scoring.constant_offset(rigid), axis=-1))}
        else:
            shift, also = register_windows(density[frames], truth, method), {}
        spent = time.perf_counter() - began
        rows.append({"method": method, "where": where, "seconds": spent, **score(start + shift, truth, frames), **also})
    return rows


def register_windows(density: np.ndarray, truth: xr.Dataset, method: str) -> np.ndarray:
    """Shift of every particle (particle, frame, 2) in a window of its own, with room for the motion."""
    half = [int(np.ceil(np.sqrt(c.sum() / np.pi) * 1.3)) + baselines.REACH_PX for c in truth["contour"].values]
    start = truth["position"].values[:, 0]
    return np.concatenate([baselines.register_rois(density, start[p : p + 1], h, method) for p, h in enumerate(half)])


def registered(result: xr.Dataset, truth: xr.Dataset, bounds: np.ndarray) -> dict:
    """Row of xreg."""
    # Maps, which would have to be fitted, are not asked for.
    e = evaluate(result.drop_vars([n for n in result if "scan" in result[n].dims]), truth)
    before = truth["energy"].values < _edge(truth) - PRE_EDGE_MARGIN_EV
    bound = scoring.rms(bounds)
    return {"method": "xreg", "where": "particle", "frames": e.frames, "rms": e.position_rms, "p95": e.position_p95,
            "pre_edge": e.position_rms_pre_edge, "tracked": e.seen_fraction, "worst_tracked": e.seen_fraction_min,
            "rigid": e.rigid_rms, "measured": e.position_rms_measured, "sigma_ratio": e.position_sigma_ratio,
            "switches": e.identity_switches,
            "invented": e.inventions, "found": e.particles_found, "bound": bound,
            "bound_ratio": e.position_rms / bound if e.position_rms else None,
            "bound_pre_edge": scoring.rms(bounds[:, before])}


def qualities(density: np.ndarray, result: xr.Dataset, truth: xr.Dataset) -> dict[str, dict]:
    """What `xreg.quality` says of the stacks aligned by xreg and, as the oracle, by the truth, in equal windows."""
    matches = scoring.match_tracks(result["position"].values, truth["position"].values, truth["radius"].values)
    true = truth["position"].values
    ours = np.full_like(true, np.nan)
    for q, r in matches.items():
        path = result["position"].values[r]
        ours[q] = path - scoring.constant_offset(path - true[q])
    frames = xr.Dataset({"optical_density": (("frame", "y", "x"), density)}, {"energy": truth["energy"]},
                        _magnification(truth))
    found = {}
    for name, position in (("xreg", ours), ("oracle", np.where(np.isfinite(ours), true, np.nan))):
        tracks = truth[["position"]].assign(position=truth["position"].copy(data=position))
        stacks = xreg.align_stacks(frames.chunk(frame=36), tracks, int(truth["y"].max()))["aligned"]
        found[name] = quality.summarize_quality(quality.measure_quality(stacks, truth["contour"]).compute())
    return found


def _magnification(truth: xr.Dataset) -> dict:
    made = truth.attrs["simulation"]
    kind = "proportional-to-energy" if made["magnification"] else "constant"
    return {"magnification": kind, "pixel_size_energy_ev": made["reference_energy"]}


# -- cases -------------------------------------------------------------------------------------------------------------


def run_case(folder: Path, name: str, config: PhantomConfig, methods: list[str], *, every: int, keep: bool,
             positions: bool) -> None:
    """Do what is missing of a case."""
    table, raw, out = (folder / f"{name}{end}" for end in (".csv", ".raw.zarr", ".out.zarr"))
    done = {row["method"] for row in read(table)}
    wanted = [m for m in methods if m not in done]
    if not wanted:
        return
    phantom = Phantom(config)
    truth = phantom.truth()
    if not raw.exists():
        record.simulate(config, raw)
    frames = xreg.open_frames(raw)
    density = xreg.normalize_frames(frames)["optical_density"].values
    for method in wanted:
        if method == "xreg":
            began = time.perf_counter()
            left = Path(f"{out}.partial").exists()
            result = xreg.open_result(out) if out.exists() else xreg.register(raw, out, lazy=True, resume=left)
            seconds = time.perf_counter() - began
            judged = {} if positions else qualities(density, result, truth)
            bounds = position_bounds(phantom, open_beam(frames, config))
            rows = [{**registered(result, truth, bounds), "seconds": seconds, **judged.get("xreg", {})}]
            rows += [{"method": "oracle", "where": "particle", **judged["oracle"]}] if judged else []
        else:
            rows = conventional(density, truth, method, every)
        write(table, [*read(table), *rows])
        print(f"{name}: {method}", *(f"{r['where']} {r.get('rms') or np.nan:.3f} px" for r in rows), flush=True)
    if not keep:
        shutil.rmtree(raw)
        shutil.rmtree(out, ignore_errors=True)


def read(table: Path) -> list[dict]:
    """Rows of a case's table; texts but for numbers, empty ones left out."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [{k: v if k in ("method", "where") else float(v) for k, v in row.items()} for row in rows]


def write(table: Path, rows: list[dict]) -> None:
    """Write a case's table; it is never half there."""
    part = table.with_name(table.name + ".partial")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, table)


# -- what is printed ---------------------------------------------------------------------------------------------------


def best(rows: list[dict], where: str | None = None) -> dict | None:
    """Row of the conventional method of smallest RMS."""
    others = [r for r in rows if r["where"] != "particle" and where in (None, r["where"])]
    return min(others, key=lambda r: r["rms"], default=None)


def show(name: str, rows: list[dict]) -> None:
    """Print one case."""
    print(f"\n{name:34s}{'where':>9s}{'frames':>7s}{'RMS':>8s}{'p95':>8s}{'pre-edge':>9s}{'tracked':>8s}{'/ best':>8s}")
    least = best(rows)
    for row in sorted((r for r in rows if "rms" in r), key=lambda r: r["rms"]):
        ratio = f"{row['rms'] / least['rms']:8.2f}" if least else ""
        numbers = "".join(f"{row.get(k, np.nan):{w}.3f}" for k, w in (("rms", 8), ("p95", 8), ("pre_edge", 9)))
        print(f"{row['method']:34s}{row['where']:>9s}{row['frames']:7.0f}{numbers}{row['tracked']:8.1%}{ratio}")
    ours, oracle = (next((r for r in rows if r["method"] == m), None) for m in ("xreg", "oracle"))
    if ours:
        others = min((r["rigid"] for r in rows if r["where"] == "frame" and "rigid" in r), default=np.nan)
        print(f"  xreg: single frames {ours.get('measured', np.nan):.3f} px, "
              f"error / sigma {ours.get('sigma_ratio', np.nan):.2f}, rigid {ours.get('rigid', np.nan):.3f} px "
              f"(best conventional one {others:.3f}), "
              f"identities switched {ours['switches']:.0f}, invented {ours['invented']:.0f}, "
              f"found {ours['found']:.0f}; Cramer-Rao bound {ours['bound']:.3f} px, "
              f"pre-edge {ours['bound_pre_edge']:.3f} px, RMS / bound {ours.get('bound_ratio', np.nan):.2f}")
    if ours and oracle:
        print("  aligned stack, by xreg and by the truth: " + ", ".join(
            f"{k} {ours[k]:.4f} {oracle[k]:.4f}" for k in quality.MEANINGS))


def goals(name: str, rows: list[dict]) -> list[tuple[str, str, str, bool]]:
    """Goals of a case: what, reached, wanted, met."""
    ours, oracle = (next((r for r in rows if r["method"] == m), None) for m in ("xreg", "oracle"))
    if ours is None:
        return []
    kind, level = name.split("-")[:2]
    found = []

    def at_most(what: str, value: float, limit: float) -> None:
        found.append((what, f"{value:.3f}", f"<= {limit:g}", bool(value <= limit)))

    if kind == "all":
        for key, limit in GOALS.get(int(level), {}).items():
            at_most(key, ours.get(key, np.nan), limit)
        share = ours["worst_tracked"]
        found.append(("tracked, worst particle", f"{share:.3f}", f">= {TRACKED:g}", share >= TRACKED))
    if int(level) == 9000:
        ratio = ours.get("sigma_ratio", np.nan)
        found.append(("error / sigma", f"{ratio:.2f}", "0.8 to 1.25", bool(0.8 <= ratio <= 1.25)))
        at_most("rigid", ours.get("rigid", np.nan), 0.05)
        at_most("switches", ours["switches"], 0)
        if oracle:
            share = ours["ssim"] / oracle["ssim"]
            found.append(("ssim / oracle's", f"{share:.4f}", ">= 0.995", bool(share >= 0.995)))
            at_most("difference / oracle's", ours["difference"] / oracle["difference"], 1.1)
    least = best(rows)
    if least:
        at_most(f"RMS / best ({least['method']}, {least['where']})", ours.get("rms", np.nan) / least["rms"],
                1 / 6 if kind == "all" else 1.0)
    return found


def main(folder: Path, chosen: dict[str, PhantomConfig], methods: list[str], *, every: int = 1, keep: bool = False,
         positions: bool = False, table: bool = False) -> None:
    """Do all cases, then print them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not table:
        for name, config in chosen.items():
            with dask.config.set(scheduler="threads", num_workers=len(os.sched_getaffinity(0))):
                run_case(folder, name, config, methods, every=every, keep=keep, positions=positions)
    tables = {name: rows for name in chosen if (rows := read(folder / f"{name}.csv"))}
    for name, rows in tables.items():
        show(name, rows)
    print(f"\n{'goal':34s}{'':46s}{'reached':>9s}{'wanted':>13s}  met")
    for name, rows in tables.items():
        for what, value, wanted, met in goals(name, rows):
            print(f"{name:34s}{what:46s}{value:>9s}{wanted:>13s}  {'yes' if met else 'NO'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=folder_type)
    parser.add_argument("--counts", type=number(int, 1), nargs="+", default=list(COUNTS))
    parser.add_argument("--only", nargs="+", default=["all", *DISTORTIONS], choices=["all", *DISTORTIONS])
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=["xreg", "quick", "slow"],
                        choices=["xreg", "quick", "slow", *baselines.METHODS])
    parser.add_argument("--every", type=number(int, 1), default=1,
                        help="every Nth frame for methods that judge frames alone")
    parser.add_argument("--keep", action="store_true", help="keep the raw stores and results")
    parser.add_argument("--positions", action="store_true", help="leave out how well the aligned stacks agree")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    groups = {"quick": QUICK, "slow": SLOW}
    names = list(dict.fromkeys(m for word in options.methods for m in groups.get(word, (word,))))
    with plain_errors(go_on="go on with the same command"):
        main(options.folder, cases(options.counts, options.only, options.seeds), names, every=options.every,
             keep=options.keep, positions=options.positions, table=options.table)

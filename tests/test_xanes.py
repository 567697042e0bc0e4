"""Edge-energy maps of stacks: laziness, chunk-blindness, missing frames, odd energies, and planted chemistry."""

import runpy
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from xreg.kernels.operators import EdgeSettings
from xreg.schema import RESULT, FitStatus, check_variable
from xreg.xanes import check_energies, fit_block, fit_edges, normalize_stack, scans_without_edge

SCAN = np.concatenate([np.linspace(8200, 8320, 22, endpoint=False), np.linspace(8320, 8374, 90, endpoint=False),
                       np.linspace(8374, 8700, 31)])
ATTRS = {"element": "Ni", "edge": "K"}


def spectrum(energy, shift):
    de = energy - 8341.0 - shift
    edge = 0.5 + np.arctan(de / 1.4) / np.pi + 0.55 * np.exp(-0.5 * ((de - 7.0) / 2.8) ** 2)
    return 0.4 * (8333.0 / energy) ** 3 + edge


def made_stack(particles=3, scans=2, size=24, counts=9000.0, seed=0):
    """Registered stack of discs whose edge moves along x and with the scan; outlines and planted shifts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    contour = np.broadcast_to(np.hypot(y, x) < 0.45 * size, (particles, size, size))
    energy, scan = np.tile(SCAN, scans), np.repeat(np.arange(scans), len(SCAN))
    slope = np.linspace(-1, 1, particles)[:, None, None, None]
    shift = 0.5 * np.arange(scans)[:, None, None] + slope * x / size
    step = np.where(contour, 0.45 + 0.1 * np.cos(y / 4), 0.0)[:, None]
    clean = step * spectrum(energy[:, None, None], np.repeat(shift, len(SCAN), axis=1))
    noisy = clean + rng.normal(size=clean.shape) * np.sqrt(np.exp(clean) / counts)
    dims = ("particle", "frame", "y", "x")
    stack = xr.DataArray(noisy.astype(np.float32), dims=dims, attrs=ATTRS,
                         coords={"energy": ("frame", energy), "scan": ("frame", scan), "y": y[:, 0], "x": x[0]})
    return stack, xr.DataArray(contour, dims=("particle", "y", "x")), shift


@pytest.fixture(scope="module")
def made():
    return made_stack()


def test_maps_hold_the_planted_shifts(made):
    stack, contour, shift = made
    maps = fit_edges(stack, contour, also=("template_shift",)).compute()
    for name in ("edge_energy", "edge_energy_sigma", "edge_step", "whiteline_energy", "fit_status"):
        check_variable(maps[name], RESULT[name])
    inside = np.broadcast_to(contour.values[:, None], maps["edge_energy"].shape)
    assert np.isfinite(maps["edge_energy"].values[inside]).mean() > 0.98
    assert np.isnan(maps["edge_energy"].values[~inside]).all()
    assert (maps["fit_status"].values[~inside] == FitStatus.OUTSIDE).all()
    error = (maps["edge_energy"].values - shift)[inside]
    assert np.nanmedian(np.abs(error - np.nanmedian(error))) < 0.12
    better = (maps["template_shift_energy"].values - shift)[inside]
    assert np.nanmedian(np.abs(better - np.nanmedian(better))) < 0.06
    assert maps["edge_energy"].attrs["definition"] == "half_step"
    assert maps["template_shift_energy"].attrs["definition"] == "template_shift"
    assert maps["edge_energy"].attrs["e0"] == 8333.0
    assert maps["edge_energy"].attrs["norm1"] == 25.0
    assert maps["fit_status"].attrs["flag_meanings"].split()[4] == "out_of_range"


@pytest.mark.parametrize("chunks", [
    {"particle": 2, "frame": 16}, {"frame": 100, "y": 7, "x": 9}, {"particle": 1, "frame": -1},
])
def test_chunks_do_not_matter(made, chunks):
    stack, contour, _ = made
    holed = stack.copy(data=stack.values.copy())
    holed[0, 30:33] = np.nan
    holed[1, ::9, :4] = np.nan
    whole = fit_edges(holed, contour, also=("whiteline_raw",)).compute()
    xr.testing.assert_identical(fit_edges(holed.chunk(chunks), contour, also=("whiteline_raw",)).compute(), whole)


def test_building_computes_nothing(made, no_compute):
    stack, contour, _ = made
    maps = fit_edges(stack.chunk({"frame": 16}), contour.chunk({"y": 5}))
    assert maps["edge_energy"].chunks[:2] == ((1, 1, 1), (1, 1))
    assert normalize_stack(stack.chunk({"frame": 16})).chunks is not None


def test_one_particle_of_one_scan_reads_its_chunks_alone(made):
    stack, contour, _ = made
    seen = []

    def note(block, block_id):
        seen.append(block_id)
        return block

    lazy = stack.chunk({"particle": 1, "frame": 16})
    lazy = lazy.copy(data=da.map_blocks(note, lazy.data, meta=np.empty((0,) * 4, np.float32)))
    fit_edges(lazy, contour)["edge_energy"].isel(particle=1, scan=1).compute(scheduler="synchronous")
    assert {p for p, *_ in seen} == {1}
    assert {k for _, k, *_ in seen} == set(range(143 // 16, -(-286 // 16)))


def test_order_of_frames_and_missing_frames(made):
    stack, contour, shift = made
    order = np.random.default_rng(0).permutation(stack.sizes["frame"])
    whole = fit_edges(stack, contour).compute()
    mixed = fit_edges(stack.isel(frame=order), contour)
    np.testing.assert_allclose(mixed["edge_energy"], whole["edge_energy"], rtol=1e-12)
    fewer = stack.isel(frame=np.delete(np.arange(286), [3, 60, 61, 143, 285]))
    error = fit_edges(fewer, contour)["edge_energy"].values - shift
    assert np.isfinite(error).sum() > 0.98 * np.isfinite(whole["edge_energy"].values).sum()
    assert np.nanmedian(np.abs(error - np.nanmedian(error))) < 0.12


def test_missing_pixels_are_fitted_with_the_energies_they_have(made):
    stack, contour, shift = made
    holed = stack.copy(data=stack.values.copy())
    holed[:, 20:26] = np.nan                     # blank frames
    holed[0, 50:54, 8:12, ::2] = np.nan          # pixels that a frame misses
    holed[0, 85:143, 20:] = np.nan               # pixels without post-edge
    holed[1, :143] = np.nan                      # a particle that is not seen in a scan
    maps = fit_edges(holed, contour).compute()
    error = maps["edge_energy"].values - shift
    inside = contour.values
    assert np.isfinite(error[0, 0, 8:12, 8:12]).all()
    # The scan has all energies; it is the frames that are missing.
    assert (maps["fit_status"].values[0, 0, 20:][inside[0, 20:]] == FitStatus.BAD_FRAMES).all()
    assert (maps["fit_status"].values[1, 0][inside[1]] == FitStatus.BAD_FRAMES).all()
    assert np.nanmedian(np.abs(error - np.nanmedian(error))) < 0.12
    bad = ~np.isfinite(maps["edge_energy"].values)
    assert (maps["fit_status"].values[bad] != FitStatus.OK).all()
    assert (maps["fit_status"].values[~bad] == FitStatus.OK).all()


def test_two_energies_give_a_status(made):
    stack, contour, _ = made
    two = stack.isel(frame=[20, 80])
    assert two["energy"].values == pytest.approx([8309, 8354.8], abs=1)
    maps = fit_edges(two, contour).compute()
    assert set(np.unique(maps["fit_status"])) == {FitStatus.OUTSIDE, FitStatus.TOO_FEW_ENERGIES}
    assert np.isnan(maps["edge_energy"]).all()


def test_repeated_energies_are_averaged(made):
    stack, contour, _ = made
    once = fit_edges(stack, contour).compute()
    twice = fit_edges(xr.concat([stack, stack], dim="frame"), contour).compute()
    np.testing.assert_allclose(twice["edge_energy"], once["edge_energy"], rtol=1e-9)


def test_kev_is_converted_with_a_notice(made):
    stack, contour, _ = made
    kev = stack.assign_coords(energy=stack["energy"] / 1000)
    with pytest.warns(UserWarning, match="taken as keV"):
        maps = fit_edges(kev, contour)
    np.testing.assert_allclose(maps["edge_energy"], fit_edges(stack, contour)["edge_energy"], rtol=1e-9)


def test_without_contour_or_attributes(made):
    stack, contour, _ = made
    bare = stack.copy()
    bare.attrs = {}
    maps = fit_edges(bare).compute()
    inside = np.broadcast_to(contour.values[:, None], maps["edge_energy"].shape)
    assert (maps["fit_status"].values[inside] == FitStatus.OK).mean() > 0.98
    outside = maps["fit_status"].values[~inside]
    assert np.isin(outside, [FitStatus.NO_EDGE, FitStatus.THIN]).mean() > 0.99
    assert maps["edge_energy"].attrs["e0"].startswith("largest derivative")


def test_block_function_equals_the_lazy_maps(made):
    stack, contour, _ = made
    maps = fit_edges(stack, contour).compute()
    block = fit_block(stack.values[:, :143], SCAN, contour.values, EdgeSettings(e0=8333.0))
    for name, values in block.items():
        np.testing.assert_array_equal(values, maps[name].values[:, 0])


def test_normalised_stack(made):
    stack, contour, _ = made
    norm = normalize_stack(stack, contour, flat=True).compute()
    assert norm.dims == stack.dims
    assert norm.dtype == np.float32
    inside = contour.values[0]
    last = norm.values[0, 120:140][:, inside]
    assert np.median(last) == pytest.approx(1.0, abs=0.02)
    assert np.isnan(norm.values[0][:, ~inside]).all()
    repeated = normalize_stack(xr.concat([stack[:1], stack[:1]], dim="frame"), contour[:1]).compute()
    assert repeated.shape[1] == 572
    assert np.isfinite(repeated.values[0][:, inside]).all()


def test_scans_may_differ_in_their_energies(made):
    stack, contour, _ = made
    mixed = stack.isel(frame=np.r_[0:143, 144:286])
    attrs = fit_edges(mixed, contour)["edge_energy"].attrs
    assert len(attrs["pre1"] if isinstance(attrs["pre1"], list) else [1]) in (1, 2)


def test_edge_outside_all_energies(made):
    stack, contour, _ = made
    for given in ({"e0": 7112.0}, {"aligned": stack.assign_attrs(element="Fe")}):
        with pytest.raises(ValueError, match=r"e0 is 7112 eV but the energies run from 8200 to 8700 eV"):
            fit_edges(**{"aligned": stack, "contour": contour, **given})


def test_scans_without_energies_before_or_after_the_edge(made):
    stack, contour, _ = made
    energy = stack["energy"].values
    with pytest.raises(ValueError, match="need at least two energies on either side of the edge"):
        fit_edges(stack.isel(frame=np.flatnonzero(energy < 8330)), contour)
    for some, e0 in ((energy < 8348, 8333.0), (energy > 8337, 8341.0)):  # too short beyond the spectrum's own edge
        maps = fit_edges(stack.isel(frame=np.flatnonzero(some)), contour, e0=e0).compute()
        inside = np.broadcast_to(contour.values[:, None], maps["fit_status"].shape)
        assert (maps["fit_status"].values[inside] == FitStatus.TOO_FEW_ENERGIES).all()
    one = stack.isel(frame=np.flatnonzero((energy < 8348) | (stack["scan"].values == 1)))
    maps = fit_edges(one, contour)  # another scan is whole
    assert np.isnan(maps["edge_energy"][:, 0]).all()
    assert np.isfinite(maps["edge_energy"][:, 1]).sum() == contour.values.sum()


def test_some_frames_of_a_scan_need_not_reach_over_the_edge(made):
    stack, contour, _ = made
    part = stack.isel(frame=np.flatnonzero(stack["energy"].values < 8330))
    inside = np.broadcast_to(contour.values[:, None], (3, 2, 24, 24))
    for settings in ({}, {"e0": 8333.0, "pre1": -120.0, "pre2": -40.0, "norm1": 50.0, "norm2": 300.0, "nnorm": 1}):
        maps = fit_edges(part, contour, incomplete=True, **settings)
        assert np.isnan(maps["edge_energy"]).all()
        assert not np.isin(maps["fit_status"].values[inside], [FitStatus.OK, FitStatus.FAILED]).any()
    energy, scan = part["energy"].values, part["scan"].values
    with pytest.raises(ValueError, match="need at least two energies on either side of the edge"):
        check_energies(energy, scan, stack.attrs)
    with pytest.raises(ValueError, match="fit settings have no smoothing"):
        check_energies(stack["energy"].values, stack["scan"].values, stack.attrs, smoothing=1)
    check_energies(stack["energy"].values, stack["scan"].values, stack.attrs)


def test_energies_that_are_read_back_twice(made):
    """Two exposures per energy, a few meV apart: no slope is to be seen between them."""
    stack, contour, shift = made
    rng = np.random.default_rng(2)
    energy = np.repeat(SCAN, 2) + rng.normal(0, 2e-3, 2 * len(SCAN))
    twice = stack.isel(frame=np.repeat(np.arange(len(SCAN)), 2)).assign_coords(energy=("frame", energy))
    twice = twice + xr.DataArray(0.01 * rng.normal(size=twice.shape).astype(np.float32), dims=twice.dims)
    maps = fit_edges(twice.assign_attrs(ATTRS), contour).compute()
    inside = np.broadcast_to(contour.values[:, None], maps["edge_energy"].shape)
    error = (maps["edge_energy"].values - shift[:, :1])[inside]
    assert np.nanmedian(np.abs(error - np.nanmedian(error))) < 0.12
    assert (maps["fit_status"].values[inside] == FitStatus.OK).mean() > 0.98
    assert isinstance(maps["edge_energy"].attrs["pre1"], float)


def test_what_is_neither_inside_nor_outside_is_outside(made):
    stack, contour, _ = made
    filled = contour.where(contour)  # NaN outside
    xr.testing.assert_identical(fit_edges(stack, filled).compute(), fit_edges(stack, contour).compute())


def test_labels_must_agree(made):
    stack, contour, _ = made
    stack = stack.assign_coords(particle=[7, 3, 5])
    with pytest.raises(ValueError, match="labels differ along particle; select the same of both"):
        fit_edges(stack, contour.assign_coords(particle=[3, 7, 5]))
    with pytest.raises(ValueError, match="labels differ along x"):
        fit_edges(stack, contour.assign_coords(x=np.arange(24)))
    maps = fit_edges(stack, contour.assign_coords(particle=[7, 3, 5]))
    np.testing.assert_array_equal(maps["particle"], [7, 3, 5])


def test_a_task_holds_the_energies_of_its_own_scan(made):
    import pickle

    stack, _, _ = made
    few, many = (stack.isel(particle=[0], frame=np.tile(np.arange(143), n)).assign_coords(
        scan=("frame", np.repeat(np.arange(n), 143))).chunk(frame=143) for n in (4, 32))
    sizes = [len(pickle.dumps(fit_edges(s)["edge_energy"][:, -1].__dask_graph__().layers)) for s in (few, many)]
    per_scan = (sizes[1] - sizes[0]) / 28
    assert per_scan < 3 * sizes[0] / 4


def test_scans_that_cannot_be_fitted_are_named(made):
    stack, _, _ = made
    energy, scan = (stack[name].values.copy() for name in ("energy", "scan"))
    assert scans_without_edge(energy, scan, ATTRS) == []
    few = (scan == 0) | np.isin(np.arange(286), 143 + np.arange(0, 143, 40))
    energy[0] = np.nan
    assert scans_without_edge(energy[few][::-1], scan[few][::-1], ATTRS) == [1]
    assert scans_without_edge(energy[few], scan[few], {"element": "Ce", "edge": "L3"}) == []


def test_frames_of_unknown_energy_are_left_out(made):
    stack, contour, _ = made
    energy = stack["energy"].values.copy()
    energy[[4, 200]] = np.nan
    known = np.flatnonzero(np.isfinite(energy))
    maps = fit_edges(stack.assign_coords(energy=("frame", energy)), contour)
    xr.testing.assert_identical(maps.compute(), fit_edges(stack.isel(frame=known), contour).compute())


def test_ranges_that_the_energies_forbid_are_told(made):
    stack, contour, _ = made
    with pytest.warns(UserWarning, match=r"run from -133 to \+367 eV about e0.*pre1 -300 -> -133, norm2 900 -> 367"):
        maps = fit_edges(stack, contour, pre1=-300.0, norm2=900.0)
    assert (maps["edge_energy"].attrs["pre1"], maps["edge_energy"].attrs["norm2"]) == (-133.0, 367.0)
    with pytest.raises(ValueError, match="pre2 is 40; need an offset below e0"):
        fit_edges(stack, contour, pre2=40.0)
    with pytest.raises(ValueError, match="norm1 is -5; need an offset above e0"):
        fit_edges(stack, contour, norm1=-5.0)


def test_elements_are_looked_up(made):
    stack, contour, _ = made
    assert fit_edges(stack.assign_attrs(element="ni", edge="k"), contour)["edge_energy"].attrs["e0"] == 8333.0
    with pytest.warns(UserWarning, match="the edge Ce L3 is not tabulated here"):
        maps = fit_edges(stack.assign_attrs(element="Ce", edge="L3"), contour)
    assert np.isfinite(maps["edge_energy"]).sum() == 2 * contour.values.sum()


def test_one_pixel_and_one_particle(made):
    stack, contour, _ = made
    whole = fit_edges(stack, contour).compute()
    one = fit_edges(stack.isel(particle=[1]), contour.isel(particle=[1]), also="e0").compute()
    np.testing.assert_array_equal(one["edge_energy"][0], whole["edge_energy"][1])
    assert "e0_energy_sigma" in one
    pixel = fit_edges(stack.isel(particle=[1], y=[12], x=[12])).compute()
    assert np.abs(pixel["edge_energy"].values.ravel() - whole["edge_energy"].values[1, :, 12, 12]).max() < 0.5
    with pytest.raises(ValueError, match=r"such as stack\.isel\(particle=\[0\]\), which keeps the dimension"):
        fit_edges(stack.isel(particle=1))


def test_pixels_without_a_spectrum(made):
    stack, contour, _ = made
    inside = np.broadcast_to(contour.values[:, None], (3, 2, 24, 24))
    for values, status in ((np.nan, FitStatus.BAD_FRAMES), (0.3, FitStatus.NO_EDGE)):
        maps = fit_edges(xr.full_like(stack, values), contour).compute()
        assert (maps["fit_status"].values[inside] == status).all()
        assert np.isnan(maps["edge_energy"]).all()
        assert np.isnan(normalize_stack(xr.full_like(stack, values), contour)).all()


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"pre1": np.nan}, "pre1 is nan; need a number of eV from e0"),
    ({"norm1": np.nan}, "norm1 is nan; need"),
    ({"norm2": "a"}, "norm2 is 'a'; need"),
    ({"e0": "a"}, "e0 is 'a'; need a number of eV, more than 0"),
    ({"e0": np.nan}, "e0 is nan; need"),
    ({"nnorm": "a"}, "nnorm is 'a'; need a whole number, 0 or more"),
    ({"nvict": -1}, "nvict is -1; need"),
    ({"nvict": None}, "nvict is None; need"),
    ({"bandwidth": 0.0}, r"bandwidth is 0\.0; need a number of eV, more than 0"),
    ({"bandwidth": -3.0}, "bandwidth is"),
    ({"max_shift": -1.0}, "max_shift is"),
    ({"max_gap": np.nan}, "max_gap is"),
    ({"also": 5}, "also is 5; need names of further edge energies: some of half_step"),
    ({"search": 5}, "search is 5; need two offsets"),
    ({"search": (-20.0, np.nan)}, "an end of search is nan"),
])
def test_settings_that_cannot_be_are_refused(made, settings, sentence):
    for fit in (fit_edges, normalize_stack):
        with pytest.raises(ValueError, match=sentence):
            fit(made[0], **settings)


def test_settings_that_can_be_are_taken(made):
    settings = {"norm2": -1, "max_sigma": np.inf, "search": [-20, 30], "also": ["e0"], "nnorm": np.int64(1), "e0": 8341}
    assert "e0_energy" in fit_edges(made[0], **settings)


@pytest.mark.parametrize(("spoil", "sentence"), [
    (lambda stack: stack.to_dataset(name="stacks"), r'aligned is a Dataset; .* such as \["stacks"\]'),
    (lambda stack: stack.values, r"aligned is a ndarray; need a DataArray with dims \('particle', 'frame', 'y', 'x'\)"),
    (lambda _: "result.zarr", "aligned is a str; need a DataArray .* open the store first"),
])
def test_other_things_than_stacks_are_refused(made, spoil, sentence):
    for fit in (fit_edges, normalize_stack):
        with pytest.raises(ValueError, match=sentence):
            fit(spoil(made[0]))
    with pytest.raises(ValueError, match=r'contour is a Dataset; .* such as \["contour"\]'):
        fit_edges(made[0], made[1].to_dataset(name="contour"))


def test_wrong_input(made):
    stack, contour, _ = made
    with pytest.raises(ValueError, match="the stack has dims"):
        fit_edges(stack.transpose("frame", "particle", "y", "x"), contour)
    with pytest.raises(ValueError, match=r"has no coordinate scan on its frames; add it with stack\.assign_coords"):
        fit_edges(stack.drop_vars("scan"), contour)
    with pytest.raises(ValueError, match="scan is not finite for 4 frames"):
        fit_edges(stack.assign_coords(scan=("frame", np.where(np.arange(286) < 4, np.nan, 0.0))), contour)
    with pytest.raises(ValueError, match="contour has dims"):
        fit_edges(stack, contour.transpose("y", "particle", "x"))
    with pytest.raises(ValueError, match="fit settings have no smoothing; choose from definition"):
        fit_edges(stack, contour, smoothing=3)
    with pytest.raises(ValueError, match="need photon energies in eV"):
        fit_edges(stack.assign_coords(energy=stack["energy"] * 0), contour)


def test_threads_do_not_matter(made):
    stack, contour, _ = made
    lazy = fit_edges(stack, contour)["edge_energy"]
    with dask.config.set(scheduler="synchronous"):
        alone = lazy.compute()
    xr.testing.assert_identical(lazy.compute(scheduler="threads"), alone)


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_accuracy_benchmark_runs_small(tmp_path, capsys):
    """Without its registration, which would cost most of the time and is tested elsewhere."""
    main = runpy.run_path(str(BENCHMARKS / "xanes_accuracy.py"))["main"]
    energies = tuple(np.r_[8200:8320:40, 8324:8360:1.5, 8380:8700:60.0])
    errors = main(tmp_path, threads=1, registration=False, n_scans=1, energies=energies, shape=(96, 96), n_particles=1,
                  radius=(18, 19), touching=0, jumps=0.0, deformation=0.5, flats_per_energy=1, n_darks=1)
    rows = errors["by the truth"]
    assert rows["half_step"].edge_fitted > 0.98
    assert rows["template_shift"].edge_error_centred < rows["half_step"].edge_error_centred < 0.3
    assert "template_shift" in capsys.readouterr().out


def test_speed_benchmark_runs_small(capsys):
    speeds = runpy.run_path(str(BENCHMARKS / "xanes_speed.py"))["main"](pixels=1, threads=1, sample=5, rounds=1)
    assert min(speeds.values()) > 0
    assert "spectra/s" in capsys.readouterr().out

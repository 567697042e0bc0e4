"""Reference fits, oxidation states and particle summaries of stacks."""

import numpy as np
import pytest
import xarray as xr

from xreg.chemistry import fit_references, oxidation_state, summarize_particles

SCAN = np.concatenate([np.arange(8280, 8325, 5.0), np.arange(8325, 8370, 1.0), np.arange(8370, 8451, 10.0)])


def edge(energy, at):
    de = energy - at
    return 0.5 + np.arctan(de / 1.4) / np.pi + 0.6 * np.exp(-0.5 * ((de - 7.0) / 2.8) ** 2)


FINE = np.arange(8250, 8500, 0.5)
REFERENCES = {"Ni2+": (FINE, edge(FINE, 8341.0)), "Ni4+": (FINE, edge(FINE, 8344.0))}


@pytest.fixture(scope="module")
def made():
    """Normalised stack of 2 particles in 2 scans, share of Ni4+ rising along x and with the scan."""
    y, x = np.mgrid[:12, :12] - 5.5
    share = np.stack([np.stack([0.3 + 0.2 * s + 0.03 * x + 0 * y for s in range(2)])] * 2)
    energy = np.tile(SCAN, 2)
    mix = np.repeat(share, len(SCAN), axis=1)
    e = energy[:, None, None]
    norm = (1 - mix) * edge(e, 8341.0) + mix * edge(e, 8344.0)
    norm += 0.01 * np.random.default_rng(0).normal(size=norm.shape)
    norm[0, 5, 0, 0] = np.nan
    stack = xr.DataArray(norm.astype(np.float32), dims=("particle", "frame", "y", "x"),
                         coords={"energy": ("frame", energy), "scan": ("frame", np.repeat([4, 7], len(SCAN)))})
    return stack, share


def test_building_computes_nothing(made, no_compute):
    stack = made[0].chunk({"frame": 10})
    assert fit_references(stack, REFERENCES)["weight"].chunks is not None
    maps = stack[:, :2].drop_vars(["energy", "scan"]).rename(frame="scan")
    contour = xr.DataArray(np.ones((2, 12, 12), bool), dims=("particle", "y", "x")).chunk()
    assert summarize_particles(maps, contour)["mean"].chunks is not None
    assert oxidation_state(maps, [(8341.0, 2.0), (8344.0, 4.0)], maps)["oxidation_state"].chunks is not None


def test_shares_equal_the_planted_ones(made):
    stack, share = made
    maps = fit_references(stack, REFERENCES).compute()
    assert maps["reference"].values.tolist() == ["Ni2+", "Ni4+"]
    assert maps["scan"].values.tolist() == [4, 7]
    error = maps["weight"].sel(reference="Ni4+").values - share
    assert np.isfinite(error).all()
    assert np.nanstd(error / maps["weight_sigma"].sel(reference="Ni4+").values) == pytest.approx(1.0, abs=0.2)
    again = fit_references(stack.chunk({"y": 5, "frame": 7}), REFERENCES).compute()
    xr.testing.assert_identical(again, maps)


def test_a_common_shift_is_fitted_along(made):
    stack, share = made
    moved = stack.assign_coords(energy=stack["energy"] + 0.7)
    maps = fit_references(moved, REFERENCES, max_shift=1.5, energy_range=(8300, 8400)).compute()
    assert np.nanmedian(maps["energy_shift"]) == pytest.approx(0.7, abs=0.05)
    assert np.nanmedian(maps["weight"].sel(reference="Ni4+").values - share) == pytest.approx(0.0, abs=0.03)


def test_references_on_another_scale(made):
    wrong = {"Fe": (FINE - 1200.0, edge(FINE, 8341.0))}
    with pytest.raises(ValueError, match="Check that data and references share one energy scale"):
        fit_references(made[0], wrong)
    with pytest.raises(ValueError, match="references is empty"):
        fit_references(made[0], {})
    with pytest.warns(UserWarning, match="taken as keV"):
        fit_references(made[0], {"Ni2+": (FINE / 1000, REFERENCES["Ni2+"][1])})
    with pytest.raises(ValueError, match="reference Ni has energies of shape"):
        fit_references(made[0], {"Ni": (FINE, FINE[1:])})
    with pytest.raises(ValueError, match="reference Ni has 3 different energies with a value"):
        fit_references(made[0], {"Ni": (FINE[:3], FINE[:3])})


def test_references_may_be_unsorted_and_have_repeats_and_gaps(made):
    plain = fit_references(made[0], REFERENCES).compute()
    order = np.random.default_rng(0).permutation(np.r_[np.arange(FINE.size), 0:FINE.size:7])
    mixed = {name: (e[order], n[order]) for name, (e, n) in REFERENCES.items()}
    mixed["Ni2+"][1][mixed["Ni2+"][0] == 8480.0] = np.nan
    xr.testing.assert_allclose(fit_references(made[0], mixed).compute(), plain, rtol=1e-6)


def test_pixels_are_fitted_with_the_energies_they_have(made):
    stack, share = made
    holed = stack.copy(data=stack.values.copy())
    holed[:, 20:23] = np.nan  # blank frames
    holed[1, 66:, 3, 3] = np.nan  # a pixel that is missing from nearly a whole scan
    fewer = holed.isel(frame=np.delete(np.arange(stack.sizes["frame"]), [0, 15, 80]))
    maps = fit_references(fewer, REFERENCES).compute()
    error = maps["weight"].sel(reference="Ni4+").values - share
    assert np.isnan(error[1, 1, 3, 3])
    assert np.isfinite(error).sum() == error.size - 1
    assert np.nanstd(error / maps["weight_sigma"].sel(reference="Ni4+").values) == pytest.approx(1.0, abs=0.2)


def test_another_energy_scale_is_told(made):
    moved = made[0].assign_coords(energy=made[0]["energy"] + 3.0)
    with pytest.warns(UserWarning, match=r"particle \d in scan \d fit .* are moved by \+[23]\.?5? eV.*max_shift"):
        fit_references(moved, REFERENCES).compute(scheduler="synchronous")
    fit_references(made[0].assign_coords(energy=made[0]["energy"] + 0.3), REFERENCES).compute()
    fit_references(moved, REFERENCES, max_shift=4.0).compute()


def test_oxidation_state_is_a_line_through_the_points():
    energy = xr.DataArray([8341.0, 8342.5, np.nan], dims="x", attrs={"definition": "half_step"})
    out = oxidation_state(energy, [(8341.0, 2.0), (8344.0, 4.0)], xr.full_like(energy, 0.3))
    np.testing.assert_allclose(out["oxidation_state"], [2.0, 3.0, np.nan])
    np.testing.assert_allclose(out["oxidation_state_sigma"], 0.2)
    assert out["oxidation_state"].attrs["definition"] == "half_step"
    assert "calibration_sigma" not in out
    with pytest.raises(ValueError, match="points hold 1 different edge energies"):
        oxidation_state(energy, [(8341.0, 2.0), (8341.0, 3.0)])
    with pytest.raises(ValueError, match=r"points have lengths \[2, 3\]"):
        oxidation_state(energy, [(8341.0, 2.0), (8342.0, 3.0, 0.1)])
    with pytest.raises(ValueError, match=r"errors \[0\.1, 0\.0\]; need positive"):
        oxidation_state(energy, [(8341.0, 2.0, 0.1), (8342.0, 3.0, 0.0)])


@pytest.mark.parametrize(("points", "sentence"), [
    ([(8.345, 2), (8.348, 3)], r"edge energies from 8\.345 to 8\.348, which are not in eV; .* multiply keV by 1000"),
    ([(8341.0, 2.0), (np.nan, 3.0)], "points hold 1 values that are not finite"),
    ({8341.0: 2.0, 8344.0: 4.0}, r"points are \{8341\.0: 2\.0, .*; need \(energy, state\) or"),
    ([("a", "b"), ("c", "d")], "in a list, in numbers"),
    (5, "points are 5; need"),
])
def test_points_that_are_none_are_refused(points, sentence):
    with pytest.raises(ValueError, match=sentence):
        oxidation_state(xr.DataArray([8341.0], dims="x"), points)


def test_other_things_than_arrays_of_energies_are_refused():
    points, energy = [(8341.0, 2.0), (8344.0, 4.0)], xr.DataArray([8341.0], dims="x", name="edge_energy")
    with pytest.raises(ValueError, match=r'edge_energy is a Dataset; .* such as \["edge_energy"\]'):
        oxidation_state(energy.to_dataset(), points)
    with pytest.raises(ValueError, match="edge_energy_sigma is a float; need a DataArray"):
        oxidation_state(energy, points, 0.3)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"max_shift": np.nan}, "max_shift is nan; need a number of eV, 0 or more"),
    ({"max_shift": -1.0}, r"max_shift is -1\.0; need"),
    ({"energy_range": (np.nan, 8400.0)}, r"energy_range is \(nan, 8400\.0\); need \(lowest, highest\)"),
    ({"energy_range": (8400.0, 8300.0)}, "energy_range is"),
    ({"energy_range": 8300.0}, r"energy_range is 8300\.0; need"),
])
def test_settings_that_are_none_are_refused(made, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit_references(made[0], REFERENCES, **settings)
    for references in ([1], {"Ni2+": 5}, {"Ni2+": (FINE,)}):
        with pytest.raises(ValueError, match="references are no names with spectra; need a dict such as"):
            fit_references(made[0], references)


@pytest.mark.parametrize("stated", [True, False])
def test_the_error_of_the_calibration_is_what_repeated_calibrations_scatter(stated):
    """Calibrations of two to six points are drawn again and again with errors of their energies."""
    rng = np.random.default_rng(0)
    true, state = np.linspace(8341.0, 8345.0, 3 if stated else 6), np.linspace(2.0, 4.0, 3 if stated else 6)
    sigma = np.array([0.05, 0.1, 0.2]) if stated else np.full(6, 0.1)
    at = xr.DataArray([8340.0, 8342.0, 8346.0], dims="x")
    found, told = [], []
    for _ in range(300):
        drawn = true + sigma * rng.normal(size=true.size)
        points = np.column_stack((drawn, state, sigma) if stated else (drawn, state))
        out = oxidation_state(at, points)
        found.append(out["oxidation_state"].values)
        told.append(out["calibration_sigma"].values ** 2)
    np.testing.assert_allclose(np.std(found, axis=0), np.sqrt(np.mean(told, axis=0)), rtol=0.15)


def test_particles_over_time():
    y, x = np.mgrid[:21, :21] - 10.0
    contour = xr.DataArray(np.stack([np.hypot(y, x) < 9] * 2), dims=("particle", "y", "x"))
    maps = np.stack([np.stack([8340.0 + s + 0.1 * p * x - 0.05 * np.hypot(y, x) for s in range(3)]) for p in range(2)])
    maps = xr.DataArray(maps, dims=("particle", "scan", "y", "x"), coords={"scan": [0, 1, 2]}, attrs={"units": "eV"})
    table = summarize_particles(maps.chunk({"y": 4}), contour).compute()
    np.testing.assert_allclose(table["mean"].diff("scan"), 1.0, atol=1e-9)
    np.testing.assert_allclose(table["gradient"][1].values, [[0, 0.1]] * 3, atol=1e-9)
    assert (table["core_offset"].sel(axis="x")[1] > 2).all()
    assert (table["profile"][0].diff("shell") > 0).all()
    assert table["gradient"].attrs["units"] == "eV/px"
    assert int(table["count"][0, 0]) == int(contour[0].sum())
    with pytest.raises(ValueError, match="maps has dims"):
        summarize_particles(maps[0], contour)
    for given, shells, sentence in (
        ((maps, contour), 0, "shells is 0; need a whole number, 1 or more"), ((maps, contour), -1, "shells is -1"),
        ((maps[:0], contour[:0]), 5, "there is no particle; need at least one"),
        ((maps, contour.values), 5, "contour is a ndarray; need a DataArray"),
        ((maps.to_dataset(name="energies"), contour), 5, r'edge_energy is a Dataset; .* such as \["energies"\]'),
    ):
        with pytest.raises(ValueError, match=sentence):
            summarize_particles(*given, shells=shells)

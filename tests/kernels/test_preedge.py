"""Single spectra against Larch: stored answers where measured files are at hand, live ones where Larch is installed."""

import csv
import warnings

import numpy as np
import pytest

from xreg.kernels.preedge import (
    distinct_energies,
    find_e0,
    merge_repeats,
    normalize_spectrum,
    resolve_ranges,
    to_electronvolts,
)


def nickel(energy, shift=0.0, oxide=True):
    """Analytic Ni K-edge: arctangent step at 8341.5 eV, white line, falling background."""
    de = energy - 8341.5 - shift
    line = 0.6 * np.exp(-0.5 * ((de - 7.0) / 2.8) ** 2) if oxide else 0.0
    return 0.4 * (8333.0 / energy) ** 3 + 0.5 + np.arctan(de / 1.4) / np.pi + line


GRID = np.concatenate([np.arange(8200, 8320, 5.0), np.arange(8320, 8380, 0.5), np.arange(8380, 8701, 8.0)])


def read_mu(folder, name):
    """Energy and absorption of one measured spectrum, None for formats that only Larch reads."""
    if ".prj" in name:
        return None
    path = folder / name.split(" ")[0]
    table = np.loadtxt(path)
    if path.suffix != ".xdi":
        return table[:, 0] * (1000.0 if "keV" in name else 1.0), table[:, 1]
    with path.open() as lines:
        names = [line.split(":")[1].split()[0] for line in lines if line.startswith("# Column")]
    columns = dict(zip(names, table.T, strict=False))
    mu = columns["mutrans"] if "mutrans" in columns else np.log(columns["i0"] / columns["itrans"])
    return columns["energy"], mu


def expected(shared_data):
    with (shared_data / "expected_larch_2026.3.1.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_measured_spectra_have_the_stored_answers_of_larch(shared_data):
    seen = 0
    for row in expected(shared_data):
        spectrum = read_mu(shared_data / row["source"], row["name"])
        if spectrum is None:
            continue
        s = normalize_spectrum(*spectrum)
        assert s.e0 == pytest.approx(float(row["e0"]), abs=6e-4), row["name"]
        assert s.edge_step == pytest.approx(float(row["edge_step"]), rel=6e-6)
        for name in ("pre1", "pre2", "norm1", "norm2", "nnorm", "nvict"):
            assert getattr(s, name) == pytest.approx(float(row[name]), abs=6e-4), (row["name"], name)
        half = s.energy[np.argmax(s.norm > 0.5)]
        assert abs(half - float(row["e_half_norm"])) < 5.0
        seen += 1
    assert seen >= 30


def larch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("larch", reason="xraylarch is not installed")
        from larch import Group, io, xafs
    return Group, io, xafs


def same_as_larch(group_class, xafs, energy, mu, **ranges):
    group = group_class(energy=energy.copy(), mu=mu.copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xafs.pre_edge(group, **ranges)
    s = normalize_spectrum(energy, mu, **ranges)
    details = group.pre_edge_details
    for name in ("pre1", "pre2", "norm1", "norm2", "nnorm", "nvict"):
        assert getattr(s, name) == pytest.approx(getattr(details, name), abs=1e-9)
    assert s.e0 == group.e0
    assert s.edge_step == pytest.approx(group.edge_step, rel=1e-9)
    for name in ("norm", "pre_edge", "post_edge", "flat"):
        theirs = getattr(group, name)
        # Near its zeros `norm` is a difference of large numbers, so that its own size cannot be the measure.
        np.testing.assert_allclose(getattr(s, name), theirs, rtol=1e-9, atol=1e-12 * np.abs(theirs).max())
    return s


def test_every_measured_spectrum_equals_larch(shared_data):
    group_class, io, xafs = larch()
    projects = {}
    for row in expected(shared_data):
        folder = shared_data / row["source"]
        spectrum = read_mu(folder, row["name"])
        if spectrum is None:
            file, name = row["name"].split(":")
            if file not in projects:
                projects[file] = io.read_athena(str(folder / file), do_bkg=False, do_fft=False)
            spectrum = getattr(projects[file], name).energy, getattr(projects[file], name).mu
        s = same_as_larch(group_class, xafs, *spectrum)
        same_as_larch(group_class, xafs, *spectrum, e0=s.e0, pre1=0.9 * s.pre1, pre2=0.3 * s.pre1,
                      norm1=0.3 * s.norm2, norm2=0.95 * s.norm2, nnorm=2, nvict=2)


@pytest.mark.parametrize("n", [30, 62, 99, 143, 220])
def test_noisy_spectra_of_any_length_equal_larch(n):
    group_class, _, xafs = larch()
    rng = np.random.default_rng(n)
    for noise in (0.0, 0.003, 0.03):
        energy = np.sort(rng.uniform(8200, 8700, n))
        same_as_larch(group_class, xafs, energy, nickel(energy) + noise * rng.normal(size=n))


def test_lines_and_step_are_those_of_the_definition():
    mu = 0.3 + 2e-4 * (GRID - 8333) + 0.8 * (GRID > 8340) * (1 + 1e-4 * (GRID - 8340))
    s = normalize_spectrum(GRID, mu, e0=8340.0, pre1=-130, pre2=-30, norm1=30, norm2=300, nnorm=1)
    assert s.edge_step == pytest.approx(0.8, rel=1e-9)
    np.testing.assert_allclose(s.pre_edge, 0.3 + 2e-4 * (GRID - 8333), rtol=1e-9)
    np.testing.assert_allclose(s.flat[GRID > 8341], 1.0, rtol=1e-9)


def test_shift_scale_and_offset():
    s = normalize_spectrum(GRID, nickel(GRID))
    moved = normalize_spectrum(GRID + 1.0, nickel(GRID), e0=s.e0 + 1.0)
    assert (moved.pre1, moved.pre2, moved.norm1, moved.norm2) == (s.pre1, s.pre2, s.norm1, s.norm2)
    np.testing.assert_allclose(moved.norm, s.norm, atol=1e-11)
    scaled = normalize_spectrum(GRID, 3.0 * nickel(GRID) + 0.7)
    assert scaled.edge_step == pytest.approx(3.0 * s.edge_step, rel=1e-9)
    np.testing.assert_allclose(scaled.norm, s.norm, atol=1e-10)


def test_order_gaps_and_repeats_of_energies_do_not_matter():
    rng = np.random.default_rng(0)
    s = normalize_spectrum(GRID, nickel(GRID))
    order = rng.permutation(len(GRID))
    np.testing.assert_array_equal(normalize_spectrum(GRID[order], nickel(GRID)[order]).norm, s.norm)
    twice = normalize_spectrum(np.repeat(GRID, 2), np.repeat(nickel(GRID), 2))
    np.testing.assert_allclose(twice.norm, s.norm, atol=1e-12)
    holed = nickel(GRID)
    holed[[3, 60, 100]] = np.nan
    assert len(normalize_spectrum(GRID, holed).norm) == len(GRID) - 3


def test_repeats_are_averaged_without_nan():
    energy, values = merge_repeats(np.array([1.0, 1.0, 2.0, 2.0]), np.array([[1.0], [3.0], [np.nan], [5.0]]))
    np.testing.assert_array_equal(energy, [1.0, 2.0])
    np.testing.assert_array_equal(values, [[2.0], [5.0]])


def test_energies_within_a_twentieth_of_an_electronvolt_are_one_and_fine_scans_stay_scans():
    energy, values = merge_repeats(np.array([1.0, 1.01, 1.04, 2.0]), np.arange(4.0)[:, None])
    np.testing.assert_allclose(energy, [np.mean([1.0, 1.01, 1.04]), 2.0])
    np.testing.assert_array_equal(values, [[1.0], [3.0]])
    fine = np.arange(0, 1, 0.02)
    assert len(distinct_energies(fine)) == 17  # groups, not one long chain


def test_kev_is_converted_with_a_notice():
    with pytest.warns(UserWarning, match="taken as keV and multiplied by 1000"):
        s = normalize_spectrum(GRID / 1000, nickel(GRID))
    assert s.e0 == pytest.approx(find_e0(GRID, nickel(GRID)), abs=1e-6)


@pytest.mark.parametrize("energy", [[], [8333.0, np.nan], [-1.0, 8333.0]])
def test_energies_that_are_none(energy):
    with pytest.raises(ValueError, match="need photon energies in eV"):
        to_electronvolts(np.array(energy))


def test_few_points_fall_back_as_documented():
    r = resolve_ranges(GRID, 8341.0, pre1=-100, pre2=-92, nvict=2)
    assert (r.npre, r.nvict) == (0, 0)
    coarse = np.array([8200.0, 8250, 8300, 8340, 8360, 8380, 8400])
    assert resolve_ranges(coarse, 8341.0).post_points(coarse)[1] <= 1


def test_ranges_that_cannot_be_had_are_told():
    with pytest.warns(UserWarning, match=r"not all given ranges can be used: pre1 -900 -> -141.5, norm2 900 -> "):
        normalize_spectrum(GRID, nickel(GRID), e0=8341.5, pre1=-900.0, norm2=900.0)
    with pytest.warns(UserWarning, match="nnorm 2 -> 1"):
        normalize_spectrum(GRID, nickel(GRID), e0=8341.5, norm1=330.0, norm2=355.0, nnorm=2)
    normalize_spectrum(GRID, nickel(GRID), e0=8341.5, norm2=-1.0)  # Larch's "to the end"


def test_a_flat_spectrum_is_told():
    with pytest.warns(UserWarning, match="the spectrum is flat: its edge step is"):
        assert normalize_spectrum(GRID, np.full(GRID.size, 0.5), e0=8341.5).edge_step < 1e-9


def test_edge_outside_the_energies():
    with pytest.raises(ValueError, match="need at least two energies on either side of the edge"):
        normalize_spectrum(GRID, nickel(GRID), e0=7112.0)


def test_wrong_shapes_and_too_few_points():
    with pytest.raises(ValueError, match="need two one-dimensional arrays of one length"):
        normalize_spectrum(GRID, nickel(GRID)[:-1])
    with pytest.raises(ValueError, match="need at least 5"):
        normalize_spectrum([8324.0, 8354.0], [0.3, 0.9])

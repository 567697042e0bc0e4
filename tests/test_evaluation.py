import json

import numpy as np
import pytest
from made_up import made_up

from xreg.evaluation import evaluate


@pytest.fixture(scope="module")
def pair():
    _, result, truth = made_up()
    return result, truth


def test_planted_errors_come_back(pair):
    found = evaluate(*pair)
    assert (found.particles_found, found.particles_true) == (4, 4)
    assert (found.inventions, found.fragments, found.identity_switches) == (0, 0, 0)
    assert found.seen_fraction == 1
    assert found.position_rms_y == pytest.approx(0.05, rel=0.15)
    assert found.position_rms == pytest.approx(np.hypot(found.position_rms_y, found.position_rms_x))
    # Length of a two-dimensional normal error: 95 % lie within 2.448 standard deviations.
    assert found.position_p95 == pytest.approx(0.05 * 2.448, rel=0.15)
    assert found.position_sigma_ratio == pytest.approx(1, abs=0.15)
    assert found.edge_error == pytest.approx(0.1 * 0.6745, rel=0.15)
    assert found.edge_sigma_ratio == pytest.approx(1, abs=0.1)
    assert found.edge_fitted == 1
    assert found.rigid_rms == pytest.approx(0, abs=1e-9)
    assert found.contour_iou > 0.9


def test_numbers_of_particles_do_not_matter(pair):
    result, truth = pair
    turned = evaluate(result.isel(particle=[2, 0, 3, 1]), truth)
    assert turned.position_rms == pytest.approx(evaluate(result, truth).position_rms)
    assert [p.result for p in turned.particles] == [1, 3, 0, 2]


def test_lost_and_invented_particles(pair):
    result, truth = pair
    result = result.copy(deep=True)
    result["position"][0] += 60
    result["position"][1, :12] = np.nan
    found = evaluate(result, truth)
    assert found.particles_found == 3
    assert found.inventions == 1
    assert found.seen_fraction_min == 0
    assert found.particles[0].result is None
    assert found.particles[1].seen_fraction == pytest.approx(0.75)
    assert found.particle_table()[1] == ("0", "-", "0.0%", "-", "-", "-", "-")


def test_exchanged_identities(pair):
    result, truth = pair
    result = result.copy(deep=True)
    position = result["position"].values
    result["position"][0, 30:], result["position"][1, 30:] = position[1, 30:].copy(), position[0, 30:].copy()
    assert evaluate(result, truth).identity_switches == 2


def test_pre_edge_frames_alone(pair):
    result, truth = pair
    result = result.copy(deep=True)
    faint = truth["energy"].values < 8332
    result["position"][:, faint] += np.where(np.arange(faint.sum()) % 2, 1.0, -1.0)[:, None]
    found = evaluate(result, truth)
    assert found.position_rms_pre_edge == pytest.approx(np.sqrt(2), rel=0.05)
    assert found.position_rms < found.position_rms_pre_edge


def test_constant_offsets_are_taken_off(pair):
    result, truth = pair
    moved = result.assign(position=result["position"] + 0.7, rigid=result["rigid"] - 3.0)
    found = evaluate(moved, truth)
    assert found.position_rms == pytest.approx(evaluate(result, truth).position_rms)
    assert found.rigid_rms == pytest.approx(0, abs=1e-9)


def test_edge_offset_is_told_apart(pair):
    result, truth = pair
    found = evaluate(result.assign(edge_energy=result["edge_energy"] + 1.5), truth)
    assert found.edge_offset == pytest.approx(1.5, abs=0.02)
    assert found.edge_error == pytest.approx(1.5, abs=0.02)
    assert found.edge_error_centred == pytest.approx(0.1 * 0.6745, rel=0.15)


def test_unfitted_pixels_and_windows_of_different_size(pair):
    result, truth = pair
    small = result.isel(y=slice(3, -3), x=slice(2, -2))
    assert evaluate(small, truth).contour_iou == pytest.approx(evaluate(result, truth).contour_iou)
    half = result.assign(edge_energy=result["edge_energy"].where(result["y"] > 0))
    assert evaluate(half, truth).edge_fitted == pytest.approx(0.48, abs=0.05)


def test_centre_offset_shifts_the_true_map(pair):
    _, truth = pair
    result = truth.assign(position=truth["position"] + 2.0)
    shifted = {"y": 2, "x": 2}
    result["contour"] = truth["contour"].shift(y=-2, x=-2, fill_value=False)
    result["edge_energy"] = truth["edge_energy"].shift({k: -v for k, v in shifted.items()})
    found = evaluate(result, truth)
    assert found.contour_iou == 1
    assert found.edge_error == pytest.approx(0, abs=1e-3)


def test_only_what_is_there(pair):
    result, truth = pair
    found = evaluate(result[["position"]], truth[["position"]])
    assert found.position_rms is not None
    assert found.edge_error is found.contour_iou is found.rigid_rms is found.position_sigma_ratio is None
    labels = [label for label, _ in found.table()]
    assert "position error, RMS" in labels
    assert not any("edge" in label for label in labels if "pre-edge" not in label)


def test_result_without_particles(pair):
    result, truth = pair
    found = evaluate(result.isel(particle=[]), truth)
    assert found.particles_found == 0
    assert found.position_rms is None
    assert found.seen_fraction == 0


def test_lazy_stores_and_json(pair):
    result, truth = pair
    lazy = evaluate(result.chunk(particle=1, scan=1), truth.chunk(particle=1))
    assert lazy == evaluate(result, truth)
    assert json.loads(json.dumps(lazy.to_dict()))["particles_found"] == 4


def test_differing_definitions_are_said(pair):
    result, truth = pair
    result = result.copy()
    result["edge_energy"] = result["edge_energy"].assign_attrs(definition="e0")
    assert ("edge energies are defined differently", "e0, in truth half_step") in evaluate(result, truth).table()


def test_some_frames_of_the_truth(pair):
    result, truth = pair
    number = np.arange(truth.sizes["frame"])
    some = result.assign_coords(frame=number).isel(frame=slice(24, None))
    found = evaluate(some, truth.assign_coords(frame=number))
    assert found.frames == 24
    assert found.position_rms == pytest.approx(0.07, rel=0.2)
    assert evaluate(some, truth) == found


def test_a_truth_without_the_frames_of_the_result_is_refused(pair):
    result, truth = pair
    second = result.assign_coords(frame=np.arange(48)).isel(frame=slice(24, 48)).drop_vars("energy")
    with pytest.raises(ValueError, match=r"result has frames 24 to 47 and truth 24 frames without numbers, .* 0 to 23"):
        evaluate(second, truth.isel(frame=slice(24)).drop_vars("energy"))
    assert evaluate(second, truth).frames == 24


@pytest.mark.parametrize(("one", "sentence"), [
    ({"particle": 0}, r"position of the result has dims \('frame', 'axis'\); need .* \.isel\(particle=\[0\]\)"),
    ({"frame": 0}, "position of the result has dims"), ({"axis": 0}, "position of the result has dims"),
    ({"scan": 0}, r"edge_energy of the result has dims .* \.isel\(scan=\[0\]\)"),
    ({"y": 3}, r"contour of the result has dims \('particle', 'x'\)"),
])
def test_lost_dimensions_are_refused(pair, one, sentence):
    result, truth = pair
    with pytest.raises(ValueError, match=sentence):
        evaluate(result.isel(one), truth)
    with pytest.raises(ValueError, match=sentence.replace("result", "truth")):
        evaluate(result, truth.isel(one))
    with pytest.raises(ValueError, match="got a str; need a Dataset with the variables of a truth: open the store"):
        evaluate(result, "truth.zarr")


def test_the_truth_of_another_measurement_is_refused_though_an_energy_is_unknown(pair):
    result, truth = pair
    energy = result["energy"].values.copy()
    energy[2] = np.nan
    evaluate(result.assign_coords(energy=("frame", energy)), truth)
    with pytest.raises(ValueError, match=r"energies of result and truth differ by up to 50.00 eV"):
        evaluate(result.assign_coords(energy=("frame", energy + 50)), truth)


def test_errors_say_what_to_do(pair):
    result, truth = pair
    with pytest.raises(ValueError, match="result has no position; need position"):
        evaluate(result.drop_vars("position"), truth)
    with pytest.raises(ValueError, match="result has 24 frames and truth 48; need the same number"):
        evaluate(result.isel(frame=slice(24)), truth)
    with pytest.raises(ValueError, match=r"differ by up to 1.00 eV; need those of the same frames. Give the truth"):
        evaluate(result.assign_coords(energy=result["energy"] + 1.0), truth)

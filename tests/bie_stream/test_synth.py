"""The plate's promise: phenotypes differ in texture, size and place, and not in how much light there is."""

import itertools

import numpy as np
import pytest

from bie_stream import synth

PLATE = synth.Plate(wells_per_phenotype=3, fields=1, size=160)


@pytest.fixture(scope="module")
def fields() -> dict[str, np.ndarray]:
    """For each phenotype [W, 3, Y, X] light above the background: the same wells, as if all had that phenotype."""
    wells = list(synth.layout(PLATE))
    rendered = {
        phenotype: np.stack([synth.render(PLATE, well, phenotype, 1) for well in wells]).astype(np.float64)
        for phenotype in synth.PHENOTYPES
    }
    return {name: field - np.percentile(field, 1, axis=(2, 3), keepdims=True) for name, field in rendered.items()}


def _nuclei(dna: np.ndarray) -> np.ndarray:
    """Mask of the nuclei by Otsu's threshold."""
    ordered = np.sort(dna.ravel())
    below = np.arange(1, ordered.size)
    above = ordered.size - below
    total = ordered.cumsum()
    between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return np.asarray(dna > ordered[between.argmax()])


def _area(field: np.ndarray) -> float:
    return float(_nuclei(field[0]).mean())


def _roughness(field: np.ndarray) -> float:
    nuclei = _nuclei(field[0])
    return float(np.abs(np.diff(field[0], axis=0))[nuclei[1:]].mean() / field[0][nuclei].mean())


def _nuclear_share(field: np.ndarray) -> float:
    nuclei = _nuclei(field[0])
    return float(field[1][nuclei].mean() / field[1][~nuclei].mean())


def _protein_peak(field: np.ndarray) -> float:
    return float(np.percentile(field[1], 99) / field[1].mean())


def _medians(fields: dict[str, np.ndarray], measure: object) -> dict[str, float]:
    assert callable(measure)
    return {name: float(np.median([measure(field) for field in wells])) for name, wells in fields.items()}


def test_the_same_plate_gives_the_same_pixels() -> None:
    one, again = (synth.render(synth.Plate(size=64), "A3", "control", 2) for _ in range(2))
    assert (one.dtype, one.shape) == (np.uint16, (3, 64, 64))
    np.testing.assert_array_equal(one, again)


def test_another_seed_well_or_field_gives_other_pixels() -> None:
    plate = synth.Plate(size=64)
    images = [
        synth.render(plate, "A3", "control", 1),
        synth.render(plate, "A3", "control", 2),
        synth.render(plate, "A4", "control", 1),
        synth.render(synth.Plate(size=64, seed=1), "A3", "control", 1),
    ]
    for i, one in enumerate(images):
        assert all((one != other).mean() > 0.9 for other in images[:i])


def test_the_layout_gives_each_phenotype_its_wells_spread_over_the_plate() -> None:
    wells = synth.layout(synth.Plate())
    assert synth.layout(synth.Plate()) == wells
    assert synth.layout(synth.Plate(seed=1)) != wells
    phenotypes = list(wells.values())
    assert {name: phenotypes.count(name) for name in synth.PHENOTYPES} == dict.fromkeys(synth.PHENOTYPES, 12)
    runs = sum(one != other for one, other in itertools.pairwise(phenotypes))
    assert runs > 30  # in blocks there would be 4


def test_a_plate_holds_384_wells_and_no_more() -> None:
    assert len(synth.layout(synth.Plate(wells_per_phenotype=76))) == 380
    with pytest.raises(ValueError, match="exceed 384 wells"):
        synth.layout(synth.Plate(wells_per_phenotype=77))


@pytest.mark.parametrize("channel", range(3), ids=synth.CHANNELS)
def test_all_phenotypes_have_one_distribution_of_mean_intensity(fields: dict[str, np.ndarray], channel: int) -> None:
    light = {name: np.log(wells[:, channel].mean(axis=(1, 2))) for name, wells in fields.items()}
    spread = light["control"].std()
    for name, logs in light.items():
        assert abs(logs.mean() - light["control"].mean()) < 0.5 * spread, name
        assert 0.5 < logs.std() / spread < 2, name


def test_speckled_nuclei_are_rougher_than_all_others(fields: dict[str, np.ndarray]) -> None:
    roughness = _medians(fields, _roughness)
    speckled = roughness.pop("speckled")
    assert speckled > 1.5 * max(roughness.values())


def test_enlarged_nuclei_have_about_1_8_times_the_area(fields: dict[str, np.ndarray]) -> None:
    areas = {name: [_area(field) for field in fields[name]] for name in ("control", "enlarged")}
    assert 1.4 < np.median(np.divide(areas["enlarged"], areas["control"])) < 2.2


def test_translocated_protein_is_in_the_nucleus(fields: dict[str, np.ndarray]) -> None:
    share = _medians(fields, _nuclear_share)
    translocated = share.pop("translocated")
    assert translocated > 1.5 * max(share.values())


def test_perinuclear_protein_is_gathered_but_not_in_the_nucleus(fields: dict[str, np.ndarray]) -> None:
    peak, share = _medians(fields, _protein_peak), _medians(fields, _nuclear_share)
    assert peak["perinuclear"] > 1.1 * peak["control"]
    assert share["perinuclear"] < 1.3 * share["control"]

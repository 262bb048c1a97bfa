"""The contract of every map in `mgaa/ratios` (a new file is tested without a new line), and golden values of each.

The map `file` is given what softmax has found.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgaa.errors import UsageError
from mgaa.methods import available_methods
from mgaa.ratios import allocate_ratios
from tests.support.allocations import reads_file, written

METHODS = available_methods("ratios")


def allocate(
    name: str,
    cosines: Sequence[float],
    compression: float,
    *,
    parameters: Sequence[int] | None = None,
    reach: Sequence[float] | None = None,
    band: float | str | None = None,
    **options: float | str | None,
) -> list[float]:
    names = [f"{i}.ffn" for i in range(len(cosines))]
    run = partial(
        allocate_ratios,
        cosines=dict(zip(names, cosines, strict=True)),
        parameters=dict(zip(names, parameters or [100] * len(names), strict=True)),
        reach=dict(zip(names, reach or [1.0] * len(names), strict=True)),
        compression=compression,
        band=band,
    )
    if name in METHODS and reads_file("ratios", name):
        saved = dict.fromkeys(names, compression)
        with suppress(UsageError):  # shall be told by the map itself
            saved = run("softmax")
        options["path"] = written(ratios=saved)
    ratios = run(name, **options)
    assert list(ratios) == names
    return list(ratios.values())


@st.composite
def sublayers(draw: st.DrawFn) -> tuple[list[float], list[int], list[float]]:
    """Cosines of any sign, sizes, and what the ranks of each sublayer allow."""
    count = draw(st.integers(1, 8))
    lists = (st.floats(-1, 1), st.integers(1, 10**8), st.floats(0.05, 0.999))
    cosines, parameters, reach = (draw(st.lists(each, min_size=count, max_size=count)) for each in lists)
    return cosines, parameters, reach


def within_reach(parameters: Sequence[int], bounds: Sequence[float], share: float) -> float:
    """A compression at `share` of the largest that the bounds allow."""
    return share * sum(b * p for b, p in zip(bounds, parameters, strict=True)) / sum(parameters)


# --- the contract of every map


@pytest.mark.parametrize("name", METHODS)
@given(case=sublayers(), share=st.floats(0.01, 1.0))
def test_the_budget_is_met_exactly_within_reach(
    name: str, case: tuple[list[float], list[int], list[float]], share: float
) -> None:
    cosines, parameters, reach = case
    compression = within_reach(parameters, reach, share)
    ratios = allocate(name, cosines, compression, parameters=parameters, reach=reach)
    removed = sum(r * p for r, p in zip(ratios, parameters, strict=True))
    assert removed == pytest.approx(compression * sum(parameters), rel=1e-9)
    assert all(0 <= r <= bound for r, bound in zip(ratios, reach, strict=True))


@pytest.mark.parametrize("name", METHODS)
@given(case=sublayers(), share=st.floats(0.01, 1.0), band=st.floats(0.001, 1.0))
def test_no_ratio_departs_from_the_compression_by_more_than_the_band(
    name: str, case: tuple[list[float], list[int], list[float]], share: float, band: float
) -> None:
    cosines, parameters, reach = case
    compression = min(within_reach(parameters, reach, share), *reach)
    ratios = allocate(name, cosines, compression, parameters=parameters, reach=reach, band=band)
    removed = sum(r * p for r, p in zip(ratios, parameters, strict=True))
    assert removed == pytest.approx(compression * sum(parameters), rel=1e-9)
    assert all(abs(ratio - compression) <= band + 1e-12 for ratio in ratios)
    assert all(0 <= ratio <= bound for ratio, bound in zip(ratios, reach, strict=True))


@pytest.mark.parametrize("name", METHODS)
@given(cosine=st.floats(-1, 1), parameters=st.lists(st.integers(1, 10**8), min_size=1, max_size=8))
def test_equal_cosines_give_equal_ratios(name: str, cosine: float, parameters: list[int]) -> None:
    ratios = allocate(name, [cosine] * len(parameters), 0.3, parameters=parameters)
    assert ratios == pytest.approx([0.3] * len(parameters), rel=1e-12)


@pytest.mark.parametrize("name", METHODS)
@given(case=sublayers(), share=st.floats(0.01, 1.0), order=st.randoms(use_true_random=False))
def test_the_order_of_the_sublayers_does_not_matter(
    name: str, case: tuple[list[float], list[int], list[float]], share: float, order: object
) -> None:
    cosines, parameters, reach = case
    compression = within_reach(parameters, reach, share)
    places = list(range(len(cosines)))
    order.shuffle(places)  # type: ignore[attr-defined]
    ratios = allocate(name, cosines, compression, parameters=parameters, reach=reach)
    shuffled = allocate(
        name,
        [cosines[i] for i in places],
        compression,
        parameters=[parameters[i] for i in places],
        reach=[reach[i] for i in places],
    )
    assert shuffled == pytest.approx([ratios[i] for i in places], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
@given(case=sublayers(), band=st.floats(0.001, 1.0))
def test_a_sublayer_that_turns_the_stream_less_never_loses_less(
    name: str, case: tuple[list[float], list[int], list[float]], band: float
) -> None:
    cosines, parameters, _ = case
    ratios = allocate(name, cosines, 0.3, parameters=parameters, band=band)
    by_cosine = [ratio for _, ratio in sorted(zip(cosines, ratios, strict=True))]
    assert all(a <= b + 1e-12 for a, b in pairwise(by_cosine))


@pytest.mark.parametrize("name", METHODS)
def test_a_band_that_binds_nobody_changes_nothing(name: str) -> None:
    free = allocate(name, [0.9, 0.8, 0.85], 0.3)
    assert allocate(name, [0.9, 0.8, 0.85], 0.3, band=0.69) == free


@pytest.mark.parametrize("name", METHODS)
def test_a_vanishing_band_is_uniform(name: str) -> None:
    assert allocate(name, [0.9, 0.2, 0.5], 0.3, band=1e-9) == pytest.approx([0.3] * 3)


@pytest.mark.parametrize(("blocks", "width"), [(2, 0.1), (8, 0.1), (30, 0.375)])
@pytest.mark.parametrize("name", METHODS)
def test_the_automatic_band_widens_with_the_depth(name: str, blocks: int, width: float) -> None:
    cosines = [1 - 0.5**block for block in range(blocks)]
    assert allocate(name, cosines, 0.4, band="auto") == allocate(name, cosines, 0.4, band=width)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("band", [0.0, -1.0, math.nan, "wide"])
def test_a_band_without_room_is_refused(name: str, band: float | str) -> None:
    with pytest.raises(UsageError, match=r"ratios\.band is .*expected a positive number"):
        allocate(name, [0.9, 0.2], 0.3, band=band)


@pytest.mark.parametrize("name", METHODS)
def test_a_compression_out_of_reach_names_the_largest_which_then_works(name: str) -> None:
    sizes, reach = [100, 300], [0.9, 0.4]
    with pytest.raises(UsageError, match=r"compression 0\.6 is out of reach: .* reachable compression is 0\.5250"):
        allocate(name, [0.9, 0.2], 0.6, parameters=sizes, reach=reach)
    assert allocate(name, [0.9, 0.2], 0.525, parameters=sizes, reach=reach) == pytest.approx(reach)


@pytest.mark.parametrize("name", METHODS)
def test_a_band_that_the_reach_of_the_ranks_makes_too_tight_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"ratios\.band is 0\.1: compression 0\.5 is .* is 0\.4500 \(widen it"):
        allocate(name, [0.9, 0.2], 0.5, reach=[0.9, 0.3], band=0.1)
    assert allocate(name, [0.9, 0.2], 0.5, reach=[0.9, 0.3], band=0.25)[1] <= 0.3


@pytest.mark.parametrize("name", METHODS)
def test_a_misspelt_option_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(UsageError, match=rf"ratios\.temprature is not an option of the method '{name}'; it takes "):
        allocate(name, [0.9, 0.2], 0.5, temprature=1.0)


def test_an_unknown_map_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=rf"ratios\.method is 'sofmax', expected one of {', '.join(METHODS)}"):
        allocate("sofmax", [0.9, 0.2], 0.5)


# --- golden values


def test_linear_ratios_are_proportional_to_the_cosines() -> None:
    assert allocate("linear", [1.0, 0.5], 0.3) == pytest.approx([0.4, 0.2])
    assert allocate("linear", [1.0, 0.5], 0.3, parameters=[100, 300]) == pytest.approx([0.48, 0.24])


def test_linear_spares_sublayers_that_turn_the_stream_around() -> None:
    assert allocate("linear", [0.8, -0.5], 0.3) == pytest.approx([0.6, 0.0])


def test_softmax_ratios_fall_exponentially_with_importance() -> None:
    cosines, temperature = [0.9, 0.7, 0.4], 0.3
    weights = [math.exp(-(1 - c) / temperature) for c in cosines]
    expected = [0.3 * 3 * w / sum(weights) for w in weights]
    assert allocate("softmax", cosines, 0.3, temperature=temperature) == pytest.approx(expected)


def test_a_hot_softmax_is_uniform_and_a_cold_one_takes_all_from_the_least_important() -> None:
    assert allocate("softmax", [0.9, 0.2, 0.5], 0.3, temperature=1e6) == pytest.approx([0.3] * 3, rel=1e-5)
    assert allocate("softmax", [0.9, 0.2, 0.5], 0.3, temperature=1e-3) == pytest.approx([0.9, 0.0, 0.0])
    assert allocate("softmax", [0.9, 0.2, 0.5], 0.5, temperature=1e-3) == pytest.approx([1.0, 0.0, 0.5])


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=r"ratios\.temperature is .*expected a positive number"):
        allocate("softmax", [0.9, 0.2], 0.3, temperature=temperature)


def test_proportional_shares_kept_rise_with_importance_and_stop_at_the_whole() -> None:
    kept = [1 - ratio for ratio in allocate("proportional", [0.9, 0.8, 0.7], 0.5)]
    assert kept == pytest.approx([0.25, 0.5, 0.75])
    kept = [
        1 - ratio for ratio in allocate("proportional", [0.95, 0.9, 0.2], 0.5)
    ]  # what the third cannot take goes on
    assert kept == pytest.approx([0.5 / 3, 1.0 / 3, 1.0])


def test_uniform_asks_the_same_of_every_sublayer_that_can_give_it() -> None:
    assert allocate("uniform", [0.9, 0.1], 0.3, parameters=[1, 9]) == pytest.approx([0.3, 0.3])
    assert allocate("uniform", [0.9, 0.1], 0.5, reach=[0.9, 0.3]) == pytest.approx([0.7, 0.3])


def test_sublayers_are_told_apart_to_the_last_digit_of_a_real_model() -> None:
    """Cosines of trained models lie close together: a difference of 1e-6 is still one in the ratios."""
    ratios = allocate("softmax", [0.99, 0.990001], 0.2)
    assert torch.tensor(ratios).diff().item() > 0


# --- the map that reads a file


def ratios_of(path: str, compression: float = 0.3, **settings: object) -> dict[str, float]:
    """The map `file` on two sublayers of 100 and 300 parameters."""
    names = ("0.attention", "0.ffn")
    shared = {"cosines": dict.fromkeys(names, 0.9), "parameters": dict(zip(names, (100, 300), strict=True))}
    given = {"reach": dict.fromkeys(names, 0.9), "compression": compression} | shared | settings
    return allocate_ratios("file", path=path, **given)  # type: ignore[arg-type]


SAVED = {"0.attention": 0.6, "0.ffn": 0.2}


@given(case=sublayers(), share=st.floats(0.01, 1.0), band=st.floats(0.001, 1.0))
def test_ratios_are_read_back_to_the_bit_whatever_map_has_found_them(
    case: tuple[list[float], list[int], list[float]], share: float, band: float
) -> None:
    cosines, parameters, reach = case
    compression = min(within_reach(parameters, reach, share), *reach)
    settings = {"parameters": parameters, "reach": reach}
    for name in METHODS:
        found = allocate(name, cosines, compression, band=band, **settings)  # type: ignore[arg-type]
        names = (f"{i}.ffn" for i in range(len(found)))
        path = written(ratios=dict(zip(names, found, strict=True)))
        read = allocate_ratios(
            "file",
            *({f"{i}.ffn": x for i, x in enumerate(values)} for values in (cosines, parameters, reach)),
            compression=compression,
            band=band,
            path=path,
        )
        assert list(read.values()) == found


def test_the_order_of_the_file_does_not_matter_and_the_cosines_play_no_part() -> None:
    backwards = dict(reversed(SAVED.items()))
    assert ratios_of(written(ratios=backwards), cosines={"0.attention": -1.0, "0.ffn": 1.0}) == SAVED


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"0.attention": 0.6}, r"allocation file for another model: the sublayer 0\.ffn is in the model alone"),
        (SAVED | {"1.ffn": 0.1}, r"allocation file for another model: the sublayer 1\.ffn is in the file alone"),
        ({"0.attention": 0.3, "0.ffn": 0.2}, r"are for compression 0\.225, but ratios\.compression is 0\.3: set it"),
        (
            {"0.attention": 0.95, "0.ffn": 0.25 / 3},
            r"ratio 0\.95 of sublayer 0\.attention .* is outside 0 to 0\.9, which",
        ),
        ({"0.attention": -0.3, "0.ffn": 0.5}, r"ratio -0\.3 of sublayer 0\.attention .* is outside 0 to 0\.9, which"),
    ],
)
def test_ratios_that_do_not_fit_are_refused(ratios: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ratios_of(written(ratios=ratios))


def test_ratios_outside_the_band_are_refused_and_never_changed() -> None:
    with pytest.raises(UsageError, match=r"ratio 0\.6 of sublayer 0\.attention .* is outside 0\.05 to 0\.55.* widen"):
        ratios_of(written(ratios=SAVED), band=0.25)
    assert ratios_of(written(ratios=SAVED), band=0.3) == SAVED


def test_the_file_has_to_be_named() -> None:
    with pytest.raises(UsageError, match=r"ratios\.path is missing: the method 'file' needs it; it takes path, model"):
        allocate_ratios("file", {"0.ffn": 0.5}, {"0.ffn": 100}, {"0.ffn": 0.9}, compression=0.3)

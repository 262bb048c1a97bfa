"""Figures say what the tables say, are the same bytes every time, and can be drawn for two blocks and for eighty."""

import copy
import math
import random
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from tasks.figures import run_figures
from tasks.figures.allocation_rows import merge_experts, rows
from tasks.figures.style import figure_style, save_figure, short_names, spread_labels
from tasks.steps.draw_figures import energy_curves
from tests.support.finished import Finished, finished_run

NAMES = ["ranks", "sublayers", "energies", "errors", "sizes"]


@pytest.fixture
def run() -> Finished:
    return finished_run()


def stretched(run: Finished, blocks: int) -> dict[str, Any]:
    """The allocations of the run, its first block repeated."""
    found = copy.deepcopy(dict(run.published["allocation"]))
    for each in found.values():
        first = {name: matrix for name, matrix in each["matrices"].items() if matrix["block"] == 0}
        inside = {name.partition(".")[2]: values for name, values in each["sublayers"].items() if name[:2] == "0."}
        each["sublayers"] = {f"{b}.{name}": values for b in range(blocks) for name, values in inside.items()}
        each["matrices"] = {
            name.replace(".0.", f".{b}."): {**matrix, "block": b}
            for b in range(blocks)
            for name, matrix in first.items()
        }
    return found


def test_every_figure_is_there_as_pixels_and_as_vectors(run: Finished) -> None:
    folder = run.store.folder(run.figures)
    for name in NAMES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


def test_equal_data_gives_equal_bytes(run: Finished, tmp_path: Path) -> None:
    with figure_style():
        for name in ("ranks", "sublayers"):
            save_figure(getattr(run_figures, name)(run.published["allocation"]), tmp_path / name)
        save_figure(run_figures.sizes(run.published["metrics"]["models"]), tmp_path / "sizes")
    drawn = [*tmp_path.iterdir()]
    assert len(drawn) == 6
    for path in drawn:
        assert path.read_bytes() == (run.store.folder(run.figures) / path.name).read_bytes(), path.name


def test_every_cell_of_the_heat_map_holds_its_rank(run: Finished) -> None:
    with figure_style():
        axes = run_figures.ranks(run.published["allocation"]).axes
    for axis, model in zip(axes, ["mgaa", "uniform"], strict=False):
        matrices = run.published["allocation"][model]["matrices"].values()
        expected = sorted("dense" if matrix["rank"] is None else str(matrix["rank"]) for matrix in matrices)
        assert sorted(text.get_text() for text in axis.texts) == expected


def labels(figure: Any) -> list[tuple[str, Any]]:
    """Texts of a drawn figure and the boxes around them, without ticks beyond the scale, which are not drawn."""
    figure.draw_without_rendering()
    beyond = {
        tick.label1
        for scale in (scale for axes in figure.axes for scale in (axes.xaxis, axes.yaxis))
        for tick in scale.get_major_ticks()
        if not min(scale.get_view_interval()) <= tick.get_loc() <= max(scale.get_view_interval())
    }
    shown = (text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in beyond)
    return [(text.get_text(), text.get_window_extent()) for text in shown]


@pytest.mark.parametrize("blocks", [2, 30, 80])
def test_no_label_covers_another_or_leaves_the_figure(run: Finished, blocks: int) -> None:
    allocations = stretched(run, blocks)
    for each in allocations["mgaa"]["matrices"].values():  # as wide as those of a real model
        each["rank"] = each["rank"] and 1000 + each["block"]
    first = {matrix: ([0.0, 1.0], [0.0, 0.999]) for matrix in allocations["mgaa"]["matrices"]}
    with figure_style():
        drawn = [run_figures.ranks(allocations), run_figures.sublayers(allocations), run_figures.errors(allocations)]
        drawn.append(run_figures.energies(allocations, first))
        for found, (width, height) in ((labels(figure), figure.bbox.size) for figure in drawn):
            for (text, one), (other, two) in combinations(found, 2):
                across, up = min(one.x1, two.x1) - max(one.x0, two.x0), min(one.y1, two.y1) - max(one.y0, two.y0)
                assert min(across, up) < 1, (text, other)
            assert [text for text, box in found if min(box.x0, box.y0, width - box.x1, height - box.y1) < -1] == []


def test_every_rank_stands_out_from_its_cell(run: Finished) -> None:
    """By the ratio of their luminances (WCAG 2.2), whatever share a matrix keeps."""
    allocation = stretched(run, 60)["mgaa"]
    for each in allocation["matrices"].values():
        each["parameters"] = round(each["m"] * each["n"] * (each["block"] + 1) / 60)
    with figure_style():
        (axis, _) = run_figures.ranks({"mgaa": allocation}).axes
    (image,) = axis.images
    cells = image.to_rgba(image.get_array())
    for text in axis.texts:
        column, row = text.get_position()
        dark, light = sorted((luminance(cells[row][column][:3]), luminance(to_rgb(text.get_color()))))
        assert (light + 0.05) / (dark + 0.05) > 3.9


def luminance(colour: Any) -> float:
    """Relative luminance (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    linear = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour)
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("blocks", [2, 13, 80])
@pytest.mark.slow
def test_the_figures_can_be_drawn_for_any_depth(run: Finished, blocks: int) -> None:
    allocations = stretched(run, blocks)
    shape = energy_curves(run.store, run.results.backbone, run.results.spectra, [], None)
    first = {name: curve for name, curve in shape.items() if ".0." in name}
    curves = {name.replace(".0.", f".{b}."): curve for b in range(blocks) for name, curve in first.items()}
    with figure_style():
        drawn = [run_figures.ranks(allocations), run_figures.sublayers(allocations), run_figures.errors(allocations)]
        drawn.append(run_figures.energies(allocations, curves))
        for figure in drawn:
            figure.draw_without_rendering()
            width, height = figure.get_size_inches()
            assert width < 20
            assert height < 12


def test_the_experts_of_a_block_are_one_row(run: Finished) -> None:
    """As many parameters as all of them, the mean of their ranks and energies, the mean of their squared errors."""
    allocation = copy.deepcopy(dict(run.published["allocation"]["mgaa"]))
    down = {name: matrix for name, matrix in allocation["matrices"].items() if matrix["matrix"] == "mlp.down_proj"}
    for name, matrix in down.items():
        del allocation["matrices"][name]
        for expert in range(60):
            rank, energy = (None, 1.0) if expert % 3 == 0 else (10 + expert, 0.5)
            local = f"mlp.experts.{expert}.down_proj"
            cell = {**matrix, "matrix": local, "rank": rank, "energy": energy, "error": math.sqrt(1 - energy)}
            allocation["matrices"][name.replace("mlp.down_proj", local)] = cell
    with figure_style():
        figure = run_figures.ranks({"mgaa": allocation})
    assert figure.get_size_inches()[1] < 12
    names, _ = rows(allocation)
    assert [name for name in names if "experts" in name] == ["mlp.experts.*.down_proj"]
    whole = merge_experts(allocation)["matrices"]["0.mlp.experts.*.down_proj"]
    low = [10 + expert for expert in range(60) if expert % 3]
    assert (whole["rank"], whole["m"]) == (round(sum(low) / 40), 60 * next(iter(down.values()))["m"])
    assert whole["energy"] == pytest.approx((20 + 40 * 0.5) / 60)
    assert whole["error"] ** 2 == pytest.approx(1 - whole["energy"])


def test_the_curves_pass_through_the_chosen_ranks(run: Finished) -> None:
    curves = energy_curves(run.store, run.results.backbone, run.results.spectra, [], None)
    for name, matrix in run.published["allocation"]["mgaa"]["matrices"].items():
        if matrix["rank"] is not None:
            shares, energies = curves[name]
            assert shares[matrix["rank"]] == pytest.approx(matrix["parameters"] / (matrix["m"] * matrix["n"]))
            assert energies[matrix["rank"]] == pytest.approx(matrix["energy"])


def test_without_a_baseline_the_method_is_shown_alone(run: Finished) -> None:
    allocations = {"mgaa": run.published["allocation"]["mgaa"]}
    with figure_style():
        assert len(run_figures.ranks(allocations).axes) == 2  # the map and the scale
        run_figures.errors(allocations).draw_without_rendering()


def test_labels_are_moved_apart_and_no_further() -> None:
    source = random.Random(0)
    for count in range(1, 9):
        places = [source.uniform(0, 3) for _ in range(count)]
        moved = spread_labels(places, 0.5)
        order = sorted(range(count), key=lambda index: places[index])
        assert all(moved[b] - moved[a] >= 0.5 - 1e-9 for a, b in pairwise(order))
        assert sum(moved) == pytest.approx(sum(places))
    assert spread_labels([0.0, 1.0, 5.0], 0.5) == [0.0, 1.0, 5.0]


def test_a_short_name_is_never_ambiguous() -> None:
    assert short_names(["self_attn.q_proj", "mlp.up_proj"]) == {"self_attn.q_proj": "q", "mlp.up_proj": "up"}
    assert short_names(["attention.dense", "mlp.dense"]) == {
        "attention.dense": "attention.dense",
        "mlp.dense": "mlp.dense",
    }

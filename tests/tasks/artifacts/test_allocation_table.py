"""The table of a run adds up: parameters to the budget, ratios to the compression, energies and errors to one."""

import csv
import io
import math

import pytest

from tasks.artifacts.allocation_table import allocation, plots
from tests.support.finished import Finished, finished_run


@pytest.fixture
def run() -> Finished:
    return finished_run()


@pytest.mark.parametrize("model", ["uniform", "mgaa"])
def test_the_parameters_of_the_matrices_are_the_budget_less_the_slack(run: Finished, model: str) -> None:
    found = run.published["allocation"][model]
    kept = sum(matrix["parameters"] for matrix in found["matrices"].values())
    dense = sum(matrix["m"] * matrix["n"] for matrix in found["matrices"].values())
    assert kept == found["linear_parameters"] == found["budget"] - found["slack"]
    assert found["slack"] >= 0
    assert found["compression"] == pytest.approx(1 - kept / dense)
    assert run.published["metrics"]["models"][model]["linear_parameters"] == kept


@pytest.mark.parametrize("model", ["uniform", "mgaa"])
def test_the_ratios_that_sublayers_reach_make_up_the_compression(run: Finished, model: str) -> None:
    found = run.published["allocation"][model]
    dense = dict.fromkeys(found["sublayers"], 0)
    for matrix in found["matrices"].values():
        dense[matrix["sublayer"]] += matrix["m"] * matrix["n"]
    removed = sum(dense[name] * each["reached"] for name, each in found["sublayers"].items())
    assert removed / sum(dense.values()) == pytest.approx(found["compression"])
    asked = sum(dense[name] * each["ratio"] for name, each in found["sublayers"].items())
    assert asked / sum(dense.values()) == pytest.approx(0.3)


def test_energy_and_squared_error_are_one_and_a_dense_matrix_has_no_error(run: Finished) -> None:
    for found in run.published["allocation"].values():
        for matrix in found["matrices"].values():
            assert matrix["energy"] + matrix["error"] ** 2 == pytest.approx(1)
            assert (matrix["rank"] is None) == (matrix["parameters"] == matrix["m"] * matrix["n"])
            assert matrix["rank"] is not None or matrix["error"] == 0


def test_a_cosine_is_one_number_for_all_models(run: Finished) -> None:
    uniform, ours = run.published["allocation"].values()
    for name, each in uniform["sublayers"].items():
        assert (each["cosine"], each["branch_cosine"]) == (
            ours["sublayers"][name]["cosine"],
            ours["sublayers"][name]["branch_cosine"],
        )


def test_the_table_reads_from_the_artifacts_alone(run: Finished) -> None:
    model = run.results.models["mgaa"]
    again = allocation(run.store, run.results.backbone, run.results.statistics, model.ratios, model.ranks)
    assert again == run.published["allocation"]["mgaa"]


def test_the_plots_hold_the_method_and_every_size(run: Finished) -> None:
    models, allocations = run.published["metrics"]["models"], run.published["allocation"]
    files = {name: list(csv.DictReader(io.StringIO(text))) for name, text in plots(allocations, models).items()}
    for row, matrix in zip(files["ranks.csv"], allocations["mgaa"]["matrices"].values(), strict=True):
        assert row["rank"] == ("" if matrix["rank"] is None else str(matrix["rank"]))
        assert math.isclose(float(row["kept"]), matrix["parameters"] / (matrix["m"] * matrix["n"]))
    assert [f"{row['block']}.{row['sublayer']}" for row in files["sublayers.csv"]] == [
        *allocations["mgaa"]["sublayers"]
    ]
    assert {row["model"]: float(row["perplexity"]) for row in files["sizes.csv"]} == {
        name: model["perplexity"] for name, model in models.items()
    }

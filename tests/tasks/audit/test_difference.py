"""A comparison of two runs tells causes, effects, and what differs without effect, by what each run itself used."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.audit.difference import Difference, compare_results
from tasks.cache.artifact import Artifact
from tests.support.audited import Audited, audited, rewrite


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    return audited(tmp_path_factory.mktemp("difference") / "project")


def record_of(lab: Audited) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((lab.store.path_of(lab.run) / "record.json").read_bytes())
    return record


def another(lab: Audited, changed: str | None, part: str = "sources", **used: Any) -> Artifact:
    """The same run, had its steps used something else, and had the step `changed` made something else."""
    steps = record_of(lab)["steps"]
    for step in steps.values():
        step[part] |= {key: value for key, value in used.items() if key in step[part]}
    if changed is not None:
        artifacts = steps[changed]["artifacts"]
        steps[changed]["artifacts"] = [f"{each.partition('/')[0]}/{'0' * 64}" for each in artifacts]
    return rewrite(lab, **{**record_of(lab), "steps": steps})


def told(lab: Audited, other: Artifact) -> dict[tuple[str, str], Difference]:
    return {(each.aspect, each.name): each for each in compare_results(lab.store, lab.run, other)}


@pytest.mark.parametrize(("changed", "role"), [("allocate_ratios", "cause"), (None, "none")])
@pytest.mark.parametrize(
    ("part", "aspect", "used"),
    [
        ("sources", "code", {"tasks/steps/allocate_ratios.py": "0" * 64}),
        ("packages", "package", {"torch": "9.9"}),
        ("flags", "flag", {"deterministic": True}),
    ],
)
def test_what_a_step_used_is_a_cause_only_where_it_made_something_else(
    lab: Audited, part: str, aspect: str, used: dict[str, Any], changed: str | None, role: str
) -> None:
    found = told(lab, another(lab, changed, part, **used))
    ((key, value),) = used.items()
    assert (found[aspect, key].role, found[aspect, key].other) == (role, value)


def test_code_of_another_step_than_the_one_that_changed_is_no_cause(lab: Audited) -> None:
    steps = record_of(lab)["steps"]
    only = set(steps["generate"]["sources"]) - set(steps["allocate_ratios"]["sources"])
    found = told(lab, another(lab, "allocate_ratios", **dict.fromkeys(only, "0" * 64)))
    assert {found["code", file].role for file in only} == {"none"}


@pytest.mark.parametrize(("changed", "role"), [("calibrate", "cause"), (None, "none")])
def test_another_device_is_a_cause_where_equal_keys_gave_something_else(
    lab: Audited, changed: str | None, role: str
) -> None:
    another(lab, changed)
    assert told(lab, rewrite(lab, device="another processor"))["device", "device"].role == role


def test_a_package_that_no_step_uses_has_no_effect(lab: Audited) -> None:
    another(lab, "calibrate")
    found = told(lab, rewrite(lab, versions=record_of(lab)["versions"] | {"prefect": "9.9"}))
    assert found["package", "prefect"].role == "none"


def test_where_results_are_kept_has_no_effect(lab: Audited) -> None:
    another(lab, "calibrate")
    found = told(lab, rewrite(lab, parameters=record_of(lab)["parameters"] | {"store.lock_timeout": 9.0}))
    assert found["parameter", "store.lock_timeout"].role == "none"


def test_a_run_differs_from_itself_in_nothing(lab: Audited) -> None:
    assert compare_results(lab.store, lab.run, lab.run) == []


def test_a_run_whose_record_does_not_tell_what_its_steps_used_is_compared_by_ancestry(lab: Audited) -> None:
    given = record_of(lab)["parameters"] | {"ratios.compression": 0.7}
    found = told(lab, rewrite(lab, **{**record_of(lab), "steps": None, "parameters": given}))
    assert found["parameter", "ratios.compression"].role == "cause"


def test_every_step_of_a_run_tells_what_it_used(lab: Audited) -> None:
    record = record_of(lab)
    keys = {key for step in record["steps"].values() for key in step["keys"]}
    assert keys >= set(record["keys"].values())
    for task, step in record["steps"].items():
        assert f"tasks/steps/{task}.py" in step["sources"]
        assert "torch" in step["packages"]
        assert all((lab.store.path / "keys" / f"{key}.json").is_file() for key in step["keys"])
    assert Path(record["parameters"]["backbone.source"]).is_dir()

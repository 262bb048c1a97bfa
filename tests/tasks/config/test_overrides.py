"""What is typed on the command line is the value: a text as it stands, and everything else by the type of its key."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgaa.errors import UsageError
from tasks.audit.reproduce import format_value
from tasks.config.overrides import parse_overrides
from tasks.config.parameters import Parameters, load_parameters
from tests.support.processes import ROOT

FILE = ROOT / "params.yaml"

TEXTS = (
    "models/run #2",
    "#2",
    "no",
    "yes",
    "on",
    "true",
    "null",
    "~",
    "007",
    "12:30",
    "1e3",
    ".inf",
    "2026-11-30",
    "it's",
    'the "best"',
    '"a" and "b"',
    "'",
    '"',
    "{a}",
    "{method: svd}",
    "[x]",
    "[x",
    "a: b",
    "a:",
    "- a",
    "? a",
    "*all",
    "&all",
    "!run",
    "%1",
    "@home",
    "`x`",
    "|",
    ">",
    " blanks around ",
    "a\tb",
    "two\nlines",
    "---",
    "${nowhere}",
    "${oc.env:HOME}/x",
    "x=y",
    "a\\nb",
    "C:\\new",
    "日本/é-ü",
    "run-🚀",
    "\ufeffx",
    "<<",
)


def value(override: str) -> Any:
    """What one override gives."""
    found: Any = parse_overrides([override], Parameters)
    for name in override.partition("=")[0].split("."):
        found = found[name]
    return found


@pytest.mark.parametrize("key", ["output.checkpoint", "data.calibration.field", "case", "ratios.path"])
def test_a_text_is_what_was_typed(key: str) -> None:
    assert {text: value(f"{key}={text}") for text in TEXTS} == {text: text for text in TEXTS}


@pytest.mark.parametrize("text", [each for each in TEXTS if each != "null"])
def test_a_text_that_may_be_missing_is_what_was_typed_or_null(text: str) -> None:
    assert value(f"data.calibration.split={text}") == text
    assert value("data.calibration.split=null") is None


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ('"1234567"', "1234567"),
        ('"null"', "null"),
        ("'null'", "null"),
        ('" a "', " a "),
        (r'"a\nb\t\"c\""', 'a\nb\t"c"'),
        ("'it''s'", "it's"),
        ('"\\u00e9"', "é"),
        ('"a #2"', "a #2"),
    ],
)
def test_one_pair_of_quotes_around_the_whole_is_that_of_yaml(typed: str, text: str) -> None:
    for key in ("backbone.revision", "output.checkpoint", "data.evaluation.separator"):
        assert value(f"{key}={typed}") == text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.calibration.samples=007", 7),
        ("data.calibration.samples=010", 10),
        ("data.calibration.samples=-3", -3),
        ("data.calibration.samples=+3", 3),
        ("data.calibration.samples=1_000", 1000),
        ("data.calibration.samples=null", None),
        ("data.calibration.samples= 5 ", 5),
        ("data.calibration.samples=12:30", "12:30"),
        ("data.calibration.samples=0x10", "0x10"),
        ("data.calibration.samples=1e3", "1e3"),
        ("data.calibration.samples=3 #x", "3 #x"),
        ("data.calibration.samples=no", "no"),
        ("data.calibration.samples=٣", "٣"),
        ("ratios.compression=0.30", 0.3),
        ("ratios.compression=.3", 0.3),
        ("ratios.compression=3e-1", 0.3),
        ("ratios.compression=1E-3", 0.001),
        ("ratios.compression=1", 1),
        ("ratios.compression=0.3 #half", "0.3 #half"),
        ("ratios.compression=0,3", "0,3"),
        ("ratios.compression=30%", "30%"),
        ("ratios.temperature=1e-2", 0.01),
        ("ratios.band=null", None),
        ("statistics.gradients=true", True),
        ("statistics.gradients=False", False),
        ("statistics.gradients=yes", True),
        ("statistics.gradients=off", False),
        ("statistics.gradients=1", "1"),
        ("statistics.gradients=y", "y"),
        ("statistics.shards=4", 4),
        ("statistics.shards=04", 4),
        ("backbone.stream=never", "never"),
        ("refinement.method=none", "none"),
        ("registry.model=null", None),
        ("registry.model=007", "007"),
        ("ranks.multiple=auto", "auto"),
        ("ranks.multiple=8", 8),
        ("ranks.multiple=no", "no"),
        ("schedule.cron.compress=0 2 * * *", "0 2 * * *"),
        ("evaluation.tasks=[a, no, 007, 12:30, null, '#x', C#, \"a: b\", é]",
         ["a", "no", "007", "12:30", "null", "#x", "C#", "a: b", "é"]),
        ("evaluation.tasks=[]", []),
        ("evaluation.tasks=[1]", ["1"]),
        ("evaluation.tasks=null", None),
        ("profile.tokens=[1, 010, 0.5]", [1, 10, "0.5"]),
        ("sensitivity.compression=[0.1, 1e-1]", [0.1, 0.1]),
        ("sweep.backbone=[{source: 007, revision: no}, on]", [{"source": "007", "revision": "no"}, "on"]),
        ("sweep.ratios=[uniform, {method: softmax, temperature: 1e-1, band: null}]",
         ["uniform", {"method": "softmax", "temperature": 0.1, "band": None}]),
        ("data.questions=[{name: a, source: no.jsonl, split: null, samples: 05, from: 0.5}]",
         [{"name": "a", "source": "no.jsonl", "split": None, "samples": 5, "from": 0.5}]),
        ("evaluation.samples={number: 2, prompt: 08}", {"number": 2, "prompt": 8}),
        ("output={results: 007, checkpoint: no}", {"results": "007", "checkpoint": "no"}),
        ("cases.vision.backbone.source=no", "no"),
        ("cases.vision.data.calibration.samples=9", 9),
        ("methods.lorap.ranks.split=3", 3),
        ("methods.mine={factors: {method: svd}, ratios: {compression: 3e-1}}",
         {"factors": {"method": "svd"}, "ratios": {"compression": 0.3}}),
    ],
)  # fmt: skip
def test_what_is_typed_becomes_the_type_of_its_key(override: str, expected: object) -> None:
    found = value(override)
    assert (found, type(found)) == (expected, type(expected))


def test_what_is_no_number_is_told_as_it_was_typed() -> None:
    for typed in ("12:30", "0.3 #half", "no", "0x1", "1e"):
        with pytest.raises(UsageError, match=f"ratios.compression is '{typed}': expected a number"):
            load_parameters(FILE, [f"ratios.compression={typed}"])
    for typed in ("inf", "-inf", "nan", ".nan", "1e999"):
        assert not math.isfinite(value(f"ratios.compression={typed}"))
        with pytest.raises(UsageError, match="expected a finite number"):
            load_parameters(FILE, [f"ratios.compression={typed}"])
    with pytest.raises(UsageError, match="expected a number"):
        load_parameters(FILE, [f"ratios.compression={10**400}"])


def test_the_last_of_two_wins_and_a_section_takes_keys_one_by_one() -> None:
    assert parse_overrides(["case=a", "case=b", "output={results: x}", "output.checkpoint=y"], Parameters) == {
        "case": "b",
        "output": {"results": "x", "checkpoint": "y"},
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output.checkpoint=", r"'output.checkpoint=' has no value: .*null.*'\"\"'"),
        ("ratios.band=", "'ratios.band=' has no value"),
        ("ratios.compression", "'ratios.compression' is not an override: expected section.key=value"),
        ("=x", "'=x' is not an override"),
        ("evaluation.tasks=[a] #2", r"'evaluation.tasks=\[a\] #2' ends at \[a\], and ' #2' would be lost"),
        ("evaluation.tasks=[a, #2]", r"'evaluation.tasks=\[a, #2\]' cannot be read"),
        ("evaluation.tasks=[a", r"'evaluation.tasks=\[a' cannot be read: while parsing a flow sequence"),
        ("evaluation.tasks=[a: b]", r"evaluation.tasks.0 is \{'a': 'b'\}: expected a string"),
        ("evaluation.tasks=a, b", r"evaluation.tasks is 'a, b': expected a list .*in brackets, 'evaluation.tasks=\[a, b\]'"),
        ("output={results: a, results: b}", "'output={results: a, results: b}' cannot be read: 'results' stands there twice"),
        ("evaluation.samples={[a]: 1}", "is no name"),
        ("evaluation.tasks=&a [*a]", "cannot be read"),
        ('output.checkpoint="\\q"', "cannot be read: while scanning a double-quoted scalar"),
        ('output.checkpoint="\\UFFFFFFFF"', "cannot be read"),
        ('output.checkpoint=""', "expected checkpoint to be a folder|output.checkpoint is ''"),
        ('data.evaluation.separator=""', "data.evaluation.separator is '': expected what separates documents"),
        ('backbone.source="a\\0b"', "has a zero byte"),
        ("backbone.source=caf\udce9", "is not UTF-8"),
        ('backbone.source="\\ud800"', "is not UTF-8"),
        ("registry.model=007/x", "registry.model is '007/x': expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_value_is_explained_with_what_was_typed(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_parameters(FILE, [override])


@pytest.mark.parametrize("typed", ["no", "007", "12:30", "1.5"])
def test_the_file_is_yaml_and_a_text_that_yaml_takes_for_something_else_is_to_be_quoted(
    tmp_path: Path, typed: str
) -> None:
    values = yaml.safe_load(FILE.read_text())
    values["tracking"]["experiment"] = "TYPED"
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values).replace("TYPED", typed))
    with pytest.raises(UsageError, match=r"tracking.experiment is .*: expected a string .*in quotes"):
        load_parameters(path)
    path.write_text(yaml.safe_dump(values).replace("TYPED", f'"{typed}"'))
    assert load_parameters(path).tracking.experiment == typed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('tracking: {experiment: "a\\0b"}', "has a zero byte"),
        ('tracking: {experiment: "\\ud800"}', "is not UTF-8"),
        ('tracking: {experiment: "\\UFFFFFFFF"}', "cannot be read"),
        ("a: " + "[" * 5000, "cannot be read"),
        ("a: &a [*a]", "cannot be read"),
        ("{1: 2, data: {3: 4}}", "expected the methods by name|cases is None"),
    ],
)
def test_a_file_that_yaml_cannot_give_is_explained(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        load_parameters(tmp_path / "params.yaml")


def test_what_a_record_has_is_read_back_as_it_was() -> None:
    told = {
        **load_parameters(FILE, ["case=vision"]).flat(),
        "tracking.experiment": '"a" #1',
        "data.recovery.split": "null",
    }
    assert {key: value(f"{key}={format_value(each)}") for key, each in told.items()} == told


def test_texts_go_into_the_parameters_as_they_are() -> None:
    for text in ("no", "007", "a #b"):
        assert load_parameters(FILE, [f"tracking.experiment={text}"]).tracking.experiment == text
    assert load_parameters(FILE, ["output.checkpoint=models/run #2"]).output.checkpoint == "models/run #2"
    assert load_parameters(FILE, ["backbone.revision=1234567"]).backbone.revision == "1234567"

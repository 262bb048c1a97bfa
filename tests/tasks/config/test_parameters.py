"""Parameters are checked before anything runs, and every mistake names the value, what was expected, and the way out."""

from dataclasses import asdict
from pathlib import Path

import pytest

from mgaa.anchoring.fitting import Anchoring
from mgaa.compress import LORAP, LOSS
from mgaa.errors import UsageError
from mgaa.recovery.plan import Plan
from tasks.cache.stage import File
from tasks.config import messages, method_options
from tasks.config.parameters import Parameters, load_parameters
from tests.support.processes import ROOT

FILE = ROOT / "params.yaml"


def test_the_file_of_the_repository_is_valid_and_complete() -> None:
    parameters = load_parameters(FILE)
    assert parameters.method == "mgaa"
    assert parameters.data.calibration.from_ == 0.0
    assert parameters.ratios.options.keys() == method_options.method_options("ratios", parameters.ratios.method).keys()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("ratios.compression=0.3", "ratios.compression", 0.3),
        ("data.calibration.samples=64", "data.calibration.samples", 64),
        ("data.evaluation.from=0.6", "data.evaluation.from", 0.6),
        ("data.evaluation.stride=256", "data.evaluation.stride", 256),
        ("evaluation.tasks=[a,b]", "evaluation.tasks", ["a", "b"]),
        ("evaluation.baselines=[]", "evaluation.baselines", []),
        ("ranks.multiple=8", "ranks.multiple", 8),
        ("ratios.band=0.2", "ratios.band", 0.2),
        ("backbone.device=cuda:1", "backbone.device", "cuda:1"),
        ("backbone.revision=main", "backbone.revision", "main"),
        ('backbone.revision="1234567"', "backbone.revision", "1234567"),
        ("backbone.revision=1234567", "backbone.revision", "1234567"),
        ("evaluation.tasks=[1]", "evaluation.tasks", ["1"]),
        ("store.path=${nowhere}", "store.path", "${nowhere}"),
        ("evaluation.limit=null", "evaluation.limit", None),
    ],
)
def test_every_value_can_be_overridden(override: str, key: str, value: object) -> None:
    assert load_parameters(FILE, [override]).flat()[key] == value


MISTAKES = {
    "ratios.compression=1.5": r"ratios.compression is 1.5: expected a number less than 1 \(.*between 0 and 1\)",
    "ratios.compression=0": "ratios.compression is 0: expected a number greater than 0",
    "ratios.compression=.nan": "ratios.compression is nan: expected a finite number",
    "ratios.compression=true": "ratios.compression is 'true': expected a number",
    "ratios.compression=null": "ratios.compression is None: expected a number",
    "ratios.compresion=0.3": "ratios.compresion is unknown to the method .*compression.*did you mean 'compression'",
    "ratio.compression=0.3": "ratio is unknown: expected one of case, cases, method, methods, backbone, .*did you mean 'ratios'",
    "data.calibration.smaples=3": "data.calibration.smaples is unknown: .*did you mean 'samples'",
    "data.calibration.samples=0": "data.calibration.samples is 0: expected a number greater than or equal to 1",
    "data.calibration.samples=many": "data.calibration.samples is 'many': expected an integer",
    "data.evaluation.from=1.0": "data.evaluation: expected from < to, got from 1.0 to 1.0",
    "data.evaluation.stride=128": "data.evaluation: expected samples: null with stride 128, got samples 256",
    "data.evaluation.stride=100000": "data.evaluation: expected stride <= length, got stride 100000",
    "data=[1]": r"data is \['1'\]: expected a section with the keys calibration, validation, evaluation",
    "evaluation=null": "evaluation is None: expected a section with the keys baselines, tasks",
    "evaluation.baselines=[unifrm]": "evaluation.baselines.0 is 'unifrm': expected 'uniform', 'level1', 'level2', 'mgaa' or 'random'",
    "backbone.dtype=int8": "backbone.dtype is 'int8': expected 'auto', 'float32', 'bfloat16' or 'float16'",
    "backbone.device=gpu": "backbone.device is 'gpu': expected auto .*cpu, cuda or cuda:<number>",
    "ratios.method=softmix": "ratios.method is 'softmix': expected one of file, linear, .*did you mean 'softmax'",
    "ratios.method=null": "ratios.method is 'null': expected one of",
    "ranks.multiple=x": "ranks.multiple is 'x': expected 'auto' or an integer",
    "ranks.power=high": "ranks.power is 'high': expected a number .*option of energy",
    "method=lorpa": "method is 'lorpa': expected one of mgaa, lorap, bolaco, loss; did you mean 'lorap'",
    "method=null": "method is 'null': expected one of mgaa, lorap",
    "channels.keep_least=1.0": "channels.keep_least is 1.0: expected a number less than 1",
    "channels.multiple=0": "channels.multiple is 0: expected a number greater than or equal to 1",
    "channels.method=random": "channels.method is 'random': expected 'none' or 'weighted'",
    "recovery.method=qlora": "recovery.method is 'qlora': expected 'none', 'lora' or 'diagonals'",
    "recovery.tune=all": "recovery.tune is 'all': expected 'product' or 'factors'",
    "recovery.rate=0.0": "recovery.rate is 0.0: expected a number greater than 0",
    "data.recovery.form=talk": "data.recovery.form is 'talk': expected 'text', 'chat', 'instructions' or 'questions'",
    "data.validation.form=questions": "data.validation.form is 'questions': expected 'text' or 'chat'",
    "data.calibration.nulls=none": "data.calibration.nulls is 'none': expected 'stop' or 'skip'",
    "statistics.inputs=sparse": "statistics.inputs is 'sparse': expected 'dense' or 'compressed'",
    "ratios.compression": "'ratios.compression' is not an override: expected section.key=value",
    "ratios..compression=1": "is not an override: expected section.key=value",
    "evaluation.tasks=[a": "cannot be read: while parsing a flow sequence",
}


@pytest.mark.parametrize(("override", "message"), MISTAKES.items())
def test_a_mistake_is_explained(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_parameters(FILE, [override])


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        load_parameters(FILE, ["ratios.compression=2", "backbone.dtyp=auto", "statistics.groups=0"])
    assert len(str(caught.value).splitlines()) == 3


def test_another_method_leaves_the_options_of_the_last_one_aside() -> None:
    assert load_parameters(FILE, ["ratios.method=softmax", "ratios.temperature=0.5"]).ratios.options == {
        "temperature": 0.5
    }
    assert load_parameters(FILE, ["ratios.method=uniform"]).ratios.options == {}


def test_an_option_without_effect_is_refused_when_it_is_given_by_hand() -> None:
    with pytest.raises(
        UsageError, match=r"ratios.temperature is unknown to the method 'uniform' \(it belongs to softmax\)"
    ):
        load_parameters(FILE, ["ratios.method=uniform", "ratios.temperature=0.5"])


def test_an_option_without_a_default_has_to_be_given() -> None:
    with pytest.raises(UsageError, match=r"ranks.path is missing: the method 'file' needs it"):
        load_parameters(FILE, ["ranks.method=file"])
    assert load_parameters(FILE, ["ratios.method=file", "ratios.path=1"]).ratios.options["path"] == "1"


def test_an_option_that_may_be_null_is_a_number_where_it_is_not() -> None:
    assert load_parameters(FILE, ["ranks.method=loss"]).ranks.options == {"trust": None}
    assert load_parameters(FILE, ["ranks.method=loss", "ranks.trust=0.3"]).ranks.options == {"trust": 0.3}
    with pytest.raises(UsageError, match=r"ranks.trust is 'far': expected a number .*\(option of loss\)"):
        load_parameters(FILE, ["ranks.method=loss", "ranks.trust=far"])


def test_an_option_that_is_a_path_is_a_file() -> None:
    ratios = load_parameters(FILE, ["ratios.method=file", "ratios.path=a/b.json"]).ratios
    assert ratios.options == {"path": "a/b.json", "model": None}
    assert isinstance(ratios.options["path"], File)


def test_ranks_from_a_file_bring_their_ratios() -> None:
    file = ["ranks.method=file", "ranks.path=x.json", "ranks.model=mgaa"]
    parameters = load_parameters(FILE, file)
    assert (parameters.ratios.method, parameters.ratios.band) == ("file", None)
    assert parameters.ratios.options == parameters.ranks.options == {"path": "x.json", "model": "mgaa"}
    assert load_parameters(FILE, [*file, "ratios.band=0.2", "ratios.compression=0.3"]).ratios.band == 0.2
    assert load_parameters(FILE, [*file, "ratios.method=file", "ratios.path=y.json"]).ratios.options["path"] == "y.json"


@pytest.mark.parametrize("override", ["ratios.method=softmax", "ratios.temperature=0.2", "ratios.path=y.json"])
def test_ratios_by_hand_have_no_effect_on_ranks_from_a_file(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(
        UsageError, match=f"{key} has no effect with ranks.method=file, .* leave it out, or take another"
    ):
        load_parameters(FILE, ["ranks.method=file", "ranks.path=x.json", override])


def written(folder: Path, old: str, new: str) -> Path:
    text = FILE.read_text()
    assert old in text
    path = folder / "params.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(old, new, 1))
    return path


def test_an_option_that_no_method_knows_is_a_mistake_in_the_file_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ratios.temprature is unknown to the method .*did you mean 'temperature'"):
        load_parameters(written(tmp_path, "  temperature:", "  temprature:"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: mgaa", "method: [mgaa", "cannot be read: while parsing"),
        ("method: mgaa", "method: mgaa\nmethod: mgaa", "cannot be read: .*duplicate key"),
        (
            "store:\n  path: store\n  lock_timeout: 3600.0\n",
            "",
            "store is missing: expected a section with the keys path",
        ),
        ("  experiment: mgaa\n", "", "tracking.experiment is missing: expected MLflow's experiment"),
        ("methods:\n", "methods: []\nmethod_s:\n", r"methods is \[\]: expected the methods by name"),
    ],
)
def test_a_broken_file_is_explained(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_parameters(written(tmp_path, old, new))


@pytest.mark.parametrize(("content", "message"), [("- a\n- b\n", "is a list"), ("\xff\xfe", "cannot be read")])
def test_a_file_of_another_kind_is_explained(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=message):
        load_parameters(path)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"There is no .*params.yaml: expected the parameters; run in the project's folder"
    ):
        load_parameters(tmp_path / "params.yaml")


@pytest.mark.parametrize("inside", ["", ".dvc/tmp/exps/tmpa1b2", ".dvc/tmp/exps/standalone/tmpa1b2"])
def test_store_and_tracking_lie_with_the_checkout_even_in_an_experiment_of_dvc(tmp_path: Path, inside: str) -> None:
    parameters = load_parameters(written(tmp_path / inside, "method: mgaa", "method: mgaa"))
    assert parameters.store_path == tmp_path / "store"
    assert parameters.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert parameters.folder == tmp_path / inside


def test_absolute_places_and_servers_stay_as_they_are(tmp_path: Path) -> None:
    parameters = load_parameters(FILE, [f"store.path={tmp_path}", "tracking.uri=https://mlflow.example.org"])
    assert parameters.store_path == tmp_path
    assert parameters.tracking_uri == "https://mlflow.example.org"
    assert load_parameters(FILE, ["tracking.uri=sqlite:////data/mlflow.db"]).tracking_uri == "sqlite:////data/mlflow.db"


def test_the_help_tells_every_key_and_every_method() -> None:
    text = "\n".join([*messages.parameters_reference(Parameters), *method_options.options_reference()])
    for key in load_parameters(FILE).flat():
        assert key in text
    for method in (
        "factors.method=afm",
        "ratios.method=softmax",
        "ratios.temperature, by default",
        "ranks.method=energy",
        "ranks.power, by default 1.0",
        "ranks.method=file  Ranks from a file",
        "ranks.path, needed",
        "ranks.trust, by default None",
        "ranks.model, by default None",
    ):
        assert method in text


# What the name of a method stands for


def test_a_method_puts_its_values_in_the_place_of_those_of_the_sections() -> None:
    plain, lorap = load_parameters(FILE), load_parameters(FILE, ["method=lorap"])
    assert (plain.factors.method, plain.channels.method, plain.statistics.inputs) == ("afm", "none", "dense")
    assert (lorap.factors.method, lorap.channels.method, lorap.statistics.inputs) == ("awsvd", "weighted", "compressed")
    assert (lorap.ranks.method, lorap.ranks.options, lorap.ranks.multiple) == ("lorap", {"split": 3.0}, 1)
    assert (lorap.ratios.method, lorap.ratios.band, lorap.ratios.compression) == ("uniform", None, 0.2)
    assert lorap.evaluation == plain.evaluation


def test_the_command_line_wins_over_what_a_method_stands_for() -> None:
    given = ["method=lorap", "factors.method=afm", "ratios.method=softmax", "ratios.band=0.1", "ranks.split=5.0"]
    found = load_parameters(FILE, given)
    assert (found.factors.method, found.ratios.method, found.ratios.band) == ("afm", "softmax", 0.1)
    assert found.ranks.options == {"split": 5.0}
    assert found.ratios.options == {"temperature": 0.1}  # of the section itself


def test_what_a_method_stands_for_can_be_overridden_too() -> None:
    assert load_parameters(FILE, ["method=lorap", "methods.lorap.channels.keep_least=0.05"]).channels.keep_least == 0.05


def test_lorap_is_the_same_from_python_and_from_the_command_line() -> None:
    found = load_parameters(FILE, ["method=lorap"])
    assert {
        "factors": found.factors.method,
        "ratios": found.ratios.method,
        "ranks": {"method": found.ranks.method, **found.ranks.options, "multiple": found.ranks.multiple},
        "channels": {"method": found.channels.method, **(found.channels.pruning or {})},
        "inputs": found.statistics.inputs,
    } == LORAP


def test_the_settings_of_recovery_are_the_defaults_of_the_library() -> None:
    assert load_parameters(FILE, ["recovery.method=lora"]).recovery.plan == asdict(Plan())


def test_the_method_loss_of_the_parameters_is_that_of_the_library() -> None:
    found = load_parameters(FILE, ["method=loss"])
    assert (found.statistics.gradients, found.ratios.band, found.anchor.anchoring) == (True, None, asdict(Anchoring()))
    given = {name: getattr(found, name).method for name in ("factors", "ratios", "ranks", "anchor")}
    assert given == LOSS

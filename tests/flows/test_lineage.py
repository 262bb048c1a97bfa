"""The command of an audit, on a run of the real flow: what it shows, what it compares, and how it answers to a wrong word."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import lineage, store
from flows.command import subcommands
from tests.support.laboratory import TinyProject

pytestmark = pytest.mark.slow

VERBS = {
    "show": lineage.show,
    "verify": lineage.verify,
    "diff": lineage.diff,
    "list": store.list_,
    "size": store.size,
    "collect": store.collect,
}
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a verb in a laboratory: its exit code and what it wrote."""

    def asked(lab: TinyProject, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = subcommands.main(VERBS, [f"--params={lab.root / 'params.yaml'}", *words])
        return code, *capsys.readouterr()

    return asked


@pytest.fixture(scope="module")
def two(first: tuple[TinyProject, object], tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A laboratory after two runs at different compressions; look, do not touch."""
    lab = first[0].copy(tmp_path_factory.mktemp("two") / "lab")
    assert lab.run("ratios.compression=0.3").code == 0
    return lab


def test_show_draws_the_way_from_the_files_of_the_backbone_to_the_result(two: TinyProject, ask: Ask) -> None:
    code, out, _ = ask(two, "show", "models/compressed")
    assert code == 0
    assert [
        word for word in ("checkpoint/", "factors/", "spectra/", "ranks/", "ratios/", "statistics/") if word not in out
    ] == []
    assert "model/model.safetensors" in out
    assert "texts.txt" in out
    assert "(above)" in out


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("last", "run"),
        ("results", "run"),
        ("metric:perplexity/mgaa", "metrics"),
        ("metric:rank/mgaa/0.q", "ranks"),
        ("metric:cosine/0.attention", "statistics"),
    ],
)
def test_what_a_word_stands_for(two: TinyProject, ask: Ask, what: str, kind: str) -> None:
    code, out, _ = ask(two, "show", what, "--json")
    assert code == 0
    assert json.loads(out)["root"].startswith(f"{kind}/")


def test_a_run_of_mlflow_leads_to_its_record(two: TinyProject, ask: Ask) -> None:
    from tests.support.laboratory import runs

    run, _ = runs(two, "compress")
    code, out, _ = ask(two, "show", f"mlflow:{run.info.run_id}", "--json")
    assert code == 0
    assert json.loads(out)["root"] == f"run/{run.data.tags['run.record']}"


def test_the_ancestry_of_a_run_is_that_of_this_run_where_equal_content_was_made_before(
    two: TinyProject, ask: Ask
) -> None:
    """Uniform ratios at 0.3 may be made from other statistics as well; the record of the run says from which these were."""
    _, out, _ = ask(two, "show", "last", "--json")
    found = json.loads(out)["artifacts"]
    record = json.loads((two.root / "results" / "record.json").read_bytes())
    named = {each for those in record["artifacts"].values() for each in those}
    behind = {each for told in found.values() for those in told["inputs"].values() for each in those}
    assert {each for each in behind if each.startswith(("statistics/", "backbone/"))} <= named


def test_a_figure_of_the_ancestry_is_written_as_svg_and_png(two: TinyProject, ask: Ask, tmp_path: Path) -> None:
    code, _, _ = ask(two, "show", "--figure", str(tmp_path / "ancestry.svg"))
    assert code == 0
    assert "decompose" in (tmp_path / "ancestry.svg").read_text()
    assert (tmp_path / "ancestry.png").exists()
    assert ask(two, "show", "--figure", str(tmp_path / "ancestry.pdf"))[0] == 2


def test_diff_tells_the_parameter_first_and_the_numbers_last(two: TinyProject, ask: Ask) -> None:
    runs = sorted(
        (two.root / "store" / "run").iterdir(), key=lambda path: json.loads((path / "record.json").read_bytes())["end"]
    )
    code, out, _ = ask(two, "diff", *(f"run/{run.name[:16]}" for run in runs))
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "parameter ratios.compression: 0.2 -> 0.3"
    assert lines[1].startswith("artifact  ratios.uniform: ratios/")
    assert any(line.startswith("metric    perplexity/mgaa: ") for line in lines)
    assert re.fullmatch(r"\d+ differences \(1 causes, \d+ effects\); the results differ by parameter", lines[-1])
    assert ask(two, "diff", "last", "last")[1] == "0 differences\n"


def test_verify_agrees_with_everything_that_a_run_left(two: TinyProject, ask: Ask) -> None:
    code, out, err = ask(two, "verify")
    assert code == 0, err
    assert ": 0 disagreements, " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nonsense"], "names nothing that has a lineage: expected a folder"),
        (["show", "ranks/0000000000"], "0 artifacts of"),
        (["show", "metric:perplexity/nobody"], "has no number 'perplexity/nobody', expected <metric>/<model>"),
        (["show", "mlflow:nobody"], "MLflow"),
        (["show", "dvc:HEAD"], "git has no dvc.lock at 'HEAD'"),
        (["shwo"], "No such command 'shwo'. Did you mean 'show'"),
        (["show", "last", "last"], "unexpected extra argument"),
        (["show", "--colour"], "No such option: --colour"),
        (["show", "stroe.path=x"], "There is no section 'stroe'; did you mean 'store'?"),
    ],
)
def test_a_wrong_word_is_one_line(two: TinyProject, ask: Ask, words: list[str], message: str) -> None:
    code, _, err = ask(two, *words)
    assert code in (2, 3, 5)
    assert message in err
    assert err.count("\n") == 1


def test_a_collection_leaves_a_store_from_which_the_same_run_executes_nothing(done: TinyProject, ask: Ask) -> None:
    assert done.run("ratios.compression=0.3").code == 0
    before = ask(done, "list", "--json")[1]
    code, out, _ = ask(done, "collect")
    assert code == 0
    assert "removed" in out
    assert len(json.loads(ask(done, "list", "--json")[1])) < len(json.loads(before))
    again = done.run("ratios.compression=0.3")
    assert (again.code, again.executed) == (0, {})
    assert ask(done, "verify")[0] == 0

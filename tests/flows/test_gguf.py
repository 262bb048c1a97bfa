"""A run whose backbone is a GGUF file: dequantized once, streamed from the store, and named in everything that is published."""

import hashlib
import json
from pathlib import Path

import pytest

from flows import lineage
from flows.command import subcommands
from flows.evaluate import evaluate
from flows.plan import plan
from tests.support.gguf_files import tiny_llama, write_gguf
from tests.support.laboratory import TinyProject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama(), matrices="Q4_1")


def test_a_run_says_everywhere_from_which_quantization(
    fresh: TinyProject, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"backbone.source={file}"
    outcome = fresh.run(source, "backbone.stream=always", "evaluation.baselines=[uniform]")
    assert (outcome.code, outcome.executed["dequantize"]) == (0, 1), outcome.message
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    told = f"dequantized from 14 Q4_1, 5 F32 and 1 Q8_0 tensors of tiny.gguf (sha256 {sha256})"
    for place in ("models/compressed/README.md", "results/report.html"):
        assert told in " ".join((fresh.root / place).read_text(encoding="utf-8").split())
    record = json.loads((fresh.root / "results" / "record.json").read_text())
    assert record["sources"]["backbone"] == {"tiny.gguf": sha256}
    parameters = f"--params={fresh.root / 'params.yaml'}"
    verbs = {"show": lineage.show, "verify": lineage.verify}
    capsys.readouterr()
    assert subcommands.main(verbs, [parameters, "show", "--full", "models/compressed"]) == 0
    shown = capsys.readouterr().out
    assert f"{file}" in "".join(shown.split())
    assert "dequantized/" in shown
    assert subcommands.main(verbs, [parameters, "verify"]) == 0, capsys.readouterr()
    again = fresh.run(source, "backbone.stream=always", "evaluation.baselines=[uniform]")
    assert (again.code, again.executed) == (0, {}), again.message
    measured = fresh.run(source, flow=evaluate)
    assert measured.code == 0, measured.message
    assert "dequantize" not in measured.executed


def test_a_file_is_planned_with(fresh: TinyProject, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = fresh.run(f"backbone.source={file.parent}", flow=plan)
    assert (outcome.code, outcome.message, outcome.executed) == (0, "", {})
    assert "dequantize" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "message"), [(-100, "cannot be read as a GGUF file"), (0, "cannot be read as a GGUF file")]
)
def test_a_damaged_file_ends_the_run_in_one_line(
    size: int, message: str, fresh: TinyProject, file: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(file.read_bytes()[:size])
    outcome = fresh.run(f"backbone.source={damaged}")
    assert (outcome.code, outcome.executed) == (3, {})
    assert outcome.message.count("\n") == 1
    assert message in outcome.message
    assert fresh.artifacts("dequantized") == []

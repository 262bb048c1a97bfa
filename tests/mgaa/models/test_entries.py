"""Once mgaa is imported, every program loads a compressed checkpoint, through whichever entry of transformers it comes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.checkpoints.save import save
from tests.support.processes import ROOT

ENTRIES = {
    "the auto class": "from transformers import AutoModelForCausalLM as Auto; model = Auto.from_pretrained(folder)",
    "a pipeline": "from transformers import pipeline; model = pipeline('text-generation', model=folder).model",
    "quantizers": """
from transformers.quantizers import AutoQuantizationConfig
assert AutoQuantizationConfig.from_pretrained(folder).modules""",
    "quantizers.auto": """
import transformers.quantizers.base
from transformers.quantizers.auto import AutoHfQuantizer
assert AutoHfQuantizer.from_pretrained(folder).quantization_config.modules""",
    "a search for the module": """
from importlib.util import find_spec
assert find_spec("transformers.quantizers.auto")
from transformers.models.llama.modeling_llama import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained(folder)""",
    "what loads": """
import transformers.core_model_loading
from transformers import AutoModel, AutoConfig
model = AutoModel.from_pretrained(folder, config=AutoConfig.from_pretrained(folder))""",
    "peft": "import peft; from transformers import Trainer, AutoModel as Auto; model = Auto.from_pretrained(folder)",
    "the harness": "from lm_eval.models.huggingface import HFLM; model = HFLM(pretrained=folder, device='cpu').model",
    "the library": "model, _ = mgaa.load(folder, device='cpu')",
}
"""What a program imports and calls first once it has imported mgaa; each is run in a process of its own."""

EACH = f"""if True:
    import json, os, sys, traceback
    import torch  # once for all of them

    folder, outcome = sys.argv[1], {{}}
    def run(code):
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            said = "as it should"
            try:
                assert "transformers" not in sys.modules
                known = {{"folder": folder}}
                exec(code, known)
                if "model" in known:
                    assert any(type(each).__name__ == "LowRankLinear" for each in known["model"].modules())
            except BaseException:
                said = traceback.format_exc()
            os.write(writing, said.encode()[-60000:])
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read().decode()
        os.waitpid(child, 0)
        return said

    for name, code in {ENTRIES!r}.items():
        outcome[f"mgaa, then {{name}}"] = run("import mgaa\\n" + code)
    outcome["the class, then mgaa"] = run("from transformers import LlamaForCausalLM as L; import mgaa; model = L.from_pretrained(folder)")
    print(json.dumps(outcome))
"""


@pytest.fixture
def folder(
    tiny: Callable[..., PreTrainedModel],
    compress: Callable[..., PreTrainedModel],
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Path:
    save(compress(tiny("llama")), words, tmp_path / "compressed")
    return tmp_path / "compressed"


@pytest.mark.slow
@pytest.mark.nightly
def test_whichever_entry_comes_first_finds_the_format(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", EACH, str(folder)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    outcome: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    assert {name: said for name, said in outcome.items() if said != "as it should"} == {}


@pytest.mark.slow
def test_the_command_line_of_a_program_that_knows_nothing_of_the_format_reaches_it(
    folder: Path, tmp_path: Path
) -> None:
    """`lm_eval` as its documentation has it, behind `python -m mgaa`."""
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "w{i} w{i + 1} w{i + 2}"}}\n' for i in range(3)))
    (tmp_path / "words.yaml").write_text(f"""
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}]
""")
    command = ["-m", "mgaa", "lm_eval", "--model", "hf", "--model_args", f"pretrained={folder}", "--device", "cpu"]
    task = ["--tasks", "words", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "results")]
    run = subprocess.run([sys.executable, *command, *task], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert "|words|" in run.stdout


@pytest.mark.parametrize("words", [[], ["--model"], ["no_such_module"], ["../script.py"]])
def test_a_program_that_is_none_is_named(words: list[str]) -> None:
    run = subprocess.run([sys.executable, "-m", "mgaa", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode not in (0, -11)
    assert run.stderr.startswith(
        "usage: " if len(words) == 0 or words[0].startswith("-") else "error: there is no module"
    )
    assert "Traceback" not in run.stderr

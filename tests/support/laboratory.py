"""A tiny project to run the real flows in: a small language model, text, `params.yaml`, a store of its own; and faults to inject.

A run in this process shares its imports and Prefect's test server (seconds); one in a separate process is for what only that can show.
Which steps were executed is read from the store: their key records are new.
"""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.databases import copy_database
from tests.support.processes import ROOT

BLOCKS = 3


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run: its exit code, its stderr, and how often each step was executed."""

    code: int
    message: str
    executed: dict[str, int]


@dataclass(frozen=True)
class TinyProject:
    """A folder with `params.yaml`, the store and the results."""

    root: Path

    @property
    def model(self) -> Path:
        """Folder of the backbone in `params.yaml`."""
        return Path(yaml.safe_load((self.root / "params.yaml").read_text())["backbone"]["source"])

    @property
    def texts(self) -> Path:
        """File with all documents."""
        return Path(yaml.safe_load((self.root / "params.yaml").read_text())["data"]["calibration"]["source"])

    def copy_model(self, folder: Path) -> Path:
        """Copy the backbone, to break the copy."""
        return Path(shutil.copytree(self.model, folder))

    def run(self, *overrides: str, flow: Callable[..., Any] | None = None) -> Outcome:
        """Run `python -m flows.compress` (or another flow) with these overrides, in this process."""
        from flows.command.cli import main
        from flows.compress import compress

        before, said = self.written(), io.StringIO()
        with redirect_stderr(said):
            code = main(flow or compress, [f"--params={self.root / 'params.yaml'}", *overrides])
        return Outcome(code, said.getvalue(), self.executed(before))

    def process(self, *overrides: str, before: str = "", **environment: str) -> subprocess.Popen[str]:
        """Start the command itself; `before` is Python code that its process runs first."""
        module = f"{before}\nimport runpy\nrunpy.run_module('flows.compress', run_name='__main__', alter_sys=True)"
        command = ["-c", module] if before else ["-m", "flows.compress"]
        return subprocess.Popen(
            [sys.executable, *command, f"--params={self.root / 'params.yaml'}", *overrides],
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, *overrides: str, before: str = "", **environment: str) -> Outcome:
        """Start the command and wait for its end."""
        written, process = self.written(), self.process(*overrides, before=before, **environment)
        message = process.communicate(timeout=300)[1]
        return Outcome(process.returncode, message, self.executed(written))

    def written(self) -> dict[Path, int]:
        """Modification time of each key record."""
        return {path: path.stat().st_mtime_ns for path in self.root.glob("store/keys/*.json")}

    def executed(self, before: dict[Path, int]) -> dict[str, int]:
        """Number of executions of each step since `written` returned `before`."""
        new = [path for path, time in self.written().items() if before.get(path) != time]
        stages = [json.loads(path.read_bytes())["stage"] for path in new]
        return dict(Counter(stage["task"] for stage in stages if stage["kind"] != "run"))

    def records(self) -> dict[str, tuple[str, str]]:
        """Task and digest of every cache key of a step in the store."""
        found = {path.stem: json.loads(path.read_bytes()) for path in self.root.glob("store/keys/*.json")}
        return {
            key: (record["stage"]["task"], record["digest"])
            for key, record in found.items()
            if record["stage"]["kind"] != "run"
        }

    def artifacts(self, kind: str) -> list[Path]:
        """Folders of the artifacts of one kind."""
        return sorted(path for path in self.root.glob(f"store/{kind}/*") if len(path.name) == 64)

    def copy(self, root: Path, *, store: bool = True) -> "TinyProject":
        """Copy the project, optionally without its store and results."""
        root.mkdir(parents=True)
        shutil.copy(self.root / "params.yaml", root)
        if store:
            shutil.copytree(self.root / "store", root / "store")
        return TinyProject(root)


def runs(lab: TinyProject, flow: str) -> tuple[Any, dict[str, Any]]:
    """Last run of a flow in MLflow, and its child runs by name."""
    from mlflow import MlflowClient

    client = MlflowClient(yaml.safe_load((lab.root / "params.yaml").read_text())["tracking"]["uri"])
    experiment = client.get_experiment_by_name("mgaa")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    parent = next(run for run in found if run.data.tags.get("mlflow.source.name") == f"python -m flows.{flow}")
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {run.info.run_name: run for run in children}


def striking(signal: str, kind: str, number: int) -> str:
    """Python code that sends its own process a signal just before artifact `number` of `kind`, written in full, is renamed into place."""
    return f"""
import os, re, signal, sys
places = []
def strike(event, arguments):
    if event == "os.rename" and re.search(r"/store/{kind}/[0-9a-f]{{64}}$", str(arguments[1])):
        places.append(arguments[1])
        if len(places) == {number}:
            os.kill(os.getpid(), signal.{signal})
sys.addaudithook(strike)
"""


def build(root: Path, model: Path) -> TinyProject:
    """Build a project around a model of `write_model`."""
    root.mkdir()
    texts = documents(seed=1)
    (root / "texts.txt").write_text("\n\n".join(texts), encoding="utf-8")
    write_model(model, texts)
    parameters = yaml.safe_load((ROOT / "params.yaml").read_text())
    parameters["backbone"]["source"] = str(model)
    ranges = {"calibration": (0.0, 0.5), "validation": (0.5, 0.7), "evaluation": (0.7, 1.0), "recovery": (0.0, 0.5)}
    for name, (start, end) in ranges.items():
        parameters["data"][name] |= {
            "source": str(root / "texts.txt"),
            "from": start,
            "to": end,
            "length": 32,
            "samples": None,
        }
    for name, samples in {"calibration": 24, "validation": 40, "evaluation": 40}.items():
        parameters["data"][name]["samples"] = samples
    parameters["statistics"]["groups"] = 4
    parameters["evaluation"] |= {"tasks": ["last_word", "continuation"], "limit": 6}
    parameters["evaluation"]["samples"] = {"number": 2, "prompt": 8, "tokens": 4}
    parameters["tracking"]["uri"] = f"sqlite:///{copy_database(root / 'mlflow.db')}"  # one for all copies
    (root / "params.yaml").write_text(yaml.safe_dump(parameters))
    return TinyProject(root)


def documents(seed: int, number: int = 120) -> list[str]:
    """Sentences of made-up words; a few words recur, as in real text."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(2, 3))) for _ in range(150)]

    def sentence(topic: list[str]) -> str:
        return " ".join(draw.choices(topic, k=draw.randint(7, 12))) + "."

    return [" ".join(sentence(draw.sample(words, 30)) for _ in range(12)) for _ in range(number)]


def write_tokenizer(folder: Path, texts: list[str], size: int = 300) -> None:
    """Write a byte-level BPE tokenizer trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def write_model(folder: Path, texts: list[str], rows: int = 320, seed: int = 0) -> None:
    """Write a random Llama with grouped-query attention and tied embeddings of so many rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    write_tokenizer(folder, texts)


def write_other_model(folder: Path, model: Path) -> None:
    """Write a random Bloom, which has no entry among the architectures, with the tokenizer of `model`."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    config = BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    BloomForCausalLM(config).save_pretrained(folder)
    for path in model.glob("tokenizer*"):
        shutil.copy(path, folder)


def change(model: Path, name: str, alter: Callable[[Any], object]) -> None:
    """Alter one tensor of a checkpoint in its file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    alter(tensors[name])
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

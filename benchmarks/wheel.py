"""Smoke test of the wheel: compress, search, save, load and densify the model at argv[1] with nothing but the wheel installed."""

import importlib.util
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM

import mgaa
from mgaa.search import compress_by_search_

for orchestrator in ("prefect", "mlflow", "dvc", "lm_eval", "tasks", "flows"):
    assert importlib.util.find_spec(orchestrator) is None, (
        f"{orchestrator} is importable: this environment is not clean"
    )

model, tokenizer = mgaa.load(sys.argv[1], device="cpu")
text = "The wheel holds the library alone: torch, transformers, accelerate and safetensors are all that it needs. " * 40
ids = torch.tensor(tokenizer(text)["input_ids"])
tokens = ids[: len(ids) // 64 * 64].reshape(-1, 64)
report = mgaa.compress_(model, tokens, compression=0.2)
searched, trials = compress_by_search_(
    mgaa.load(sys.argv[1], device="cpu")[0], tokens, tokens, factors="afm", method="random", evaluations=2
)
assert 0.2 - 1e-9 <= searched.compression < 0.201, "a search spends another budget"
with tempfile.TemporaryDirectory() as folder:
    mgaa.save(model, tokenizer, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
with torch.no_grad():
    assert torch.equal(loaded(tokens[:2]).logits, model(tokens[:2]).logits), "the saved checkpoint is another model"
    mgaa.densify(loaded)
print(
    f"mgaa {mgaa.__version__} from {mgaa.__file__}: compression {report.compression:.4f}, reloaded bit for bit, folded back"
)

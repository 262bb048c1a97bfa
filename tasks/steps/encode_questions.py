"""Step 3c, encode questions: those of a section as sequences, by the backbone's processor and its chat template (`mgaa.inputs.prompts`)."""

import hashlib
from pathlib import Path
from typing import Any

from tasks.artifacts.backbone import backbone_processor
from tasks.artifacts.files import CARD, PROMPTS, backbone_record, read_table, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.data.questions import questions_of


@step(kind="tokens", task_run_name="encode_questions-{section}")
def encode_questions(out: Path, store: Store, backbone: Artifact, questions: Artifact, *, section: str) -> None:
    """The questions of a section with their answers, in the order of rising length."""
    from mgaa.inputs.prompts import encode
    from mgaa.inputs.tokens import check_vocabulary, digest

    config, processor = backbone_processor(store, backbone)
    asked = questions_of(store, questions, section)
    prompts, _ = encode(asked, processor, config).by_length()
    check_vocabulary(prompts.ids(), backbone_record(store, backbone)["vocabulary"])
    prompts.save(out / PROMPTS)
    card = {
        "length": max(prompts.lengths),
        "sequences": len(prompts),
        "tokens": prompts.tokens,
        "image_tokens": prompts.image_tokens,
        "bos_rule": template_rule(processor),
        "data_digest": read_table(store, questions, CARD)["sections"][section]["data_digest"],
        "token_digest": digest(prompts.ids()),
    }
    write_table(out / CARD, card)


def template_rule(processor: Any) -> str:
    """The rule by which prompts are made, in words."""
    return f"chat template {hashlib.sha256(str(processor.chat_template).encode()).hexdigest()[:12]} of the processor"

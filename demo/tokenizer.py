"""The vocabulary of the embedded backbone: byte-level BPE (Sennrich 2016; bytes as in GPT-2), 4,096 tokens, learned on the train split.

It works on bytes so that every text has an encoding and decoding restores it exactly, on which bits per byte rely. It is small because a
tied embedding of 4,096 rows is already a fifth of the backbone. No special token is added automatically: code that packs documents puts
`<s>` before each of them explicitly, instead of relying on a post-processor.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
VOCABULARY = 4096


def train(texts: Iterable[str], *, vocabulary: int = VOCABULARY, context: int = 512) -> PreTrainedTokenizerFast:
    """Train a tokenizer on `texts`, with `<s>` as id 0 and `</s>` as id 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )

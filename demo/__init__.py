"""The embedded backbone: its text, its tokenizer, its training, and the yardsticks beside it.

The text comes from `corpus.py`, the vocabulary from `tokenizer.py`, rows of tokens from `packing.py`; `train.py`
makes `models/demo` of them and `record.py` writes down how, with the bits per byte of xz and of `byte_model.py` beside the result
(`yardsticks.py`). `tasks.py` makes zero-shot tasks out of the same text.
"""

"""The embedded models: their text and images, their training, and the yardsticks beside them.

The text comes from `corpus.py`, the vocabulary from `tokenizer.py`, rows of tokens from `packing.py`; `train.py`
makes `models/demo` of them and `record.py` writes down how, with the bits per byte of xz and of `byte_model.py` beside the result
(`yardsticks.py`). `tasks.py` makes zero-shot tasks out of the same text.

The model that sees has the form of `vlm.py`. Its images are drawn by `scenes.py`, with questions and captions, or come from easy-VQA
(`easy_vqa.py`); `tower.py` trains its eyes first, `dialogues.py` makes rows of images with several questions, and `train_vlm.py` makes
`models/demo-vlm` of them, with the record of `vlm_record.py`.
"""

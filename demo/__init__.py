"""The embedded models: their text and images, their training, and the yardsticks for comparison.

The text comes from `corpus.py`, the vocabulary from `tokenizer.py`, rows of tokens from `packing.py`; `train.py`
trains `models/demo` on them and `record.py` documents how, with the bits per byte of xz and of `byte_model.py` for comparison
(`yardsticks.py`). `tasks.py` makes zero-shot tasks from the same text.

The architecture of the vision-language model is in `vlm.py`. Its images are drawn by `scenes.py`, with questions and captions, or come from
easy-VQA (`easy_vqa.py`); `tower.py` trains the vision tower first, `dialogues.py` makes rows of images with several questions, and
`train_vlm.py` trains `models/demo-vlm` on them, with the record of `vlm_record.py`.

`smollm2.py` fetches a real LLM and a text for it instead, in pinned wheels (`wheels.py`).
"""

"""The text a language model reads."""

from __future__ import annotations

PLACEHOLDER = "{instruction}"
OPENVLA_PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
QWEN_PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n<|im_start|>assistant\n"
)
"""MiniVLA's (openvla-mini qwen_prompter.py at 0822b36)."""

SMALL_TOKENIZER_SPECIALS = ("<unk>", "<s>", "</s>", "▁", "<PAD>")
"""Special tokens of the tokenizer of small models; <s> and </s> have Llama's ids."""
SMALL_EMPTY_TOKEN_ID = SMALL_TOKENIZER_SPECIALS.index("▁")
"""The token that OpenVLA puts between prompt and actions, in that tokenizer."""


def prompt_text(template: str, instruction: str) -> str:
    """The template with the instruction, stripped and in lower case (openvla: vla-scripts/deploy.py)."""
    return template.replace(PLACEHOLDER, instruction.strip().lower())

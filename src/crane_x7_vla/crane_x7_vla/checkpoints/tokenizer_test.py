from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from crane_x7_vla.checkpoints.tokenizer import minivla_tokens, small_chat_tokenizer, small_tokenizer
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.transforms.prompt import QWEN_PROMPT, prompt_text


def test_the_action_tokens_are_the_last_256() -> None:
    tokenizer = small_chat_tokenizer()
    rows, end = minivla_tokens(tokenizer)
    assert (len(rows), rows.stop) == (256, tokenizer.get_vocab_size())
    assert [tokenizer.id_to_token(token) for token in end] == ["<|im_end|>", "<|endoftext|>"]


def test_a_chat_prompt_keeps_its_special_tokens_whole() -> None:
    tokenizer = small_chat_tokenizer()
    text = prompt_text(QWEN_PROMPT, " Pick up the Red cube ")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    start, end = (tokenizer.get_vocab()[token] for token in ("<|im_start|>", "<|im_end|>"))
    assert ids[0] == start
    assert (ids.count(start), ids.count(end)) == (3, 2)
    assert "take to pick up the red cube?<|im_end|>\n<|im_start|>assistant\n" in tokenizer.decode(
        ids, skip_special_tokens=False
    )


def test_another_models_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"lacks 259 tokens of MiniVLA's, such as <\|endoftext\|>"):
        minivla_tokens(small_tokenizer())
    scattered: Tokenizer = small_tokenizer()
    scattered.add_special_tokens(["<|extra_7|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    scattered.add_special_tokens([f"<|extra_{index}|>" for index in range(256)])
    with pytest.raises(CheckpointError, match="do not follow one another"):
        minivla_tokens(scattered)

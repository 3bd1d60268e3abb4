"""Tokenizers: reading them, one for models too small for a published one, and the tokens that MiniVLA adds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from crane_x7_vla.checkpoints.files import read_json
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.transforms.prompt import SMALL_TOKENIZER_SPECIALS

_CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_ANSWER_END = ("<|im_end|>", "<|endoftext|>")
_ACTION_TOKENS = tuple(f"<|extra_{index}|>" for index in range(256))


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json; raises CheckpointError naming the file."""
    read_json(path)  # what the Rust side raises of a file that is no JSON says neither which it was nor what to do
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other class
        raise CheckpointError(f"{path} is not a tokenizer ({error}); copy the model again") from error


def small_tokenizer(texts: Iterable[str] = (), *, vocab_size: int = 320) -> Tokenizer:
    """A byte-level BPE tokenizer that reads any text, with merges learnt from ``texts`` up to ``vocab_size`` entries.

    Without texts every byte is a token. Saved as tokenizer.json it is an ordinary Hugging Face tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SMALL_TOKENIZER_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def small_chat_tokenizer() -> Tokenizer:
    """A ``small_tokenizer`` with Qwen's chat tokens and MiniVLA's action tokens."""
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens([*_CHAT_TOKENS, *_ACTION_TOKENS])
    return tokenizer


def add_action_tokens(tokenizer: Tokenizer) -> None:
    """Append MiniVLA's action tokens to Qwen's vocabulary, unless they are there (openvla-mini qwen25.py:60-69)."""
    tokenizer.add_tokens([token for token in _ACTION_TOKENS if tokenizer.token_to_id(token) is None])


def minivla_tokens(tokenizer: Tokenizer) -> tuple[range, tuple[int, int]]:
    """(ids of the 256 action tokens, ids of the two tokens that end an answer) of MiniVLA's tokenizer.

    Raises CheckpointError where one is missing.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (*_CHAT_TOKENS, *_ACTION_TOKENS) if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"the base model's tokenizer lacks {len(missing)} tokens of MiniVLA's, such as {missing[0]}; expected "
            "Qwen2.5's with 256 action tokens, as in Stanford-ILIAD/minivla-vq-libero90-prismatic"
        )
    ids = [vocabulary[token] for token in _ACTION_TOKENS]
    rows = range(ids[0], ids[0] + len(ids))
    if ids != list(rows):
        raise CheckpointError("the action tokens of the base model's tokenizer do not follow one another")
    im_end, endoftext = (vocabulary[token] for token in _ANSWER_END)
    return rows, (im_end, endoftext)

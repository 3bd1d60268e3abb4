"""A tokenizer for models too small for a published one."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from crane_x7_vla.transforms.prompt import SMALL_TOKENIZER_SPECIALS


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

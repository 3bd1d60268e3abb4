"""The base's config.json, tokenizer and image normalisation, and the instructions it is pretrained on."""

from __future__ import annotations

from crane_x7_bringup.base.shape import EMPTY_TOKEN_ID, IMAGE_SIZE, PATCH, STOP_TOKEN_ID
from crane_x7_vla.checkpoints.architecture import architecture
from crane_x7_vla.checkpoints.layouts import Assets, default_normalizations
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.transforms.prompt import OPENVLA_PROMPT, prompt_text
from lift.tasks.pick_up import COLOURS

_VOCABULARY = 448
PHRASES = (
    "pick up the {}",
    "pick the {} up",
    "grasp the {}",
    "grab the {}",
    "lift the {}",
    "take the {}",
    "move to the {}",
    "reach for the {}",
)
NOUNS = ("cube", "block")


def base_assets() -> Assets:
    """config.json, tokenizer and image normalisation of the base: OpenVLA's, made small."""
    published = dict(architecture("tiny"))
    tower = {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": PATCH, "mlp_ratio": 2.0}
    published |= {
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE],
        "timm_model_kwargs": [{**tower, "init_values": 0.5}, tower],
        "text_config": {
            **published["text_config"],
            "vocab_size": _VOCABULARY,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
    }
    texts = [
        prompt_text(OPENVLA_PROMPT, instruction(phrase, colour, noun))
        for phrase in PHRASES
        for colour in COLOURS
        for noun in NOUNS
    ]
    tokenizer = small_tokenizer(texts, vocab_size=_VOCABULARY)
    if tokenizer.token_to_id("▁") != EMPTY_TOKEN_ID or tokenizer.token_to_id("</s>") != STOP_TOKEN_ID:
        raise RuntimeError("the small tokenizer's special tokens have moved")
    return Assets(published, tokenizer, default_normalizations(2))


def instruction(phrase: str, colour: str, noun: str) -> str:
    """What an operator might say."""
    return phrase.format(f"{colour} {noun}")

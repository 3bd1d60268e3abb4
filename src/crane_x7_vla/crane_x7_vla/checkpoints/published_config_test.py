"""The texts beside openvla-7b's weights as they are published, which no code of ours wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crane_x7_vla.checkpoints import layouts
from crane_x7_vla.checkpoints.architecture import trunk_config
from crane_x7_vla.checkpoints.published import base_statistics, read_assets
from crane_x7_vla.checkpoints.tokenizer import small_tokenizer
from crane_x7_vla.transforms.image import ChannelNormalization

CONFIG = """{
  "arch_specifier": "no-align+fused-gelu-mlp",
  "architectures": ["OpenVLAForActionPrediction"],
  "auto_map": {
    "AutoConfig": "configuration_prismatic.OpenVLAConfig",
    "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"
  },
  "hf_llm_id": "meta-llama/Llama-2-7b-hf",
  "image_resize_strategy": "resize-naive",
  "image_sizes": [224, 224],
  "llm_backbone_id": "llama2-7b-pure",
  "llm_max_length": 2048,
  "model_type": "openvla",
  "n_action_bins": 256,
  "norm_stats": {
    "bridge_orig": {
      "action": {
        "mask": [true, true, true, true, true, true, false],
        "max": [1, 1, 1, 1, 1, 1, 1],
        "mean": [0, 0, 0, 0, 0, 0, 0.5],
        "min": [-1, -1, -1, -1, -1, -1, 0],
        "q01": [-0.5, -0.5, -0.5, -0.5, -0.5, -0.5, 0],
        "q99": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1],
        "std": [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.5]
      },
      "num_trajectories": 60064,
      "num_transitions": 2135463
    }
  },
  "output_projector_states": false,
  "pad_to_multiple_of": 64,
  "pad_token_id": 32000,
  "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
  "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
  "timm_override_act_layers": [null, null],
  "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1",
  "use_fused_vision_backbone": true,
  "vision_backbone_id": "dinosiglip-vit-so-224px"
}"""
PREPROCESSOR = """{
  "auto_map": {
    "AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor",
    "AutoProcessor": "processing_prismatic.PrismaticProcessor"
  },
  "image_processor_type": "PrismaticImageProcessor",
  "image_resize_strategy": "resize-naive",
  "input_sizes": [[3, 224, 224], [3, 224, 224]],
  "interpolations": ["bicubic", "bicubic"],
  "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
  "processor_class": "PrismaticProcessor",
  "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
  "tvf_crop_params": [{"output_size": [224, 224]}, {"output_size": [224, 224]}],
  "tvf_do_letterbox": false,
  "tvf_letterbox_fill": null,
  "tvf_normalize_params": [
    {
      "inplace": false,
      "mean": [0.484375, 0.455078125, 0.40625],
      "std": [0.228515625, 0.2236328125, 0.224609375]
    },
    {"inplace": false, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
  ],
  "tvf_resize_params": [
    {"antialias": true, "interpolation": 3, "max_size": null, "size": [224, 224]},
    {"antialias": true, "interpolation": 3, "max_size": null, "size": [224, 224]}
  ],
  "use_fused_vision_backbone": true
}"""


@pytest.fixture
def openvla_7b(tmp_path: Path) -> Path:
    directory = tmp_path / "openvla-7b"
    directory.mkdir()
    (directory / "config.json").write_text(CONFIG)
    (directory / "preprocessor_config.json").write_text(PREPROCESSOR)
    small_tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def test_the_sparse_config_gives_the_published_dimensions(openvla_7b: Path) -> None:
    config = trunk_config(read_assets(openvla_7b).published, source="openvla-7b")
    dino, siglip = config.towers
    assert (dino.width, dino.blocks, dino.heads, dino.mlp_width) == (1024, 23, 16, 4096)
    assert (dino.class_token, dino.registers, dino.layer_scale) == (True, 4, 1e-5)
    assert (siglip.width, siglip.blocks, siglip.heads, siglip.mlp_width) == (1152, 26, 16, 4304)
    assert (siglip.class_token, siglip.registers, siglip.layer_scale) == (False, 0, None)
    assert [tower.patches for tower in config.towers] == [256, 256]
    llama = config.decoder
    assert (llama.vocab_size, llama.hidden_size, llama.intermediate_size) == (32064, 4096, 11008)
    assert (llama.num_hidden_layers, llama.num_attention_heads, llama.num_key_value_heads) == (32, 32, 32)
    assert (llama.rms_norm_eps, llama.rope_theta) == (1e-6, 10000.0)  # LlamaConfig's, not Llama 2's 1e-5
    assert (llama.qkv_bias, llama.tied_embeddings) == (False, False)


def test_images_are_normalised_with_the_rounded_numbers_that_the_model_was_published_with(openvla_7b: Path) -> None:
    """Those by which its processor works, rather than means and stds, from which it once made them."""
    assert read_assets(openvla_7b).normalizations == (
        ChannelNormalization((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)),
        ChannelNormalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    )


def test_its_statistics_are_of_seven_numbers(openvla_7b: Path) -> None:
    assert base_statistics(openvla_7b) == {"bridge_orig": 7}


def test_what_is_written_of_it_says_the_same(openvla_7b: Path, tmp_path: Path) -> None:
    written = tmp_path / "written"
    written.mkdir()
    layouts.write_model(written, tensors={"x": torch.zeros(1, dtype=torch.bfloat16)}, assets=read_assets(openvla_7b))
    assert json.loads((written / "config.json").read_text()) == json.loads(CONFIG)
    published, ours = json.loads(PREPROCESSOR), json.loads((written / "preprocessor_config.json").read_text())
    del published["auto_map"]  # OpenVLA's code does not lie beside what we write
    assert ours.keys() == published.keys()
    remade = {"means", "stds"}  # from these its processor would make the numbers that the file then states
    assert {key: ours[key] for key in published if key not in remade} == {
        key: value for key, value in published.items() if key not in remade
    }
    assert read_assets(written).normalizations == read_assets(openvla_7b).normalizations

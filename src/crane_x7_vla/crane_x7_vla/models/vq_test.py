from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crane_x7_vla.models.vq import ActionVQ, VQShape, nearest

torch.set_num_threads(1)
GOLDEN = np.load(Path(__file__).parent / "testdata" / "vq.npz")
META = json.loads(str(GOLDEN["meta"]))
KEYS: dict[str, dict[str, list[int]]] = json.loads(str(GOLDEN["keys"]))
# Sums that only training needs.
NOT_OURS = ("initted", "cluster_size", "embed_avg")


def golden_vq() -> ActionVQ:
    """The reference's weights under its names, loaded strictly."""
    shape = VQShape(**{name: META["horizon" if name == "action_horizon" else name] for name in VQShape.__slots__})
    vq = ActionVQ(shape)
    weights = {
        f"{part}.{key}": golden_weight(f"{part}.{key}", size)
        for part, keys in KEYS.items()
        for key, size in keys.items()
        if not key.endswith(NOT_OURS)
    }
    vq.load_state_dict(weights, strict=True)
    return vq


def golden_weight(key: str, shape: list[int]) -> Tensor:
    """``meta.weight_rule``."""
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    scale = {1: 0.1, 2: 0.15, 3: 0.3}[len(shape)]
    return torch.from_numpy(random.standard_normal(int(np.prod(shape))).astype("float32").reshape(shape) * scale)


def test_codes_and_reconstruction_are_those_of_the_reference() -> None:
    vq = golden_vq()
    with torch.inference_mode():
        codes = vq.encode(torch.from_numpy(GOLDEN["actions"]))
        actions = vq.decode(torch.from_numpy(GOLDEN["codes"])).numpy()
    assert np.array_equal(codes.numpy(), GOLDEN["codes"])
    largest = np.abs(GOLDEN["reconstruction"]).max()
    assert np.abs(actions - GOLDEN["reconstruction"]).max() <= 2e-4 * largest


def test_a_chunk_has_the_same_codes_alone_and_in_a_batch() -> None:
    vq, actions = golden_vq(), torch.from_numpy(GOLDEN["actions"])
    with torch.inference_mode():
        alone = torch.cat([vq.encode(chunk[None]) for chunk in actions])
    assert np.array_equal(alone.numpy(), GOLDEN["codes"])


def test_each_group_takes_what_the_groups_before_it_leave() -> None:
    vq = golden_vq()
    with torch.inference_mode():
        latent = vq.encoder(torch.from_numpy(GOLDEN["actions"]).flatten(1))
        codes, entries, residuals = vq.vq_embedding(latent)
    assert torch.equal(residuals[:, 0], latent)
    assert torch.allclose(residuals[:, 1:], residuals[:, :-1] - entries[:, :-1])
    assert torch.equal(vq.vq_embedding.entries(codes), entries)


def test_the_first_of_equally_near_entries_is_taken() -> None:
    assert nearest(torch.zeros(1, 2), torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist() == [1]

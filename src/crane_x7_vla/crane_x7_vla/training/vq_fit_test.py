from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crane_x7_vla.models.vq import ActionVQ, VQShape
from crane_x7_vla.training.vq_fit import CodebookAverages, FitSettings, fit

torch.set_num_threads(1)
SHAPE = VQShape(action_horizon=4, action_dim=3, n_latent=16, n_embed=16, n_groups=3)
SETTINGS = FitSettings(steps=300, batch_size=64, learning_rate=3e-3, seed=0)


@pytest.fixture(scope="module")
def chunks() -> Tensor:
    """Straight motions in every direction."""
    random = torch.Generator().manual_seed(0)
    ends = torch.rand(512, 1, 3, generator=random) * 2 - 1
    return ends * torch.linspace(0.25, 1, 4)[:, None]


def averages(vq: ActionVQ) -> CodebookAverages:
    return CodebookAverages(vq, random=torch.Generator().manual_seed(0))


def test_a_trained_vq_reconstructs_chunks_it_has_not_seen(chunks: Tensor) -> None:
    reports: list[int] = []
    vq = fit(chunks[:448], SHAPE, SETTINGS, report=lambda step, _: reports.append(step))
    unseen = chunks[448:]
    with torch.inference_mode():
        codes = vq.encode(unseen)
        error = (vq.decode(codes) - unseen).abs().mean()
    assert error < 0.2 * unseen.abs().mean()
    assert len(codes[:, 0].unique()) > 8
    assert (reports[0], reports[-1]) == (4, 300)
    assert not vq.training


def test_each_group_makes_the_reconstruction_better(chunks: Tensor) -> None:
    vq = fit(chunks, SHAPE, SETTINGS, report=lambda *_: None)
    with torch.inference_mode():
        _, entries, _ = vq.vq_embedding(vq.encoder(chunks.flatten(1)))
        errors = [(vq.actions(entries[:, :count].sum(1)) - chunks).abs().mean() for count in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_the_same_seed_gives_the_same_vq(chunks: Tensor) -> None:
    short = FitSettings(steps=20, batch_size=64, learning_rate=3e-3, seed=3)
    first, second = (fit(chunks, SHAPE, short, report=lambda *_: None).state_dict() for _ in range(2))
    other = fit(chunks, SHAPE, FitSettings(steps=20, batch_size=64, learning_rate=3e-3, seed=4), report=lambda *_: None)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["encoder.fc.weight"], other.state_dict()["encoder.fc.weight"])


def test_entries_go_to_the_mean_of_what_they_stand_for() -> None:
    vq = ActionVQ(SHAPE)
    moving = averages(vq)
    vectors = torch.arange(16.0)[:, None].expand(16, 16).repeat(4, 1)
    moving.begin(vectors)
    codes = torch.arange(64)[:, None].expand(64, 3) % 16
    for _ in range(60):
        moving.update(codes, vectors[:, None].expand(64, 3, 16))
    for book in vq.vq_embedding.codebooks():
        torch.testing.assert_close(book, vectors[:16], rtol=1e-4, atol=1e-4)


def test_an_entry_that_nothing_is_near_starts_anew_from_the_data() -> None:
    vq = ActionVQ(SHAPE)
    moving = averages(vq)
    moving.begin(torch.full((8, 16), 100.0))
    near = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    codes = torch.zeros(64, 3, dtype=torch.long)  # all are taken for entry 0, whatever is near
    for _ in range(40):
        moving.update(codes, near[:, None].expand(64, 3, 16))
    for book in vq.vq_embedding.codebooks():
        assert book.abs().max() < 10
        distances = torch.cdist(book[1:], near).min(1).values
        assert distances.max() < 2

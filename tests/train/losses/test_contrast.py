from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks

from train.losses.contrast import contrast

GROUPS = torch.tensor([3, 1, 3, 7, 1, 3, 9, 7])


def _embeddings() -> torch.Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _loop(embeddings: np.ndarray[Any, Any], groups: list[int], similarity: str, temperature: float) -> float:
    def alike(a: Any, b: Any) -> float:
        if similarity == "cosine":
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / temperature
        return -float(((a - b) ** 2).sum()) / temperature

    losses = []
    for i, one in enumerate(embeddings):
        others = sum(np.exp(alike(one, n)) for n, group in zip(embeddings, groups, strict=True) if group != groups[i])
        for j, other in enumerate(embeddings):
            if j != i and groups[j] == groups[i]:
                losses.append(-np.log(np.exp(alike(one, other)) / (np.exp(alike(one, other)) + others)))
    return float(np.mean(losses))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_it_is_what_a_loop_over_pairs_gives(similarity: Any, temperature: float) -> None:
    expected = _loop(_embeddings().numpy(), GROUPS.tolist(), similarity, temperature)
    assert float(contrast(_embeddings(), GROUPS, similarity, temperature)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_those_of_a_group_come_together_and_never_push_each_other_away(similarity: Any) -> None:
    embeddings = _embeddings().float().requires_grad_()
    optimiser = torch.optim.Adam([embeddings], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        contrast(embeddings, GROUPS, similarity, 0.5).backward()
        optimiser.step()
    apart = torch.cdist(embeddings.detach(), embeddings.detach())
    same = GROUPS[:, None] == GROUPS
    assert apart[same].max() < apart[~same].min()
    one_group = _embeddings().float().requires_grad_()
    contrast(one_group, torch.zeros(8, dtype=torch.int64), similarity, 0.5).backward()
    assert one_group.grad is not None
    assert not one_group.grad.any()


def test_where_every_group_is_of_one_there_is_nothing_to_learn() -> None:
    embeddings = _embeddings().float().requires_grad_()
    loss = contrast(embeddings, torch.arange(8), "cosine", 0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def _of_rank(rank: int, folder: str, similarity: Any) -> None:
    own = slice(4 * rank, 4 * rank + 4)
    embeddings = _embeddings()[own].float().requires_grad_()
    loss = contrast(embeddings, GROUPS[own], similarity, 0.3)
    loss.backward()
    torch.save((loss.detach(), embeddings.grad), Path(folder) / f"{rank}.pt")


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_two_ranks_give_the_loss_and_the_gradients_of_one(tmp_path: Path, similarity: Any) -> None:
    on_ranks(2, _of_rank, str(tmp_path), similarity)
    (one, first), (two, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    embeddings = _embeddings().float().requires_grad_()
    whole = contrast(embeddings, GROUPS, similarity, 0.3)
    whole.backward()
    torch.testing.assert_close((one + two) / 2, whole.detach())
    torch.testing.assert_close(torch.cat([first, second]) / 2, embeddings.grad)  # as data parallelism averages them

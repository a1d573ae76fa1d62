"""The hashed bigram embedding: buckets by hand and as recorded, and the formula around them."""

import torch
from torch import Tensor

from golf.model.hooks import Hooks
from golf.model.parts.bigram import BigramHash
from golf.part_config import BigramConfig
from tests.pico import pico_recipe


def part(buckets: int = 2048, dim: int = 8) -> BigramHash:
    return BigramHash(pico_recipe().model, BigramConfig(buckets=buckets, dim=dim))


def after_the_first(tokens: Tensor) -> Tensor:
    """True but at row starts."""
    follows = torch.ones_like(tokens, dtype=torch.bool)
    follows[:, 0] = False
    return follows


def test_buckets_are_the_hash_by_hand() -> None:
    tokens = torch.tensor([[5, 7]])
    # 36313 * 7 XOR 27191 * 5 = 254191 XOR 135955 = 127996 = 62 * 2047 + 1082
    assert part().bucket(tokens, after_the_first(tokens)).tolist() == [[2047, 1082]]


def test_starts_of_rows_and_documents_fall_into_the_last_bucket() -> None:
    tokens = torch.tensor([[4, 9, 1, 9, 4], [9, 4, 4, 1, 1]])
    follows = torch.tensor([[False, True, False, True, True], [False, True, True, False, False]])
    buckets = part(37).bucket(tokens, follows)
    assert ((buckets == 36) == ~follows).all()


def test_no_pair_falls_into_the_last_bucket() -> None:
    tokens = torch.randint(8192, (1, 4096), generator=torch.Generator().manual_seed(0))
    buckets = part(37).bucket(tokens, after_the_first(tokens))
    assert sorted(set(buckets[0, 1:].tolist())) == list(range(36))


def test_the_order_of_a_pair_matters() -> None:
    tokens = torch.tensor([[5, 7, 5]])
    buckets = part().bucket(tokens, after_the_first(tokens))[0].tolist()
    assert buckets[1] != buckets[2]


@torch.no_grad()
def test_the_scaled_projection_of_the_bucket_is_added() -> None:
    bigram = part(37)
    generator = torch.Generator().manual_seed(0)
    bigram.table.weight.copy_(torch.randn(37, 8, generator=generator))
    e, tokens = torch.randn(2, 5, 32, generator=generator), torch.arange(10).view(2, 5)
    follows = after_the_first(tokens)
    found = bigram(e, tokens, follows, Hooks())
    for row, t in ((0, 0), (0, 3), (1, 4)):
        vector = bigram.table.weight[bigram.bucket(tokens, follows)[row, t]]
        torch.testing.assert_close(found[row, t], e[row, t] + 0.05 * bigram.proj.weight @ vector)

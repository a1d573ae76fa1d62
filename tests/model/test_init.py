"""Initial weights: the scheme of every parameter, the count, and the seed."""

import math

import pytest
import torch
from torch import Tensor

from golf.model.gpt import GPT
from golf.model.init import build_model, count_parameters, init_weights
from golf.model.plan import plan_layers
from golf.model_config import ModelConfig
from golf.recipe import load_recipe
from golf.roles import role_of
from tests.narrow import narrow_recipe
from tests.pico import pico_batch, pico_recipe

CPU = torch.device("cpu")


def fresh(config: ModelConfig | None = None, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    model = build_model(config or pico_recipe().model, seed=seed, dtype=dtype, device=CPU)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_the_demo_has_as_many_parameters_as_its_shape_says() -> None:
    vocab, dim, heads, kv_dim, hidden, layers = 512, 128, 4, 64, 384, 4
    attention = dim * dim + 2 * dim * kv_dim + dim * dim + heads
    block = attention + 2 * dim * hidden + 2 * dim + 2 * dim  # scales and mixes
    bigram = 256 * 32 + 32 * dim + 1
    smear = 12 + 1
    value_embedding = vocab * 32 + 32 * kv_dim + 1 + 2
    skips = 2 * 3 * dim  # three pairs with the loop on
    expected = vocab * dim + layers * block + bigram + smear + value_embedding + skips
    model = build_model(load_recipe("demo").model, seed=1, dtype=torch.float32, device=CPU)
    assert count_parameters(model) == expected == 688_929


def is_scaled_orthogonal(weight: Tensor, gain: float) -> bool:
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    return torch.allclose(wide @ wide.T, gain**2 * torch.eye(len(wide), dtype=torch.float64), atol=1e-6)


def test_every_parameter_starts_by_its_scheme() -> None:
    schemes: dict[str, list[str]] = {}
    for name, weight in fresh().items():
        if weight.ndim == 2 and is_scaled_orthogonal(weight, 1.0):
            scheme = "orthogonal"
        elif weight.ndim == 2 and is_scaled_orthogonal(weight, 1 / math.sqrt(8)):
            scheme = "orthogonal / sqrt(2 layers)"
        elif weight.unique().numel() == 1:
            scheme = f"{weight.flatten()[0]:g}"
        else:
            scheme = "other"
        schemes.setdefault(scheme, []).append(name)
    blocks = range(4)
    assert schemes.pop("orthogonal") == [
        f"blocks.{i}.{name}.weight" for i in blocks for name in ("attn.c_q", "attn.c_k", "attn.c_v", "mlp.fc")
    ]
    assert schemes.pop("orthogonal / sqrt(2 layers)") == ["stem.bigram.proj.weight", "value_embedding.proj.weight"]
    assert set(schemes.pop("0")) == {
        "stem.bigram.table.weight",
        "stem.smear.weight",
        "stem.smear.strength",
        "skips.gates",
        *(f"blocks.{i}.{name}.proj.weight" for i in blocks for name in ("attn", "mlp")),
    }
    assert set(schemes.pop("1")) == {
        "skips.weights",
        *(f"blocks.{i}.{name}" for i in blocks for name in ("attn_scale", "mlp_scale")),
        *(f"blocks.{i}.attn.value_parts.embedding.scale" for i in (2, 3)),
    }
    assert schemes.pop("1.5") == [f"blocks.{i}.attn.q_gain" for i in blocks]
    assert schemes.pop("0.05") == ["stem.bigram.scale"]
    assert schemes.pop("0.1") == ["value_embedding.scale"]
    mixes = [f"blocks.{i}.resid_mix" for i in blocks]
    assert sorted(schemes.pop("other")) == [*mixes, "tok_emb.weight", "value_embedding.table.weight"]
    assert schemes == {}


def test_the_mix_starts_with_the_stream_alone() -> None:
    assert torch.equal(fresh()["blocks.2.resid_mix"], torch.stack([torch.ones(32), torch.zeros(32)]))


def test_tables_are_normal_with_their_own_deviation() -> None:
    weights = fresh(load_recipe("demo").model)
    for name, std in (("tok_emb.weight", 0.005), ("value_embedding.table.weight", 0.01)):
        assert float(weights[name].std()) == pytest.approx(std, rel=0.03)
        assert abs(float(weights[name].mean())) < std / 20
        assert float((weights[name].abs() < std).float().mean()) == pytest.approx(0.6827, abs=0.01)


def test_matrices_of_one_shape_are_drawn_apart() -> None:
    weights = fresh()
    assert not torch.equal(weights["blocks.0.attn.c_k.weight"], weights["blocks.0.attn.c_v.weight"])
    assert not torch.equal(weights["blocks.0.attn.c_k.weight"], weights["blocks.1.attn.c_k.weight"])


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator_did() -> None:
    first = fresh()
    torch.rand(7)
    second = fresh()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights() -> None:
    assert not torch.equal(fresh(seed=1)["blocks.0.attn.c_q.weight"], fresh(seed=2)["blocks.0.attn.c_q.weight"])


def test_only_lookup_tables_take_the_dtype_of_the_activations() -> None:
    lookups = {name for name, weight in fresh(dtype=torch.bfloat16).items() if weight.dtype == torch.bfloat16}
    assert lookups == {"tok_emb.weight", "stem.bigram.table.weight", "value_embedding.table.weight"}


@torch.no_grad()
def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    recipe = pico_recipe("model.embed_init_std=0.005")
    model = build_model(recipe.model, seed=1, dtype=torch.float32, device=CPU)
    loss = model(pico_batch(2, 23), plan=plan_layers(recipe.model, looping=True)).mean()
    assert float(loss) == pytest.approx(math.log(61), abs=0.02)


def test_drawing_again_forgets_what_was_there() -> None:
    model = GPT(pico_recipe().model)
    init_weights(model, torch.Generator().manual_seed(1))
    first = {name: p.detach().clone() for name, p in model.named_parameters() if role_of(name, p.ndim).is_matrix}
    init_weights(model, torch.Generator().manual_seed(1))
    assert all(torch.equal(first[name], p) for name, p in model.named_parameters() if name in first)


def reference_orthogonal(rows: int, cols: int) -> Tensor:
    """QR of a normal matrix, transposed first if rows < cols, columns signed by the diagonal of R."""
    normal = torch.randn(rows, cols)
    q, r = torch.linalg.qr(normal.T if rows < cols else normal)
    q = q * torch.diag(r).sign()
    matrix: Tensor = q.T if rows < cols else q
    return matrix


@pytest.mark.parametrize("name", ["pr1787", "pr1855"])
def test_a_record_starts_from_the_bits_of_its_script(name: str) -> None:
    """In the order of the published script, drawn from PyTorch's own generator."""
    config = narrow_recipe(name).model
    dim, kv_dim, layers = config.model_dim, config.num_kv_heads * config.head_dim, range(config.num_layers)
    expected = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        torch.randn(config.vocab_size, dim)  # the embedding's default, overwritten below
        if config.smear:
            torch.nn.Linear(12, 1, bias=False)  # likewise
        expected["tok_emb.weight"] = torch.empty(config.vocab_size, dim).normal_(0, 0.005)
        for layer in layers:
            for matrix, rows in (("c_q", dim), ("c_k", kv_dim), ("c_v", kv_dim)):
                expected[f"blocks.{layer}.attn.{matrix}.weight"] = reference_orthogonal(rows, dim)
        for layer in layers:
            expected[f"blocks.{layer}.mlp.fc.weight"] = reference_orthogonal(config.hidden_dim(layer), dim)
    model = build_model(config, seed=42, dtype=torch.bfloat16, device=CPU)
    for key, weight in expected.items():
        assert torch.equal(model.get_parameter(key).float(), weight.bfloat16().float()), key
    others = [key for key, weight in model.named_parameters() if key not in expected and weight.ndim == 2]
    assert all(model.get_parameter(key).unique().numel() <= 2 for key in others)  # zeros, ones: nothing else is drawn


def test_in_bfloat16_every_value_starts_as_one_that_bfloat16_holds() -> None:
    weights = fresh(pico_recipe("model.lanes.start=3").model, dtype=torch.bfloat16)
    assert weights["lanes.resid"].dtype == torch.float32
    assert weights["lanes.resid"].unique().tolist() == [1.1015625]
    assert all(torch.equal(weight, weight.bfloat16().to(weight.dtype)) for weight in weights.values())


def test_the_baselines_matrices_start_uniform() -> None:
    weights = fresh(narrow_recipe("baseline").model)
    for name in ("blocks.0.attn.c_q.weight", "blocks.8.mlp.fc.weight"):
        bound = 1 / math.sqrt(64)
        assert 0.98 * bound < float(weights[name].abs().max()) <= bound
        assert float(weights[name].std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not weights["blocks.0.attn.proj.weight"].any()
    assert not weights["blocks.8.mlp.proj.weight"].any()


def test_a_head_of_its_own_starts_at_zero() -> None:
    assert not fresh(pico_recipe("model.tie_embeddings=false", "optim.head_lr=0.008").model)["head.weight"].any()

"""A shipped recipe's model with its structure and small sizes."""

from golf.config import Recipe
from golf.recipe import load_recipe


def narrow_recipe(name: str, *more: str) -> Recipe:
    """Load `name` with 64 channels and 97 tokens; depth, parts, loop and activations stay."""
    plain = load_recipe(name).model
    heads, kv_heads = 4, 4 * plain.num_kv_heads // plain.num_heads
    changes = ["vocab_size=97", "model_dim=64", f"num_heads={heads}", f"num_kv_heads={kv_heads}"]
    changes.append(f"rope.dims={min(16, plain.rope.dims)}")  # of head size 16
    changes += ["bigram.buckets=37", "bigram.dim=8"] if plain.bigram else []
    changes += ["value_embedding.dim=8"] if plain.value_embedding else []
    return load_recipe(name, [*(f"model.{change}" for change in changes), *more])

"""A real run of the first golf, kept for ever: what it wrote must stay readable and must stay the same function."""

from pathlib import Path

import pytest
import torch

from golf.checkpoint import find_checkpoint, load_checkpoint
from golf.data.documents import Batch, segment_rows
from golf.files import read_json, sha256_file
from golf.model.init import build_model
from golf.model.plan import plan_layers
from golf.recipe import recipe_from_dict
from golf.run_folder import RunFolder
from golf.workbench import artifact_weights, checkpoint_weights

ROOT = Path(__file__).resolve().parents[1] / "checkpoints"
FROZEN = RunFolder(ROOT / "frozen")


def a_batch() -> Batch:
    """Two rows of four documents each, of tokens that a formula gives."""
    tokens = (torch.arange(2 * 129) * 197 % 508 + 4).view(2, 129)
    tokens[:, ::37] = 1
    return Batch(tokens[:, :-1], tokens[:, 1:], segment_rows(tokens[:, :-1], bos_id=1, max_doc_len=128), 128)


# Mean loss in nats on `a_batch`, recorded when the run was frozen.
@pytest.mark.parametrize(("source", "recorded"), [("checkpoint", 15.278799), ("artifact", 15.237270)])
def test_the_frozen_run_is_still_the_same_function(source: str, recorded: float) -> None:
    checkpoint = load_checkpoint(find_checkpoint("frozen", root=ROOT))
    recipe = recipe_from_dict(checkpoint.manifest.recipe)
    model = build_model(recipe.model, seed=0, dtype=torch.float32, device=torch.device("cpu"))
    like = model.state_dict()
    weights = checkpoint_weights(checkpoint, like)
    model.load_state_dict(weights if source == "checkpoint" else artifact_weights(FROZEN.artifact, like))
    with torch.no_grad():
        loss = model(a_batch(), plan=plan_layers(recipe.model, looping=checkpoint.manifest.looping)).mean()
    torch.testing.assert_close(float(loss), recorded, rtol=1e-5, atol=0)


def test_the_frozen_files_are_those_that_its_result_names() -> None:
    final = read_json(FROZEN.final)
    assert sha256_file(FROZEN.artifact) == final["artifact"]["sha256"]
    assert load_checkpoint(FROZEN.path / "final_ema.json").manifest.data_sha256 == final["checkpoint_sha256"]
    assert FROZEN.load_recipe().digest == final["recipe_digest"]

"""What a run, a checkpoint or an artifact holds, as plain values."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from golf.artifact.container import load_artifact
from golf.checkpoint import boundaries, find_checkpoint, load_checkpoint
from golf.files import read_json, sha256_file
from golf.quant.scheme import QuantizedTensor, Stored
from golf.quant.ternary import TernaryTensor
from golf.run_folder import RunFolder


def inspect_run(name: str, *, root: Path) -> dict[str, Any]:
    """List the boundaries of a run, each with its data verified, and the summary if it is finished."""
    folder = RunFolder(find_checkpoint(name, root=root).parent)
    rows = []
    for manifest in boundaries(folder.path):
        load_checkpoint(folder.path / f"{manifest.boundary}.json")
        rows.append(
            {
                "name": manifest.boundary,
                "step": manifest.step,
                "progress": round(manifest.progress, 4),
                "lr": round(manifest.lr_multiplier, 4),
                "loop": manifest.looping,
                "train_loss": manifest.metrics.get("train_loss"),
                "train_seconds": round(manifest.elapsed_seconds, 1),
                "bytes": manifest.data_bytes,
            }
        )
    recipe = folder.load_recipe()
    report: dict[str, Any] = {"run": folder.name, "recipe": recipe.name, "recipe_digest": recipe.digest[:16]}
    if folder.final.exists():
        final = read_json(folder.final)
        report |= {
            "unquantized_bpb": final["unquantized"]["val_bpb"],
            "quantized_bpb": final["quantized"]["val_bpb"],
            "total_bytes": final["artifact"]["total_bytes"],  # artifact and code
        }
    return report | {"boundaries": rows}


def inspect_checkpoint(spec: str, *, root: Path) -> dict[str, Any]:
    """Describe one checkpoint: where the run stood, and its tensors by section."""
    checkpoint = load_checkpoint(find_checkpoint(spec, root=root))
    manifest = checkpoint.manifest
    sections: dict[str, list[Any]] = defaultdict(list)
    for name, tensor in checkpoint.all_tensors().items():
        parts = name.split("/")
        sections["/".join(parts[: 2 if parts[0] in ("shadow", "optim") else 1])].append(tensor)
    rows = [
        {
            "name": section,
            "tensors": len(tensors),
            "values": sum(tensor.numel() for tensor in tensors),
            "dtypes": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
            "bytes": sum(tensor.nbytes for tensor in tensors),
        }
        for section, tensors in sorted(sections.items())
    ]
    return {
        "checkpoint": str(checkpoint.path),
        "boundary": manifest.boundary,
        "step": manifest.step,
        "progress": round(manifest.progress, 4),
        "loop": manifest.looping,
        "train_seconds": round(manifest.elapsed_seconds, 1),
        "recipe": manifest.recipe["name"],
        "recipe_digest": manifest.recipe_digest[:16],
        "loader_step": manifest.loader.get("step"),
        "sha256": manifest.data_sha256,
        "sections": rows,
    }


def inspect_artifact(path: Path) -> dict[str, Any]:
    """Describe an artifact file: its tensors, verified."""
    artifact = load_artifact(path)
    rows = [
        {
            "name": name,
            "shape": "x".join(map(str, tensor.shape)),
            "stored": _stored_as(tensor),
        }
        for name, tensor in artifact.tensors.items()
    ]
    return {
        "artifact": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "tensors": rows,
    }


def _stored_as(tensor: Stored) -> str:
    if isinstance(tensor, TernaryTensor):
        return "ternary"
    return f"int{tensor.bits}" if isinstance(tensor, QuantizedTensor) else str(tensor.dtype)[6:]

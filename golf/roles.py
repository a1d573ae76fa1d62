"""What a tensor is for. Optimizer groups, dtypes and quantization schemes start here; nothing else matches names."""

from enum import StrEnum


class Role(StrEnum):
    """The purpose of a model tensor."""

    EMBED = "embed"  # token embedding, also the tied head
    HEAD = "head"  # a head of its own
    TABLE = "table"  # other lookup tables
    ATTN = "attn"  # matrix inside attention
    MLP = "mlp"  # matrix inside an MLP
    MATRIX = "matrix"  # any other matrix that multiplies activations
    GATE = "gate"  # small matrix whose output passes a sigmoid
    SCALAR = "scalar"  # vectors, scales, mixing weights

    @property
    def is_matrix(self) -> bool:
        """Whether Muon updates it and a Hessian of its input exists."""
        return self in (Role.ATTN, Role.MLP, Role.MATRIX)

    @property
    def is_lookup(self) -> bool:
        """Whether rows are looked up by token, so that it lives in the activations' dtype."""
        return self in (Role.EMBED, Role.TABLE)


_CONTROL = (
    "resid_mix",
    "skips.weights",
    "skips.gates",
    "lanes.post",
    "lanes.resid",
    "carry.recur_alpha",
    "share.positions",
    "smear.weight",  # a gate of one row: float16 in its record, where the attention gates are int8 rows
)  # more than one dimension, yet no matrix product

_TRAINING_ONLY = "multi_token."
_MLP_MATRICES = (".fc.weight", ".fc_gate.weight", ".proj.weight", ".down.weight", ".up.weight")


def is_exported(name: str) -> bool:
    """Whether the tensor belongs to the finished model; the heads of multi-token prediction serve training alone."""
    return not name.startswith(_TRAINING_ONLY)


def role_of(name: str, ndim: int) -> Role:
    """Return the role of the model tensor `name` with `ndim` dimensions.

    Raises ValueError for a name of two or more dimensions that no rule covers: a new part must decide.
    """
    if ndim < 2 or name.endswith(_CONTROL) or not is_exported(name):  # Muon is for matrices of the model alone
        return Role.SCALAR
    if name == "tok_emb.weight":
        return Role.EMBED
    if name == "head.weight":
        return Role.HEAD
    if name.endswith(".table.weight"):
        return Role.TABLE
    if name.endswith(".gate.weight"):
        return Role.GATE
    if name.endswith((".c_q.weight", ".c_k.weight", ".c_v.weight", ".attn.proj.weight")):
        return Role.ATTN
    if ".mlp." in name and name.endswith(_MLP_MATRICES):
        return Role.MLP
    if name.endswith(".proj.weight"):
        return Role.MATRIX
    raise ValueError(f"no role for tensor {name!r} with {ndim} dimensions; add a rule to golf.roles")

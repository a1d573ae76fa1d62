"""Documents in a packed stream: a batch with its segment boundaries, and the range of each document.

B rows, T tokens a row, N segments. A segment is what attention may not look out of: a document, or a piece of one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golf.errors import UsageError

LENGTHS = 4  # that the boundaries of rows of one size may have, as long as documents are not very short
_BUCKET = 64  # of the published scripts
_SHORT_DOCUMENT = 384  # tokens on the average, fewer than any corpus has shown


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Packed rows with the segments that they hold."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, the token after each token
    cu_seqlens: Tensor  # (N + 1,) int32 boundaries over the flattened B·T tokens, right-padded with B·T
    max_seqlen: int  # bound on a segment's length; a constant, so that compiled code sees one value

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tensors in their order."""
        return self.tokens, self.targets, self.cu_seqlens

    def to(self, device: torch.device | str, *, non_blocking: bool = False, copy: bool = False) -> "Batch":
        """Copy the tensors to `device`, asynchronously from pinned memory if `non_blocking`.

        Those that are there are taken as they are, unless a `copy` is wanted.
        """
        tokens, targets, cu_seqlens = (x.to(device, non_blocking=non_blocking, copy=copy) for x in self.tensors())
        return Batch(tokens, targets, cu_seqlens, self.max_seqlen)

    def pinned(self) -> "Batch":
        """Return a copy from which a GPU reads while the host goes on; the batch itself where there is no CUDA."""
        if not torch.cuda.is_available():
            return self  # the pinned allocator reuses its blocks, and only after their copies are done
        tokens, targets, cu_seqlens = (tensor.pin_memory() for tensor in self.tensors())
        return Batch(tokens, targets, cu_seqlens, self.max_seqlen)


def boundary_bucket(tokens: int, *, lengths: int = LENGTHS) -> int:
    """Return the multiple to which the boundaries of `tokens` tokens are padded: 64, or more for long rows.

    Documents of 384 tokens on the average fit into so many `lengths`: 1 for code that is compiled for a shape, more
    where a shape costs little, since attention takes time for empty segments too.
    """
    return _BUCKET * max(1, -(-tokens // (_BUCKET * _SHORT_DOCUMENT * lengths)))


def boundary_lengths(tokens: int) -> range:
    """Return the lengths that boundaries padded to `boundary_bucket(tokens)` usually have."""
    bucket = boundary_bucket(tokens)
    return range(bucket, LENGTHS * bucket + 1, bucket)


def build_cu_seqlens(
    starts: npt.ArrayLike, total: int, *, max_doc_len: int, bucket: int | None = None
) -> tuple[Tensor, int]:
    """Cut `total` tokens at the sorted `starts` and every `max_doc_len` tokens after each; 0 never cuts.

    Returns the int32 boundaries, right-padded with `total` to a multiple of `bucket` (`boundary_bucket`), and the
    longest segment's length. Tokens before the first start are a segment too.
    """
    bucket = boundary_bucket(total) if bucket is None else bucket
    begins = np.asarray(starts, dtype=np.int64).reshape(-1)
    if begins.size == 0 or begins[0] != 0:
        begins = np.concatenate([[0], begins])
    lengths = np.diff(begins, append=total)
    pieces = -(-lengths // max_doc_len) if max_doc_len else np.ones_like(lengths)
    piece = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # index within its document
    bounds = np.repeat(begins, pieces) + piece * max_doc_len
    padded = -(-(bounds.size + 1) // bucket) * bucket
    cu_seqlens = np.full(padded, total, dtype=np.int32)
    cu_seqlens[: bounds.size] = bounds
    return torch.from_numpy(cu_seqlens), int(np.diff(cu_seqlens).max())


def whole_rows(rows: int, length: int, *, max_doc_len: int = 0) -> Tensor:
    """Return the boundaries of `rows` rows of `length` tokens, one segment each, whatever documents are in them."""
    total = rows * length
    return build_cu_seqlens(range(0, total, length), total, max_doc_len=max_doc_len)[0]


def segment_rows(tokens: Tensor, *, bos_id: int, max_doc_len: int, lengths: int = LENGTHS) -> Tensor:
    """Return the boundaries of (B, T) `tokens`: a row's first token and every `bos_id` start a segment.

    int32, on the device of `tokens`, over the flattened rows; `lengths` as in `boundary_bucket`.
    """
    is_start = tokens == bos_id
    is_start[:, 0] = True
    starts = is_start.flatten().nonzero().cpu().numpy()
    bucket = boundary_bucket(tokens.numel(), lengths=lengths)
    cu_seqlens, _ = build_cu_seqlens(starts, tokens.numel(), max_doc_len=max_doc_len, bucket=bucket)
    return cu_seqlens.to(tokens.device)


def document_ranges(tokens: npt.NDArray[np.uint16], bos_id: int) -> npt.NDArray[np.int64]:
    """Return the (documents, 2) ranges [start, stop) of a stream, each with the next document's first token.

    That token is inside so that predicting it is scored; the last document stops at the end of the stream. Tokens
    before the first start belong to no document. Raises UsageError if there is no start at all.
    """
    starts = np.flatnonzero(tokens == bos_id)
    if starts.size == 0:
        raise UsageError(f"the token stream has no document start (id {bos_id}); run `golf data prepare` again")
    stops = np.append(starts[1:] + 1, len(tokens))
    return np.stack([starts, stops], axis=1)

"""Where Triton's interpreter computes in bfloat16 otherwise than a GPU: corrected for the tests."""

from typing import Any

import numpy as np
import pytest
import torch

from golf.kernels.jit import HAS_TRITON, tl

needs_interpreter = pytest.mark.skipif(
    not HAS_TRITON or torch.cuda.is_available(), reason="Triton interprets kernels where there is no GPU (conftest)"
)


def round_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round float32 to the nearest bfloat16, as a GPU does: by itself it drops the lower half."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def nearest(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        rounded = torch.from_numpy(np.array(values, dtype=np.float32)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", nearest)


def multiply_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter multiply the values of bfloat16 matrices: by itself it multiplies their bits as integers."""
    from triton.runtime import interpreter

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        values = (operand.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(values, tl.float32)

    multiply = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)

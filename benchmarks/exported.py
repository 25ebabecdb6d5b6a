"""A generator as other runtimes execute it: exported to ONNX, compiled by OpenVINO for the CPU."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .harness import reason

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def openvino(peer: Any, ws: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Export NVlabs' synthesis network, its modulation unfused, and compile it once for each precision.

    Raises:
        SystemExit: openvino, onnx or onnxscript is not installed, or the export fails.
    """
    try:
        import openvino

        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "synthesis.onnx"
            torch.onnx.export(_Synthesis(peer).eval(), (ws,), str(path), dynamo=True, verbose=False)
            core = openvino.Core()
            core.set_property("CPU", dict(INFERENCE_NUM_THREADS=torch.get_num_threads(), PERFORMANCE_HINT="LATENCY"))
            model = core.read_model(path)
            requests = {
                dtype: core.compile_model(model, "CPU", dict(INFERENCE_PRECISION_HINT=hint)).create_infer_request()
                for dtype, hint in PRECISIONS.items()
            }
    except (ImportError, torch.onnx.errors.OnnxExporterError) as error:
        raise SystemExit(f"--openvino: {reason(error)}; it needs openvino, onnx and onnxscript") from error
    return {dtype: functools.partial(_infer, request, ws) for dtype, request in requests.items()}


def _infer(request: Any, ws: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(request.infer([ws.numpy()])[0])


class _Synthesis(torch.nn.Module):
    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.peer = peer

    def forward(self, ws: torch.Tensor) -> torch.Tensor:
        return self.peer.synthesis(ws, noise_mode="const", force_fp32=True, fused_modconv=False)

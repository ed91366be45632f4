"""Portable forms of a refiner, each checked against the original before it is kept."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlab_shared.errors import NeedsExtra, RunFailed
from latentlab_shared.files import atomic_path
from rsr_net.data.types import Batch
from rsr_net.model.refiner import Refiner
from rsr_net.tensor_files import write_tensors

INPUTS = ("doc", "lead", "sentences")
OUTPUTS = ("y", "quality", "attention", "residuals")
TOLERANCE = 1e-4  # of probabilities and shares; of the vector's largest number
_CHECKED = (1, 2, 7, 40, 300)  # sentences of the articles that are compared


class PlainRefiner(nn.Module):
    """A refiner of one article at a time, tensors in and tensors out, taking all steps.

    One article needs no padding and no mask, so the program has one free size: the number of sentences.

    Args:
        refiner: the trained network.
    """

    def __init__(self, refiner: Refiner) -> None:
        super().__init__()
        self.refiner = refiner

    def forward(self, doc: Tensor, lead: Tensor, sentences: Tensor) -> tuple[Tensor, ...]:
        """Doc (D,), lead (D,), sentences (S, D) → y (D,), quality (), attention (K, S), residuals (K,)."""
        mask = torch.ones_like(sentences[None, :, 0], dtype=torch.bool)  # (1, S)
        refined = self.refiner(Batch(doc[None], lead[None], sentences[None], mask))
        return refined.y[0], refined.quality[0], refined.attention[:, 0], refined.residuals[:, 0]


def export_onnx(refiner: Refiner, path: Path) -> float:
    """Write an ONNX model of one article with any number of sentences.

    Args:
        refiner: on the CPU.
        path: the file.

    Returns:
        The largest difference to torch; for the vector, relative to its largest number.

    Raises:
        NeedsExtra: without onnx, onnxruntime and onnxscript.
        RunFailed: if ONNX Runtime gives other numbers; nothing is written then.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise NeedsExtra(error.name or "onnx", "onnx", "latentlab-rsr-net") from None
    module = PlainRefiner(refiner.eval())
    with _quiet():
        program = torch.onnx.export(
            module,
            _inputs(refiner, 11),
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=_any_length(),
            dynamo=True,
        )
    assert program is not None
    with atomic_path(path) as temporary:
        program.save(str(temporary))
        onnx.checker.check_model(str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def run(*given: Tensor) -> list[Tensor]:
            found = session.run(None, {name: t.numpy() for name, t in zip(INPUTS, given, strict=True)})
            return [torch.from_numpy(array) for array in found]

        return _compare(module, run, "ONNX Runtime")


def export_torch(refiner: Refiner, path: Path) -> float:
    """Write a ``torch.export`` program (``.pt2``) that runs without this package; else as ``export_onnx``."""
    module = PlainRefiner(refiner.eval())
    with _quiet():
        program = torch.export.export(module, _inputs(refiner, 11), dynamic_shapes=_any_length())
    with atomic_path(path) as temporary:
        # Through memory: torch.export.save wants the suffix .pt2, which the temporary file does not have.
        held = io.BytesIO()
        torch.export.save(program, held)
        temporary.write_bytes(held.getvalue())
        held.seek(0)
        loaded: Any = torch.export.load(held).module()
        return _compare(module, lambda *given: list(loaded(*given)), "torch.export")


def export_safetensors(refiner: Refiner, path: Path) -> float:
    """Write the weights alone, with the sizes in the header; else as ``export_onnx``."""
    from safetensors.torch import load_file

    header = {"model": json.dumps(asdict(refiner.config))}
    with atomic_path(path) as temporary:
        write_tensors(temporary, refiner.state_dict(), header)
        again = Refiner(refiner.config)
        again.load_state_dict(load_file(temporary))
        return _compare(PlainRefiner(refiner.eval()), PlainRefiner(again.eval()), "the file")


def _any_length() -> Any:
    return (None, None, {0: torch.export.Dim("sentences", min=1, max=65536)})


def _inputs(refiner: Refiner, sentences: int) -> tuple[Tensor, Tensor, Tensor]:
    """A random article."""
    draw = torch.Generator().manual_seed(sentences)
    vectors = nn.functional.normalize(torch.randn(sentences, refiner.config.input_dim, generator=draw), dim=-1)
    return nn.functional.normalize(vectors.sum(0), dim=-1), vectors[:3].mean(0), vectors


@torch.no_grad()
def _compare(module: PlainRefiner, run: Callable[..., Sequence[Tensor]], name: str) -> float:
    worst = 0.0
    for sentences in _CHECKED:
        given = _inputs(module.refiner, sentences)
        for output, ours, theirs in zip(OUTPUTS, module(*given), run(*given), strict=True):
            if ours.shape != theirs.shape:
                raise RunFailed(f"{name} gives {tuple(theirs.shape)} for {output}, torch gives {tuple(ours.shape)}")
            # Probabilities and shares as they are; the vector, whose scale is the encoder's, by its largest number.
            scale = float(ours.abs().max().clamp_min(1e-6)) if output == "y" else 1.0
            off = float((ours - theirs).abs().max()) / scale if ours.numel() else 0.0
            # The confidence is a steep function of the vector, so its last digits are rounding.
            if not off <= (10 * TOLERANCE if output == "quality" else TOLERANCE):
                raise RunFailed(f"{name} differs from torch by {off:.1e} in {output}", fix="Nothing was exported")
            worst = max(worst, off)
    return worst


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporters talk a lot, on stdout too; the verbs keep stdout for results."""
    chatty = logging.getLogger("torch.onnx")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)

"""Portable forms of a model, each compared with the original before it is kept.

What a vector database or another server needs is the chunk encoder: rows of tokens in, vectors of the decoder's space
out. It is written as a program without this package: ``torch.export`` (``.pt2``) or ONNX. ``hf`` writes encoder and
decoder, with their tokenizers, as transformers loads them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlab_shared.errors import NeedsExtra, RunFailed, UserError
from latentlab_shared.files import atomic_path
from refrag.inference.generator import RefragGenerator
from refrag.model.folder import load_decoder, load_encoder
from refrag.model.modeling_refrag import RefragModel

FORMATS = ("torch", "onnx", "hf")
TOLERANCE = 1e-4  # of the largest number
INPUTS = ("ids", "mask")


class ChunkEncoder(nn.Module):
    """Encoder, pooling and projector as one function of tensors.

    Args:
        model: whose parts they are.
    """

    def __init__(self, model: RefragModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask (R, W) → vectors (R, D)."""
        return self.model.project(self.model.pool_rows(ids, mask))


def export_model(
    model: Path, folder: Path, formats: Sequence[str], log: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Write forms of a saved model.

    Args:
        model: its folder.
        folder: to write to.
        formats: of ``FORMATS``.
        log: told what is written.

    Returns:
        ``file`` and ``difference`` (to the original, relative to the largest number) of each.

    Raises:
        UserError: for a format that is unknown, or no model.
        NeedsExtra: for ONNX without its packages.
        RunFailed: if a form gives other numbers; it is not kept.
    """
    wrong = [name for name in formats if name not in FORMATS]
    if wrong:
        raise UserError(f"{wrong[0]!r} is no format", "--format", f"Use one of: {', '.join(FORMATS)}")
    generator = RefragGenerator.from_pretrained(model)
    writers = {"torch": _write_torch, "onnx": _write_onnx, "hf": _write_parts}
    written = []
    for name in formats:
        file, difference = writers[name](generator, folder)
        log(f"{file}: differs by {difference:.1g} at most")
        written.append({"file": str(file), "difference": difference})
    return written


def _rows(model: RefragModel, count: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows with padding at their ends."""
    draw = torch.Generator().manual_seed(count)
    ids = torch.randint(0, int(model.encoder.config.vocab_size), (count, width), generator=draw)
    mask = (torch.arange(width) < torch.randint(1, width + 1, (count, 1), generator=draw)).long()
    mask[0] = 1
    return ids, mask


def _compared(module: nn.Module, run: Callable[[Tensor, Tensor], Tensor], model: RefragModel, what: str) -> float:
    """The largest difference over rows of several counts and widths."""
    worst = 0.0
    with torch.no_grad():
        for count, width in ((1, 3), (5, 10), (40, 18)):
            given = _rows(model, count, width)
            wanted = module(*given)
            worst = max(worst, float((run(*given) - wanted).abs().max() / wanted.abs().max()))
    if not worst <= TOLERANCE:
        raise RunFailed(f"{what} differs from the model by {worst:.2g}", "export")
    return worst


def _any_size(model: RefragModel) -> Any:
    rows = torch.export.Dim("rows", min=1, max=1 << 20)
    width = torch.export.Dim("width", min=2, max=min(model.row_limit, 1 << 20))
    return {name: {0: rows, 1: width} for name in INPUTS}


def _write_torch(generator: RefragGenerator, folder: Path) -> tuple[Path, float]:
    module, path = ChunkEncoder(generator.model).eval(), folder / "chunk_encoder.pt2"
    with _quiet():
        program = torch.export.export(module, _rows(generator.model, 5, 10), dynamic_shapes=_any_size(generator.model))
    held = io.BytesIO()  # torch.export.save wants the suffix .pt2, which a temporary file does not have
    torch.export.save(program, held)
    with atomic_path(path) as temporary:
        temporary.write_bytes(held.getvalue())
        held.seek(0)
        loaded: Any = torch.export.load(held).module()
        return path, _compared(module, loaded, generator.model, "the program")


def _write_onnx(generator: RefragGenerator, folder: Path) -> tuple[Path, float]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise NeedsExtra(error.name or "onnx", "onnx", "latentlab-refrag") from None
    module, path = ChunkEncoder(generator.model).eval(), folder / "chunk_encoder.onnx"
    with _quiet():
        program = torch.onnx.export(
            module,
            _rows(generator.model, 5, 10),
            input_names=INPUTS,
            output_names=("vectors",),
            dynamic_shapes=_any_size(generator.model),
            dynamo=True,
        )
    assert program is not None
    with atomic_path(path) as temporary:
        program.save(str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def run(ids: Tensor, mask: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0])

        return path, _compared(module, run, generator.model, "ONNX Runtime")


def _write_parts(generator: RefragGenerator, folder: Path) -> tuple[Path, float]:
    """``encoder/`` and ``decoder/``, read back by transformers and compared."""
    model, tokenizer, home = generator.model, generator.tokenizer, folder / "hf"
    for name, part, words in (
        ("encoder", model.encoder, tokenizer.encoder_tokenizer),
        ("decoder", model.decoder, tokenizer.decoder_tokenizer),
    ):
        part.save_pretrained(home / name)
        words.save_pretrained(home / name)
    again = RefragModel(
        model.config, load_encoder(home / "encoder", model.config.pooling == "pooler"), load_decoder(home / "decoder")
    )
    again.projector.load_state_dict(model.projector.state_dict())
    again.eval()
    worst = _compared(ChunkEncoder(model), ChunkEncoder(again), model, "the encoder")
    prompt = _rows(model, 1, 12)[0] % int(model.decoder.config.vocab_size)
    with torch.no_grad():
        ours, theirs = (m.decoder(input_ids=prompt).logits for m in (model, again))
    return home, max(worst, float((ours - theirs).abs().max() / ours.abs().max()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of things that no reader can act on."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

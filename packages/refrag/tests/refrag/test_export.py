"""Portable forms give the model's numbers, and one that does not is refused."""

import pytest
import torch
from refrag_models import make_model, make_tokenizer
from test_cli import refrag

from latentlab_shared.errors import RunFailed
from refrag.inference.export import ChunkEncoder, _compared
from refrag.inference.generator import RefragGenerator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    RefragGenerator(make_model(pooling="mean"), make_tokenizer()).save_pretrained(home)
    return home


def test_forms_are_compared_and_kept(folder, tmp_path):
    out, _ = refrag("export", "--model", folder, "-o", tmp_path, "--format", "torch", "--format", "hf")
    assert (tmp_path / "chunk_encoder.pt2").is_file() and (tmp_path / "hf" / "decoder" / "config.json").is_file()
    assert "chunk_encoder.pt2" in out
    program = torch.export.load(tmp_path / "chunk_encoder.pt2").module()
    ids = torch.randint(5, 50, (3, 7))
    with torch.no_grad():
        wanted = ChunkEncoder(RefragGenerator.from_pretrained(folder).model)(ids, torch.ones_like(ids))
    assert torch.allclose(program(ids, torch.ones_like(ids)), wanted, atol=1e-5)


def test_other_numbers_are_refused():
    model = make_model()
    with pytest.raises(RunFailed, match="differs"):
        _compared(ChunkEncoder(model), lambda ids, mask: ChunkEncoder(model)(ids, mask) + 0.1, model, "it")


def test_unknown_forms(folder, tmp_path):
    _, err = refrag("export", "--model", folder, "-o", tmp_path / "x", "--format", "gguf", code=2)
    assert "no format" in err and not (tmp_path / "x").exists()

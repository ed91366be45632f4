"""Two processes train as one: gloo, on this machine."""

import json
import subprocess
import sys

import pytest
import torch
from refrag_models import make_model, make_tokenizer
from refrag_tokenizers import SENTENCES

from refrag.inference.generator import RefragGenerator

# The model and its tokenizers are read from a folder: tokenizers that are trained anew differ in their ties.
JOB = """
import json, os, sys
import torch
from refrag.inference.generator import RefragGenerator
from refrag.training.alignment import AlignmentBatches, AlignmentObjective
from refrag.training.loop import run_steps
from refrag.training.settings import LoopSettings

folder, out, engine, sentences = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
generator = RefragGenerator.from_pretrained(folder)
generator.model.double()  # Adam's first steps are signs: rounding of float32 would tip those of gradients near zero
generator.model.set_trained("pd")  # not the encoder, whose dropout each process would draw anew
objective = AlignmentObjective(generator.model)
batches = AlignmentBatches(sentences, generator.tokenizer, 4, 30, 0)
losses = []
run_steps(objective, batches, LoopSettings(steps=3, batch_size=4, learning_rate=1e-3, engine=engine),
          log=lambda step, found: losses.append(found["loss"]))
whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
named = dict(objective.named_parameters())
found = {
    "gradients": {n: whole(p.grad).tolist() for n, p in named.items() if p.grad is not None},
    "weights": {n: whole(p.detach()).tolist() for n, p in named.items() if p.requires_grad},
}
if os.environ.get("RANK", "0") == "0":
    open(out, "w").write(json.dumps(found | {"losses": losses}))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""
ALONE = (sys.executable,)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The job's gradients of the last step and its weights, by the processes and the engine it ran with."""
    home = tmp_path_factory.mktemp("processes")
    RefragGenerator(make_model(), make_tokenizer()).save_pretrained(home / "model")
    (home / "job.py").write_text(JOB)

    def start(launch, engine):
        out = home / f"{engine}{len(launch)}.json"
        given = (home / "job.py", home / "model", out, engine, json.dumps(SENTENCES))
        done = subprocess.run([*launch, *given], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())

    return start


@pytest.mark.slow  # processes that import torch and transformers
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_are_one(run, engine):
    one, two = run(ALONE, "ddp"), run(TWO, engine)
    for part in ("gradients", "weights"):
        assert one[part].keys() == two[part].keys() and len(one[part]) > 10
        for name, value in one[part].items():
            assert torch.allclose(torch.tensor(value), torch.tensor(two[part][name]), rtol=0, atol=1e-9), (part, name)

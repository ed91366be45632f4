"""What a run does: ``app=alignment | train | refrag_train | eval | hello_dist | chatcli``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentlab_shared.errors import UserError
from refrag.framework.settings import dataset_path, make_settings

Config = Mapping[str, Any]


def train(config: Config, folder: Path) -> dict[str, Any]:
    """A stage of training into ``folder``."""
    from refrag.pipeline import train_run

    return train_run(folder, make_settings(config), log=_say)


def evaluate(config: Config, folder: Path) -> dict[str, Any]:
    """Answers, or perplexity, of a saved model; ``results.json`` in ``folder``."""
    from latentlab_shared.files import write_json
    from refrag.pipeline import evaluate_questions, evaluate_run

    app = config["app"]
    model, data = Path(app["from_model"]), dataset_path(config)
    if app["task"] == "questions":
        rows = evaluate_questions(
            model, data, fractions=app["expand"], rates=app["compression"], limit=app["limit"], log=_say
        )
    elif app["task"] == "perplexity":
        rates = app["compression"] or [4, 8, 16, 32]
        sizes = {"context": app["context"], "target": app["target"]}
        rows = evaluate_run(model, data, rates=rates, limit=app["limit"], **sizes)
    else:
        raise UserError(f"{app['task']!r} is no task", "app.task", "Use questions or perplexity")
    write_json(folder / "results.json", {"rows": rows})
    return {"results": str(folder / "results.json"), "rows": rows}


def hello_dist(config: Config, folder: Path) -> dict[str, Any]:
    """Every process adds its rank; all of them have to know the sum."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    ranks = torch.tensor([float(state.process_index)], device=state.device)
    if state.num_processes > 1:
        torch.distributed.all_reduce(ranks)
    world = state.num_processes
    if int(ranks) != world * (world - 1) // 2:
        raise RuntimeError(f"{world} processes add their ranks to {int(ranks)}")
    print(f"hello from rank {state.process_index} of {world}", flush=True)  # noqa: T201  (this is what the app is for)
    return {"world": world, "sum": int(ranks)}


def chat(config: Config, folder: Path) -> dict[str, Any]:
    """Questions from the terminal, answers as they come: see README_CHATCLI.md."""
    from refrag.framework.apps.chatcli import chat_on

    app = config["app"]
    return chat_on(
        sys.stdin,
        sys.stdout,
        Path(app["from_model"]),
        app["documents"],
        retriever=app["retriever"],
        encoder=app["encoder"],
        top=app["top"],
        share=app["expand"],
        new_tokens=app["max_new_tokens"],
        cache=Path(app["cache_dir"]) if app["cache_dir"] else None,
    )


APPS: dict[str, Callable[[Config, Path], dict[str, Any]]] = {
    "alignment": train,
    "train": train,
    "eval": evaluate,
    "hello_dist": hello_dist,
    "chatcli": chat,
}


def run_app(config: Config, folder: Path) -> dict[str, Any]:
    """Run the chosen app in this process; it leaves the other processes, if there are any, in order."""
    try:
        return APPS[config["app"]["name"]](config, folder)
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            distributed.destroy_process_group()


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(line + "\n")

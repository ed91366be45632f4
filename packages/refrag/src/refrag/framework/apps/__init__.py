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
    from refrag.pipeline import told, train_run

    results = train_run(folder, make_settings(config), log=_say)
    if _first():
        print(told(results), flush=True)  # noqa: T201  (the result)
    return results


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
    else:
        _check_task(app["task"])
        rates = app["compression"] or [4, 8, 16, 32]
        sizes = {"context": app["context"], "target": app["target"]}
        rows = evaluate_run(model, data, rates=rates, limit=app["limit"], **sizes)
    write_json(folder / "results.json", {"rows": rows})
    print(folder / "results.json", flush=True)  # noqa: T201  (the result)
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


def check_app(config: Config) -> None:
    """Find mistakes before anything is written.

    Raises:
        UserError: for a setting, a file or a model that cannot be.
    """
    app = config["app"]
    if app["name"] in ("alignment", "train"):
        make_settings(config)
    if app["name"] == "eval":
        _check_task(app["task"])
        dataset_path(config)
    if app.get("from_model"):
        from refrag.model.folder import read_model_config
        from refrag.pipeline import model_folder

        read_model_config(model_folder(Path(app["from_model"])))


def _check_task(task: str) -> None:
    if task not in ("questions", "perplexity"):
        raise UserError(f"{task!r} is no task", "app.task", "Use questions or perplexity")


def run_app(config: Config, folder: Path) -> dict[str, Any]:
    """Run the chosen app in this process; it leaves the other processes, if there are any, in order."""
    try:
        return APPS[config["app"]["name"]](config, folder)
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            distributed.destroy_process_group()


def _first() -> bool:
    """Whether this is the first process of a run."""
    return os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    if _first():
        sys.stderr.write(line + "\n")

"""The command ``seq2seq-keras``: verbs that parse, call one function and print."""

from __future__ import annotations

from typing import Annotated

import typer

from latentlab_shared.cli import ConfigFile, Limit, Output, OutputDir, Resume, Seed, Sets, new_app, run, verb

app = new_app("seq2seq-keras", "latentlab-seq2seq-keras", "One-sentence summaries from scratch, in Keras 3.")


@verb(app)
def train(
    out: Output,
    preset: Annotated[str, typer.Option("--preset", help="small (CPU minutes), or full (the seed's sizes).")] = "small",
    data: Annotated[str, typer.Option("--data", help="sample, a file or a folder.")] = "sample",
    split: Annotated[str, typer.Option("--split", help="auto, files, date or hash.")] = "auto",
    text_column: Annotated[str, typer.Option("--text-column", help="Column of a table.")] = "",
    summary_column: Annotated[str, typer.Option("--summary-column", help="Column of a table.")] = "",
    config: ConfigFile = None,
    sets: Sets = None,
    output_dir: OutputDir = None,
    resume: Resume = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw an earlier run in the folder away.")] = False,
    seed: Seed = 0,
    limit: Limit = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count malformed rows and go on.")] = False,
) -> None:
    """Train a summarizer into a run folder."""
    from seq2seq_keras.pipeline import RUNS, RunSettings, train_run

    folder = resume or output_dir or RUNS / preset
    asked = RunSettings(data, split, text_column, summary_column, limit, skip_bad)
    found = train_run(
        folder,
        asked,
        preset=preset,
        config_file=config,
        overrides=sets or (),
        seed=seed,
        resume=resume is not None,
        overwrite=overwrite,
        log=out.log,
    )
    out.result(found)


def main() -> None:
    """Run the command."""
    run(app, "seq2seq-keras")


if __name__ == "__main__":
    main()

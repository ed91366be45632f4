"""The command ``refrag``: verbs that parse, call one function and print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentlab_shared.cli import Limit, Output, OutputDir, Seed, new_app, run, table, verb
from latentlab_shared.errors import UserError

app = new_app("refrag", "latentlab-refrag", "Answers from retrieved documents that a decoder reads as chunk vectors.")

Encoder = Annotated[str, typer.Option("--encoder", help="Its tokenizer: a folder or a hub name.")]
Decoder = Annotated[str, typer.Option("--decoder", help="Its tokenizer: a folder or a hub name.")]


@verb(app)
def align(
    out: Output,
    encoder: Encoder,
    decoder: Decoder,
    text: Annotated[str | None, typer.Argument(help="A text to align and show.", show_default=False)] = None,
    input: Annotated[Path | None, typer.Option("--input", help="A .txt or .jsonl file of texts, plain or .gz.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for the alignments of --input.")] = None,
    unit: Annotated[str, typer.Option("--unit", help="Positions in char or byte.")] = "char",
    strict: Annotated[bool, typer.Option("--strict", help="Only cuts at exactly the same position.")] = False,
    field: Annotated[str, typer.Option("--field", help="Of the rows of a .jsonl file.")] = "text",
    limit: Limit = None,
) -> None:
    """Align two tokenizers over a text, or over a corpus into parquet parts (resumable, one share per rank)."""
    if (text is None) == (input is None) or (input is None) != (output is None):
        raise UserError("nothing to align", "refrag align", "Give a text, or --input FILE with --output DIR")
    if unit not in ("char", "byte"):
        raise UserError(f"{unit!r} is no unit", "--unit", "Use char or byte")
    from refrag.model.tokenizer.alignment import align
    from refrag.model.tokenizer.loading import load_tokenizer
    from refrag.training.alignments import precompute_alignments

    sides = load_tokenizer(encoder), load_tokenizer(decoder)
    if input is not None and output is not None:
        with out.progress("aligning") as advance:
            done = precompute_alignments(
                input,
                output,
                *sides,
                unit=unit,  # type: ignore[arg-type]  # checked above
                strict=strict,
                field=field,
                limit=limit,
                advance=advance,
            )
        out.result({"folder": str(output), **done}, f"{output}: {done['texts']:,} texts, {done['anchors']:,} anchors")
        return
    assert text is not None
    found = align(text, *sides, unit=unit, strict=strict)  # type: ignore[arg-type]  # checked above
    data = text.encode() if unit == "byte" else text
    shown = [
        {
            "encoder": " ".join(sides[0].convert_ids_to_tokens(found.encoder.ids[c.i0 : c.i1])),
            "decoder": " ".join(sides[1].convert_ids_to_tokens(found.decoder.ids[c.j0 : c.j1])),
            "text": repr(data[c.start : c.end]),
        }
        for c in found.chunks()
    ]
    title = f"{len(found.encoder)} and {len(found.decoder)} tokens, {len(found.anchors)} anchors"
    out.result({"anchors": [anchor._asdict() for anchor in found.anchors]}, table(shown, title=title))


@verb(app)
def bench(
    out: Output,
    what: Annotated[str, typer.Argument(help="align: the cost and the faults of aligning tokenizers.")],
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Holds tokenizers/ and wikitext2/.", envvar="LATENTLAB_DATA")
    ] = None,
    chars: Annotated[int, typer.Option("--chars", min=100, help="Length of the measured text.")] = 16_000,
    cases: Annotated[int, typer.Option("--cases", min=0, help="Random texts compared with the slow search.")] = 10_000,
    references: Annotated[
        int, typer.Option("--references", min=0, help="Pairs for which the seed's table is computed too.")
    ] = 2,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds; medians are given.")] = 7,
    output_dir: OutputDir = None,
    seed: Seed = 0,
) -> None:
    """Measure ratios side by side; with --output-dir, write the tables of the README."""
    if what != "align":
        raise UserError(f"{what!r} is no benchmark", "refrag bench", "Use: align")
    if data_dir is None:
        raise UserError("no data", "--data-dir", "Give a folder with tokenizers/ and wikitext2/valid.txt")
    from refrag.bench.align import bench_align, write_results

    text = data_dir / "wikitext2" / "valid.txt"
    rows, pairs = bench_align(
        data_dir / "tokenizers",
        text,
        chars=chars,
        cases=cases,
        repeats=repeats,
        references=references,
        seed=seed,
        log=out.log,
    )
    if output_dir is not None:
        command = f"refrag bench align --chars {chars} --cases {cases} --references {references} --repeats {repeats}"
        write_results(output_dir, rows, pairs, f"{command} --data-dir DATA", seed)
    out.result({"results": rows, "pairs": pairs}, [table(rows), table(pairs)])


def main() -> None:
    """Run the command line."""
    run(app, "refrag")


if __name__ == "__main__":
    main()

"""Write docs/scale.md: slopes from the result files of the packages, then arithmetic; --check fails when it differs."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scale.md"
PAGES_OF = {
    "cache": "shared/results/cache.json",
    "rsr_net": "packages/rsr_net/results/bench.json",
    "seq2seq_keras": "packages/seq2seq_keras/results/bench.json",
    "clara_absa": "packages/clara_absa/results/bench.json",
    "latency": "packages/nrms/results/bench-latency.json",
    "graph": "packages/nrms/results/bench-graph.json",
    "pgvector": "packages/nrms/results/bench-pgvector.json",
    "embed": "packages/nrms/results/bench-embed.json",
    "load": "packages/nrms/results/bench-load.json",
    "work": "packages/nrms/results/bench-work.json",
    "memory": "packages/nrms/results/bench-memory.json",
    "ttft": "packages/refrag/results/ttft.json",
    "align": "packages/refrag/results/align.json",
}


def rows(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a result file by their names."""
    held = json.loads((ROOT / PAGES_OF[name]).read_text(encoding="utf-8"))
    return {row["name"]: row["metrics"] for row in held["rows"]}


def find(name: str, wanted: dict[str, str]) -> float:
    """The first figure there is, by row and metric: a result file may be of the benchmark as it was before."""
    held = rows(name)
    for row, metric in wanted.items():
        value = held.get(row, {}).get(metric)
        if value is not None:
            return float(value)
    raise KeyError(f"{PAGES_OF[name]} has none of {', '.join(wanted)}")


def hours(seconds: float) -> str:
    """Processor time in the unit that reads best."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{three(seconds / 3600)} h"


def three(value: float) -> str:
    """Three figures, or whole numbers."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(of: float) -> str:
    """Bytes in the unit that reads best."""
    unit = min(4, int(math.log10(max(of, 1)) // 3))
    return f"{of / 1000**unit:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"


def exponent(x: float, y: float, more_x: float, more_y: float) -> float:
    """The slope between two points in logarithms: 1 is proportional, 2 quadratic."""
    return math.log(more_y / y) / math.log(more_x / x)


def table(head: str, lines: Sequence[tuple[object, ...]]) -> str:
    """A Markdown table."""
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *("| " + " | ".join(map(str, r)) + " |" for r in lines)])


def rsr_net() -> str:
    """Encoding is the cost; everything after it is small."""
    found, cache = rows("rsr_net"), rows("cache")["latentlab"]
    texts = json.loads((ROOT / PAGES_OF["rsr_net"]).read_text(encoding="utf-8"))
    articles = int(texts["data"].split()[0])
    encode = found["filling_the_cache"]["value"] / articles
    depths = [(d["steps"], d["seconds"]) for d in texts["depths"]]
    mean_x, mean_y = (sum(v) / len(depths) for v in zip(*depths, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in depths) / sum((x - mean_x) ** 2 for x, _ in depths)
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in depths)
    fit = 1 - residual / sum((y - mean_y) ** 2 for _, y in depths)
    vector = cache["megabytes"] * 1e6 / 100_000
    train = found["refiner_training"]["value"]
    lines = [
        (
            f"{n:,}",
            hours(n * encode),
            hours(n * encode / 64),
            hours(n * 30 / train),
            size(n * 30 * vector / 2),
            hours(n * cache["write_cpu_s"] * 30 / 100_000),
        )
        for n in (10_000, 312_000, 10_000_000)
    ]
    return (
        f"Measured: encoding with MiniLM costs {encode:.2f} CPU-s an article ({texts['data'].split(',')[0]}); training "
        f"passes over {train:,.0f} cached articles a CPU-second; a recursion step "
        f"{found['cost_per_recursion_step']['value']:.0f} µs an article. Time against steps is a line (R² {fit:.3f}), so "
        f"depth is paid for once and no more. A vector of 768 half-precision numbers takes {vector:,.0f} bytes in the "
        f"cache.\n\n"
        + table(
            "articles | encode, one core | encode, 64 cores | 30 epochs | cache, 30 sentences of 384 | write the cache",
            lines,
        )
        + "\n\nThe second row is CNN/DailyMail. Encoding is embarrassingly parallel and done once "
        "(`latentlab_shared.precompute` under torchrun or Accelerate, or an array job of AWS Batch); the rest stays on "
        "one machine up to tens of millions of articles, where the cache outgrows its disk. The cache is one SQLite index "
        "and belongs on a local disk; beyond that, part files on object storage are the form to keep."
    )


def seq2seq_keras() -> str:
    """Proportional to tokens, and serial in time."""
    rates = rows("seq2seq_keras")
    key = "value" if "value" in rates["train full, batch 60"] else "examples_per_cpu_second"
    full, small = (rates[f"train {n}, batch 60"][key] for n in ("full", "small"))
    loops = {"full, decode 64: the seed's loop / compiled": "seconds"}
    loops["decode 64: per-token predict / compiled loop"] = "other_seconds"
    decode = find("seq2seq_keras", loops) / 64
    beams = {"full, beam 4 / greedy, 64 texts": "value", "beam 4 / greedy, 64 texts": "cpu_ratio"}
    beam = find("seq2seq_keras", beams)
    lines = [
        (f"{n:,}", hours(n / small), hours(n / full), hours(n * decode), hours(n * decode * beam))
        for n in (75_000, 1_000_000, 100_000_000)
    ]
    return (
        f"Measured on texts of 50 tokens: {full:.0f} examples a CPU-second train the full network, {small:.0f} the small "
        f"one; greedy search takes {1000 * decode:.0f} ms a text in batches of 64, a beam of 4 takes {beam:.1f} times that.\n\n"
        + table("texts | one epoch, small | one epoch, full | summarize all, greedy | beam 4", lines)
        + "\n\nAll of it is proportional to tokens. An LSTM is serial in the length of the text: more cores help by larger "
        "batches only. `--workers N` shares batches (MultiWorkerMirroredStrategy; two were run). Above some ten million "
        "texts, or for texts of thousands of tokens, a pretrained transformer behind vLLM is the better engine; the "
        "ONNX and TFLite exports are for many small machines."
    )


def clara_absa() -> str:
    """What is kept of a sentence, and what a larger backbone costs."""
    train = find("clara_absa", {"training": "ours", "train, packed and shared": "per CPU second"})
    prefix = {"keys and values of the text, 4 aspects": "ours", "read the text once for 4 aspects": "per CPU second"}
    ask = find("clara_absa", prefix)
    key = "ours" if "ours" in rows("clara_absa")["kept memory, 4 aspects"] else "per CPU second"
    kept = find("clara_absa", {"kept memory, 4 aspects": key})
    parameters = 1_292_417
    larger = [("128 x 4, measured", parameters), ("MiniLM size", 33e6), ("1 B", 1e9), ("Phi-3.5", 3.8e9)]
    lines = [
        (
            name,
            three(train * parameters / p),
            three(kept * parameters / p),
            hours(20_000 * 4.6 / train * p / parameters),
        )
        for name, p in larger
    ]
    sentences = [
        (f"{n:,}", size(n * 8 * 128 * 4), size(n * 8 * 3072 * 2), hours(n * 4 / kept), hours(n * 4 / ask))
        for n in (100_000, 10_000_000, 1_000_000_000)
    ]
    return (
        f"Measured on a backbone of 1.3 million parameters: {train:.0f} task samples a CPU-second in training, "
        f"{kept:,.0f} aspects a second from kept memories, {ask:,.0f} when each text is read once.\n\n"
        + table(
            "sentences | memories, 8 x 128 float32 | 8 x 3072 float16 | 4 questions each, from memories | from texts",
            sentences,
        )
        + "\n\nWith the backbone the cost grows in proportion to its parameters (arithmetic; only the first row was run):\n\n"
        + table(
            "backbone | samples a CPU-second | aspects a CPU-second | an epoch of 20,000 sentences, 4.6 samples each",
            lines,
        )
        + "\n\nFrom about a billion parameters this is work for a GPU: one card with QLoRA (`--quantise`), several with "
        "`train.parallel=copy` (DDP) or `shard` (FSDP2; two CPU processes were run). Answers are scored in one pass, so "
        "serving is bound by reading; memories are a few kilobytes and belong into the embedding cache or an object store."
    )


def nrms() -> str:
    """The catalogue, the readers, the requests."""
    latency, graph, embed, load = (rows(n) for n in ("latency", "graph", "embed", "load"))
    sizes = (10_000, 100_000, 1_000_000)
    exact = [latency[f"exact, {n:,} articles, processor time"]["value"] for n in sizes]
    slope = (exact[2] - exact[1]) / (sizes[2] - sizes[1]) * 1e6
    walk = graph["usearch, 1,000,000 articles, processor time"]["value"]
    build = [graph[f"usearch, {n:,} articles, build"]["value"] for n in sizes[1:]]
    power = exponent(1, build[0], 10, build[1])
    cross = sizes[1] + (walk - exact[1]) / slope * 1e6
    titles = embed["re-embedding, SQLite"]["value"]
    request = load["load, processor time of a request"]["value"]
    memory = rows("memory")
    cached = memory["reading 2,232,748 impressions, 101,527 articles, cache"]["value"] * 2**30 / 2_232_748
    train = rows("work")["training"]["value"]
    catalogue = [
        (
            f"{n:,}",
            hours(n / titles),
            size(n * 512),
            f"{exact[2] + (n - sizes[2]) * slope / 1e6:,.0f} ms" if n > sizes[2] else f"{exact[sizes.index(n)]:.1f} ms",
            f"{walk:.0f} ms" if n == sizes[2] else "",
            hours(build[1] * (n / sizes[2]) ** power) if n >= sizes[2] else "",
        )
        for n in (*sizes, 10_000_000, 100_000_000)
    ]
    users = [
        (f"{n:,}", f"{n * 20 / 86_400 * 3:,.0f}", f"{math.ceil(n * 20 / 86_400 * 3 * request / 1000 / 0.6):,}")
        for n in (10_000, 1_000_000, 100_000_000)
    ]
    clicks = [(f"{n:,}", hours(n / train), size(n * cached)) for n in (250_000, 2_500_000, 250_000_000)]
    return (
        f"Measured: an exact ranking costs {exact[0]:.1f}, {exact[1]:.1f} and {exact[2]:.0f} CPU-ms at ten thousand, a "
        f"hundred thousand and a million articles, that is {slope:.0f} ns an article; a graph search {walk:.0f} ms at a "
        f"million. By these two lines the graph is cheaper from about {round(cross, -4):,.0f} articles. Its build grows "
        f"with the power {power:.1f} of the catalogue. Re-embedding runs at {titles:,.0f} titles a CPU-second.\n\n"
        + table(
            "articles | embed all, one core | matrix, half precision | exact ranking | graph | build of the graph",
            catalogue,
        )
        + "\n\nThe last two rows are arithmetic. Readers with 20 requests a day and a peak of three times the mean, at "
        f"{request:.1f} CPU-ms a request over HTTP, cores 60 % busy:\n\n"
        + table("readers a day | requests a second at the peak | cores", users)
        + "\n\nTraining, and the log as it is mapped from disk:\n\n"
        + table("clicks | one epoch, one core | the log", clicks)
        + "\n\nOne process and SQLite serve up to some hundred thousand articles and tens of requests a second. From there "
        "on: workers over PostgreSQL with pgvector (`--search database`; run with two workers, one database and a hundred "
        "thousand articles), then read replicas. Above ten million articles the matrix no longer fits beside each worker: "
        "a vector engine of its own. Training moves to torchrun (two processes were run, equal to one)."
    )


def refrag() -> str:
    """Context: what the first token costs, and what it keeps."""
    found, align = rows("ttft"), rows("align")
    full = found["full"]
    kept = full["kv_MB"] * 1e6 / full["positions"]
    power = exponent(found["k=8, cached"]["positions"], found["k=8, cached"]["cpu_s"], full["positions"], full["cpu_s"])
    lines = []
    for n in (4_096, 16_384, 131_072):
        times = {k: found[f"k={k}, cached"] for k in (8, 16, 32)}
        growth = (n / 4_096) ** power
        cells = [hours(full["cpu_s"] * growth), size(n * kept)]
        cells += [hours(t["cpu_s"] * growth) for t in times.values()]
        lines.append((f"{n:,}", *cells, size(n / 16 * kept)))
    tokens = align["tokens_per_second"]["value"]
    vectors = [(f"{n:,}", size(n / 16 * 384 * 2), hours(n / tokens)) for n in (10**6, 10**9, 10**12)]
    return (
        f"Measured with a decoder of 58 million parameters and {full['positions']:,} positions: {full['cpu_s']:.1f} CPU-s "
        f"to the first token, {kept / 1000:.0f} kB of keys and values a position. Between {found['k=8, cached']['positions']} "
        f"and {full['positions']:,} positions time grows with the power {power:.2f}: attention begins to show beside the "
        "matrix products. Carried on with that power, which is kind to the uncompressed side (attention tends to 2):\n\n"
        + table(
            "context, tokens | all tokens | keys and values | k=8, cached | k=16 | k=32 | keys and values, k=16", lines
        )
        + f"\n\nA corpus that was read in advance, a vector of 384 half-precision numbers for 16 tokens, and its alignment "
        f"at {tokens / 1e6:.1f} million tokens a second:\n\n"
        + table("tokens | chunk vectors | alignment, one core", vectors)
        + "\n\nOnly the first row of the first table was run. Real decoders belong behind vLLM or a peer of it, which must "
        "take input embeddings; the window that `refrag` builds is such a matrix. Not built here. Reading a corpus is an "
        "array job (torchrun, AWS Batch: the definitions are in `packages/refrag/infra`, and were never submitted); the "
        "stages of training take `engine=fsdp2` where the decoder outgrows a card (two CPU processes were run)."
    )


def page() -> str:
    """The whole page."""
    sources = "\n".join(f"- `{path}`" for path in PAGES_OF.values())
    return f"""# What it costs as it grows

Slopes measured on two cores, then arithmetic. This page is written by `scripts/scale.py` from the packages' result files;
processor time, because wall time on a shared machine says little. A row beyond the measured ones is a forecast with
straight lines, good for choosing an engine and for nothing finer.

## rsr_net: articles

{rsr_net()}

## seq2seq_keras: texts

{seq2seq_keras()}

## clara_absa: sentences and backbones

{clara_absa()}

## nrms: articles, readers, clicks

{nrms()}

## refrag: context and corpus

{refrag()}

## What was run for real

| | run | not run |
|---|---|---|
| machines | one, two cores, 24 GiB | a GPU, a second machine, AWS |
| processes | two, for training and precomputing of every package that has it | more than two |
| databases | SQLite; PostgreSQL 18 with pgvector, a hundred thousand articles, killed and started again under load | replicas, a million articles in pgvector |
| catalogue | a million generated articles, exact and by graph | ten million |
| context | about four thousand tokens | more |
| engines | torch, TensorFlow, ONNX Runtime on CPU | vLLM, Triton |

Measured in:

{sources}
"""


def main() -> int:
    """Write or check the page; the exit code."""
    made = page()
    if "--check" in sys.argv[1:]:
        held = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        if held != made:
            print("docs/scale.md differs from the result files. Run: make tables")
        return int(held != made)
    PAGE.write_text(made, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the package is worth in numbers: latency, throughput, load; peers run interleaved, on the same files."""

from nrms.bench.run import SUITES, run_bench

__all__ = ["SUITES", "run_bench"]

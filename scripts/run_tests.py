"""Run pytest on parts of the repository, each in a process of its own, as many at a time as there are cores.

Two frameworks in one process are slow to load and may load two OpenMP runtimes; and five packages one after another
would take longer than anyone waits. What a part prints is shown when it ends.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

NO_TESTS = 5  # pytest's exit code where no test was selected

_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()


def run(part: str, options: list[str], threads: int) -> tuple[int, bytes, float]:
    """Exit code, output and seconds of one part."""
    print(f"-- {part}: started", flush=True)
    began = time.monotonic()
    environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    with tempfile.TemporaryFile() as output:
        command = [sys.executable, "-m", "pytest", "-q", *options, part]
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process:
            with _lock:
                _running.add(process)
            code = process.wait()
            with _lock:
                _running.discard(process)
        output.seek(0)
        return code, output.read(), time.monotonic() - began


def main() -> int:
    """Run all parts, whatever fails; 1 if one failed."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("parts", nargs="+", help="folders with tests")
    parser.add_argument("-m", dest="marked", default="", help="pytest's marker expression")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parts at a time [default: cores]")
    given = parser.parse_args()
    jobs = max(1, min(given.jobs, len(given.parts)))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    options = ["-m", given.marked] if given.marked else []
    failed = []
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting = {pool.submit(run, part, options, threads): part for part in given.parts}
        for done in as_completed(waiting):
            code, output, seconds = done.result()
            print(f"== {waiting[done]} ({seconds:.0f} s)", flush=True)
            sys.stdout.buffer.write(output)
            sys.stdout.flush()
            if code not in (0, NO_TESTS):
                failed.append(waiting[done])
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        with _lock:
            for process in _running:
                process.send_signal(signal.SIGINT)
        return 130
    if failed:
        print(f"failed: {', '.join(sorted(failed))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

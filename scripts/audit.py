"""Look every locked version up in the public list of known faults; one clear line where it cannot be reached."""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def main() -> int:
    """Run pip-audit on the lock; 1 if it found something, or could not look."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--require-hashes"]
    done = subprocess.run([*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        listed = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        listed = []
    checked = [package for package in listed if "skip_reason" not in package]
    if not checked:
        why = ["no package was found there"] if listed else done.stderr.strip().splitlines()[-1:] or ["no answer"]
        print(f"error: nothing was checked against the list of known faults ({why[0][:200]}). Run it with a network")
        return 1
    faults = [(package, fault) for package in checked for fault in package["vulns"]]
    for package, fault in faults:
        mended = ", ".join(fault["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {fault['id']}, mended in {mended}")
    print(f"{len(checked)} packages checked, {len(listed) - len(checked)} not in the list, {len(faults)} known faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

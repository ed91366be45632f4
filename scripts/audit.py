"""Look every locked version up in the public lists of known faults; one clear line where they cannot be reached."""

import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def main() -> int:
    """Run pip-audit on the lock; 1 if it found something, or could not look."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--require-hashes"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True)
    if done.returncode == 0:
        print(done.stdout.strip() or "no known faults")
        return 0
    unreachable = ("ConnectionError", "Failed to establish", "Max retries", "ServiceError", "timed out", "ProxyError")
    if any(word in done.stderr for word in unreachable):
        print("error: nothing was checked: the list of known faults cannot be reached. Run it with a network")
        return 1
    print(done.stdout.strip() or done.stderr.strip()[-2000:])
    return 1


if __name__ == "__main__":
    sys.exit(main())

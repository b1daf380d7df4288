"""Work in a process of its own, so that its time and its peak memory are its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def result_of(*arguments: str) -> Any:
    """The JSON of the last line that `python ARGUMENTS` prints; RuntimeError with its last words if it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_mib() -> float:
    """Peak resident memory of this process. (`ru_maxrss` starts at that of the process which started it.)"""
    return status_mib("VmHWM")


def status_mib(name: str) -> float:
    """A size in /proc/self/status, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024

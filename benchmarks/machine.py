"""What the benchmarks share: where files lie, memory, processor time, a free port, tables, a line about the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
ROCKET = SAMPLES / "rocket.jpg"  #: 427x640 (H x W)
LABELING = ROOT / "configs" / "labeling.xml"


def peak_mib(pid: int) -> float:
    """The most memory that a process has held, MiB. getrusage would begin with what its parent held."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines.get("VmHWM", "0 kB").split()[0]) / 1024  # nothing where it has just ended


def resident_mib(pid: int | str = "self") -> float:
    """Memory that a process holds now, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children(pid: int) -> list[int]:
    """Processes that a process has started and those that they have started."""
    own = list[int]()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            own += map(int, path.read_text().split())
    return own + [further for child in own for further in children(child)]


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all threads; hardly more on a busy machine than on a quiet one."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def described() -> str:
    """Processor, number of CPUs, torch, load average: a line below every table."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].split(":", 1)[1].strip() if names else platform.processor()
    torch, load = importlib.metadata.version("torch"), os.getloadavg()[0]  # importing torch takes memory and time
    return f"{name}, {os.cpu_count()} CPUs, torch {torch}, load average {load:.1f}"


def print_table(head: Sequence[str], columns: Sequence[Mapping[str, str]]) -> None:
    """A row for each figure, empty where a column lacks it; then the machine."""
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for figure in dict.fromkeys(figure for column in columns for figure in column):
        print(f"| {figure} | {' | '.join(column.get(figure, '') for column in columns)} |")
    print(f"\n{described()}")

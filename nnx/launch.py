"""Train one script on several GPUs of this machine: a process for each, on its part of every batch.

    python -m nnx launch --gpus 2 train.py --epochs 20
    python -m nnx launch --processes 2 train.py      the same on CPUs, with NumPy

The script stays as it is: its `fit` and `train_on_batch` find the others by themselves. What the
first process prints is shown, and the errors of all. When one fails, or on Ctrl-C, all are ended.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from nnx.cli import number

# A process that has not ended so long after SIGTERM is killed.
GRACE_SECONDS = 5.0


def add_options(parser) -> None:
    """Add the options of `python -m nnx launch`."""
    count = parser.add_mutually_exclusive_group(required=True)
    count.add_argument(
        "--gpus", metavar="N", type=number(int, 1), help="train with CuPy, a process for each GPU"
    )
    count.add_argument(
        "--processes", metavar="N", type=number(int, 1), help="train with the backend that NNX_BACKEND names"
    )
    parser.add_argument("script", metavar="SCRIPT.py")
    parser.add_argument("arguments", metavar="...", nargs="...", help="of the script")


def run(args, parser, more: list[str]) -> int:
    """Run the command; return the exit code."""
    if not Path(args.script).is_file():
        parser.error(f"there is no script {args.script!r} in {Path.cwd()}")
    settings = {"NNX_BACKEND": "cupy"} if args.gpus else {}
    return launch(args.gpus or args.processes, [args.script, *args.arguments, *more], settings)


def launch(size: int, command: list[str], settings: dict[str, str]) -> int:
    """Run a Python script in so many processes; return 0, or the exit code of the first that failed.

    Parameters
    ----------
    command : list of str
        The script and its arguments.
    settings : dict
        Environment variables for all.
    """
    common = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size)),  # unless it is set
        **os.environ,
        **settings,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "NNX_KEY": secrets.token_hex(32),
    }
    processes: list[subprocess.Popen] = []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for rank in range(size):
            processes.append(start(rank, command, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        return watch(processes)
    except KeyboardInterrupt:
        report("interrupted: all processes are ended")
        return 128 + signal.SIGINT
    finally:
        stop(processes)
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(rank: int, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Start one process; all but the first print errors alone, each line after their rank."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if rank else None,
        stderr=subprocess.PIPE if rank else None,
        text=True,
        errors="replace",
        start_new_session=True,  # so that Ctrl-C is heard here alone
    )
    if rank:
        threading.Thread(target=pass_on, args=(process.stderr, f"[rank {rank}] "), daemon=True).start()
    return process


def pass_on(lines, prefix: str) -> None:
    """Print each line on stderr as it comes."""
    for line in lines:
        sys.stderr.write(prefix + line)
        sys.stderr.flush()


def watch(processes: list[subprocess.Popen]) -> int:
    """Wait until all have ended or one has failed; return the exit code."""
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                others = ": the others are ended" if None in codes else ""
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                report(f"rank {rank} ended with {how}{others}")
                return code if code > 0 else 128 - code
        if None not in codes:
            return 0
        time.sleep(0.05)


def stop(processes: list[subprocess.Popen]) -> None:
    """End all processes that still run, and what they started."""
    deadline = time.monotonic() + GRACE_SECONDS
    running = [process for process in processes if process.poll() is None]
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
    while time.monotonic() < deadline and any(process.poll() is None for process in running):
        time.sleep(0.05)
    for process in running:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def report(message: str) -> None:
    """Print one line on stderr."""
    print(f"python -m nnx launch: {message}", file=sys.stderr, flush=True)

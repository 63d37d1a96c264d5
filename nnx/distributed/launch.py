"""Train a script on several GPUs of this machine: one process for each, on its shard of every batch.

    python -m nnx launch --gpus 2 train.py --epochs 20
    python -m nnx launch --processes 2 train.py      the same on CPUs, with NumPy

The script needs no change: its `fit` and `train_on_batch` connect to the other processes. The output of
the first process is shown, and the errors of all. All processes end when one fails, when one ends without
training while others wait for it, on Ctrl-C, SIGTERM or SIGHUP (a closed terminal), and, on Linux, when
this process is killed.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from nnx.cli import number

GRACE_SECONDS = 5.0
"""Time after SIGTERM before a process is killed."""

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the launcher and all its processes, unless they are ignored, as under nohup."""

PR_SET_PDEATHSIG = 1


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
    """Run a Python script in several processes; return 0, or the exit code of the first that failed.

    Parameters
    ----------
    command : list of str
        The script and its arguments.
    settings : dict
        Environment variables for all.
    """
    received: list[int] = []
    handlers = {which: signal.getsignal(which) for which in SIGNALS}
    for which, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(which, lambda which, frame: received.append(which))
    processes: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory(prefix="nnx-launch-") as arrivals:
        common = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size)),  # os.environ overrides it
            **os.environ,
            **settings,
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "NNX_KEY": secrets.token_hex(32),
            "NNX_ARRIVALS": arrivals,
        }
        try:
            for rank in range(size):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(start(rank, command, {**common, **own}))
            for rank, process in enumerate(processes[1:], start=1):
                name = f"[rank {rank}] "
                threading.Thread(target=pass_on, args=(process.stderr, name), daemon=True).start()
            return watch(processes, Path(arrivals), received)
        finally:
            stop(processes)
            for which, handler in handlers.items():
                signal.signal(which, handler)


def free_port() -> int:
    """Return an unused port of this machine."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(rank: int, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Start one process; only rank 0 prints directly, the errors of others go into a pipe."""
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if rank else None,
        stderr=subprocess.PIPE if rank else None,
        text=True,
        errors="replace",
        start_new_session=True,  # only the launcher gets Ctrl-C
        preexec_fn=ends_with(os.getpid()),
    )


def ends_with(parent: int):
    """Return a function for a new process to call, after which Linux kills it when this one ends."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def request_kill():
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent has already ended
            os._exit(1)

    return request_kill


def pass_on(lines, prefix: str) -> None:
    """Print each line on stderr; continue reading if that fails, so that no rank blocks on a full pipe."""
    for line in lines:
        with contextlib.suppress(OSError):
            sys.stderr.write(prefix + line)
            sys.stderr.flush()


def watch(processes: list[subprocess.Popen], arrivals: Path, received: list[int]) -> int:
    """Return the exit code when all processes have ended, one has failed or lets others wait, or a signal comes.

    `arrivals` is a folder with a file for each rank that waits for the others, or has waited.
    """
    while True:
        codes = [process.poll() for process in processes]
        arrived = [(arrivals / str(rank)).exists() for rank in range(len(codes))]
        for rank, code in enumerate(codes):
            if code:
                others = ": the others are ended" if None in codes else ""
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                report(f"rank {rank} ended with {how}{others}")
                return code if code > 0 else 128 - code
        for rank, code in enumerate(codes):
            waiting = [str(r) for r, c in enumerate(codes) if c is None and arrived[r]]
            if code == 0 and not arrived[rank] and waiting:
                report(
                    f"rank {rank} ended with exit code 0 before it trained, and rank {', '.join(waiting)} waited for "
                    f"it to train together: the others are ended. All ranks must call fit"
                )
                return 1
        if received:
            name = signal.Signals(received[0]).name
            how = "interrupted" if received[0] == signal.SIGINT else f"ended by {name}"
            report(f"{how}: all processes are ended")
            return 128 + received[0]
        if None not in codes:
            return 0
        time.sleep(0.05)


def stop(processes: list[subprocess.Popen]) -> None:
    """End all running processes and their children."""
    deadline = time.monotonic() + GRACE_SECONDS
    running = [process for process in processes if process.poll() is None]
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
    while time.monotonic() < deadline and any(process.poll() is None for process in running):
        time.sleep(0.05)
    for process in running:
        with contextlib.suppress(ProcessLookupError):  # the group has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def report(message: str) -> None:
    """Print one line on stderr, if there is still a terminal."""
    with contextlib.suppress(OSError):
        print(f"python -m nnx launch: {message}", file=sys.stderr, flush=True)

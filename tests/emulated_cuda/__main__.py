"""python -m emulated_cuda [options] script.py args...   or   -m module args..."""

import argparse
import os
import runpy
import sys

from . import install


def main():
    parser = argparse.ArgumentParser(
        prog="python -m emulated_cuda", description="Run a program with CuPy on an emulated device."
    )
    parser.add_argument(
        "--check-with-nvrtc", action="store_true", help="also compile every kernel with NVRTC"
    )
    parser.add_argument("--summary", action="store_true", help="print the counters at the end")
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, help="module to run, and its arguments"
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, help="script to run, and its arguments")
    options = parser.parse_args()
    command = options.module or options.program
    if not command:
        parser.error("no program given")
    device = install(options.check_with_nvrtc)
    sys.argv = command
    try:
        run(command[0], is_module=bool(options.module))
    finally:
        if options.summary:
            print("CuPy on an emulated device:", device.counters, file=sys.stderr)


def run(program, is_module):
    if is_module:  # sys.path[0] is the current directory, as with python -m
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(program))
        runpy.run_path(program, run_name="__main__")


main()

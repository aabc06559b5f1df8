"""`python -m benchmarks` runs all, each in a process of its own; `python -m benchmarks ID` one."""

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.harness import RESULTS, Benchmark, Unequal, measure

PREFIX = "bench_"


def names() -> list[str]:
    """All benchmarks."""
    return sorted(path.stem.removeprefix(PREFIX) for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))


def main() -> int:
    """The command line; 1 if a benchmark fails, or compares what is not equal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against peers.")
    parser.add_argument("id", nargs="?", choices=names(), help="one of them; without it, all")
    parser.add_argument("--trial", action="store_true", help="see whether it works: small samples, nothing is kept")
    options = parser.parse_args()
    if options.id is None:
        again = ["--trial"] if options.trial else []
        commands = [[sys.executable, "-m", "benchmarks", name, *again] for name in names()]
        return max(subprocess.run(command, check=False).returncode for command in commands)
    benchmark: Benchmark = import_module(f"benchmarks.{PREFIX}{options.id}").BENCHMARK
    try:
        console = measure(options.id, benchmark, trial=options.trial)
    except Unequal as error:
        print(f"error: {options.id}: not equal: {error}", file=sys.stderr)
        return 1
    if not options.trial:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{options.id}.txt").write_text("\n".join([*console.lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

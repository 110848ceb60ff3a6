"""Measure litchar on this machine: `python scripts/benchmark.py encode`."""

from litchar.benchmarks import main

if __name__ == "__main__":
    main()

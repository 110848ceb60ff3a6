"""Compare runs, sweeps or revisions: `python scripts/compare.py outputs/sweeps/NAME`."""

from litchar.analysis.compare import main

if __name__ == "__main__":
    main()

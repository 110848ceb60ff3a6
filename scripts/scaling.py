"""Estimate what limits a run on many devices: `python scripts/scaling.py [--measure]`."""

from litchar.analysis.scaling import main

if __name__ == "__main__":
    main()

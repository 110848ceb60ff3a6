"""Write the report of a run: `python scripts/report.py outputs/runs/NAME`."""

from litchar.analysis.report import main

if __name__ == "__main__":
    main()

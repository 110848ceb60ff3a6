"""Inspect a text: `python scripts/inspect.py data=text data.path=FILE`."""

if __name__ == "inspect":
    # Python looks for modules in the script's own directory first, so whenever a library imports
    # `inspect` it finds this file: load the standard library's in its place.
    import importlib.util
    import os
    import sys

    place = os.path.join(os.path.dirname(os.__file__), "inspect.py")
    spec = importlib.util.spec_from_file_location("inspect", place)
    sys.modules["inspect"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["inspect"])

if __name__ == "__main__":
    from litchar.cli import hydra_main

    hydra_main(__file__, "inspect", "litchar.analysis.inspect:run")

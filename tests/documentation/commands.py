"""The commands in the README, docs/ and conf/, and how to try them.

    python tests/documentation/commands.py README.md

runs all commands of a document, scaled down, in this checkout, and prints their exit codes.
"""

import argparse
import contextlib
import gzip
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pyarrow
from backports import zstd
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from pyarrow import parquet
from tensorboard import default
from tensorboard.program import TensorBoard

from conftest import composed
from litchar.overrides import check, quote

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = (
    "python",
    "pip",
    "pytest",
    "tensorboard",
    "git",
    "echo",
    "ruff",
    "mypy",
    "pre-commit",
    "sphinx-build",
    "torchrun",
    "srun",
    "sbatch",
    "ray",
    "curl",
)
BEGINS = re.compile(rf"(\w+=\S+ )*({'|'.join(PROGRAMS)})\b")

# What to substitute for words in capitals.
STANDS_FOR = {
    "experiment=NAME": "experiment=teaching_bigram",
    "seed=SEED": "seed=1",
    "experiment=tune/t1": "experiment=teaching_bigram",
    "data.path=s3://bucket/dumps/": "data.path=dumps",
    "data.path=hf://datasets/owner/name/train.parquet": "data.path=stories.parquet",
    "data.path=https://example.org/book.txt": "data.path=my.txt",
    "data.name=NAME": "data.name=my_data_set",
    "data.name=roneneldan/TinyStories": "data.name=my_data_set",
    "data.column=COLUMN": "data.column=text",
    "data=...": "data=ml",
    "FILE.csv": "losses.csv",
    "FILE": "my.txt",
    "[KEY=VALUE ...]": "",
    "outputs/runs/NAME": "outputs/runs/mine",
    "outputs/runs/ONE outputs/runs/OTHER": "outputs/runs/one outputs/runs/mine",
    "DIRECTORY": "compared",
    "HOST": "127.0.0.1",
    " ... ": " ",  # and so on
    " ...$": "",
}
SEPARATORS = frozenset("|&;<>")
BUILT_IN = ("cd", "source", "&&", "|")  # into a shell


@dataclass(frozen=True)
class Command:
    """A command line of a document."""

    document: str
    line: int
    text: str

    def parts(self) -> list[list[str]]:
        """The words of its parts; the operators between them (`&&`, `|`) are parts too."""
        text = re.split(r"   +", self.text)[0] + "$"  # what stands apart says what it does
        for word, instead in STANDS_FOR.items():
            text = text.replace(word, instead)
        text = text.removesuffix("$")
        lexer = shlex.shlex(text, posix=True, punctuation_chars="".join(SEPARATORS))
        lexer.whitespace_split = True
        parts: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= SEPARATORS:
                parts += [[word], []]
            elif parts[-1] or not re.match(r"[A-Z_]+=", word):  # a variable set for it
                parts[-1].append(word)
        return parts


def commands_of(document: Path) -> list[Command]:
    """Return the commands of a document: lines of code blocks, and whole code spans in prose.

    Raises:
        ValueError: a shell code block contains something else.
    """
    if document.is_dir():
        return [
            command for file in sorted(document.rglob("*.yaml")) for command in commands_of(file)
        ]
    name = str(document.relative_to(ROOT))
    text = re.sub(r" \\\n +", " ", document.read_text())  # a line that goes on
    if document.suffix == ".yaml":
        lines = ((i, line[2:]) for i, line in enumerate(text.splitlines(), 1) if line[:2] == "# ")
        return [Command(name, i, line) for i, line in lines if BEGINS.match(line)]
    found = []
    fence, prose = None, []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            fence = None if fence is not None else line.strip("`").strip()
            prose.append("")
        elif fence is None:
            indented = line.startswith("    ")
            prose.append("" if indented else line)
            if indented and BEGINS.match(line.strip()):
                found.append(Command(name, number, line.strip()))
        else:
            prose.append("")
            if fence in ("sh", "bash", "console") and line.strip() and line[:1] != "#":
                if not BEGINS.match(line):
                    raise ValueError(f"{name}:{number}: not a command that is known: {line}")
                found.append(Command(name, number, line))
    text = "\n".join(prose)
    for span in re.finditer(r"`([^`]+)`", text):
        command = " ".join(span[1].split())
        if BEGINS.match(command) and " " in command:
            found.append(Command(name, text.count("\n", 0, span.start()) + 1, command))
    return sorted(found, key=lambda command: command.line)


def all_commands() -> list[Command]:
    """Return the distinct commands of all documents and configuration files."""
    found = [command for source in (*DOCUMENTS, ROOT / "conf") for command in commands_of(source)]
    return list({command.text: command for command in reversed(found)}.values())[::-1]


def lay_out(directory: Path) -> None:
    """Copy the checkout, and add everything that the documents say to add."""
    for name in ("conf", "scripts", "src", "docs"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    for document in DOCUMENTS:
        for place, content, at_the_end in examples(document):
            if at_the_end:
                content = f"{(directory / place).read_text()}\n\n{content}"
            (directory / place).write_text(content)


def examples(document: Path) -> list[tuple[str, str, bool]]:
    """Return what a document says to add: code blocks after a line that ends with their path,
    such as "and `conf/model/cnn.yaml`:", or "At the end of `src/litchar/text/sources.py`:".

    Returns:
        path, content, and whether to append it to an existing file
    """
    blocks = re.findall(
        r"(at the end of\s+)?`((?:conf|src)/[\w/]+\.\w+)`:\n\n```\w+\n(.*?)```",
        document.read_text(),
        re.DOTALL | re.IGNORECASE,
    )
    return [(place, content, bool(at_the_end)) for at_the_end, place, content in blocks]


class ParsedError(Exception):
    """The command line was parsed without errors."""


def read(command: Command, checkout: Path) -> None:
    """Parse a command as its program would, without running it.

    Raises:
        Exception: the program would refuse it.
    """
    for words in command.parts():
        program, *arguments = words
        script = next((i for i, word in enumerate(words) if word.startswith("scripts/")), None)
        if script is not None:  # also behind torchrun or srun
            _read_script(checkout / words[script], words[script + 1 :])
        elif program == "pip":
            _read_pip(arguments)
        elif program == "python" and arguments[0] == "-m":
            if importlib.util.find_spec(arguments[1]) is None:
                raise ModuleNotFoundError(arguments[1])
        elif program == "tensorboard":
            TensorBoard(plugins=default.get_plugins()).configure(("tensorboard", *arguments))
        elif program not in BUILT_IN and shutil.which(program) is None:
            raise FileNotFoundError(program)


def _read_script(script: Path, arguments: list[str]) -> None:
    entry = re.search(r'hydra_main\(\s*__file__, "(\w+)"', script.read_text())
    if entry is None:
        parse_args = argparse.ArgumentParser.parse_args

        def parse(parser: argparse.ArgumentParser, given: list[str] | None = None, *_) -> None:
            parse_args(parser, given)
            raise ParsedError

        with (
            patch.object(argparse.ArgumentParser, "parse_args", parse),
            patch.object(sys, "argv", [str(script), *arguments]),
            contextlib.suppress(ParsedError),
        ):
            # The code that is imported here is that of ROOT, and the script has to be as well.
            runpy.run_path(str(ROOT / "scripts" / script.name), run_name="__main__")
            raise AssertionError(f"{script.name} reads no command line")
        return
    if "--help" in arguments:
        return
    overrides = [quote(word) for word in arguments if word not in ("-m", "--multirun")]
    if "--cfg" in overrides:
        overrides = overrides[: overrides.index("--cfg")]
    conf = script.parents[1] / "conf"
    check(overrides, conf, entry[1])
    jobs: Iterable[list[str]] = [overrides]
    if {"-m", "--multirun"} & set(arguments):
        parsed = OverridesParser.create().parse_overrides(overrides)
        (every,) = BasicSweeper.split_arguments(parsed, None)
        jobs = {tuple(w for w in job if w[:5] != "seed="): list(job) for job in every}.values()
    for job in jobs:
        composed(entry[1], *job, conf=conf)


def _read_pip(arguments: list[str]) -> None:
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    for word in arguments:
        if named := re.search(r"\[([\w,]+)\]", word):
            missing = set(named[1].split(",")) - extras
            if missing:
                raise KeyError(f"pyproject.toml has no extra {missing}")


# Trying them for real, scaled down

NOT_RUN = {
    "pip": "CI installs the package before it runs tests",
    "pytest": "this is pytest",
    "git": "takes the network",
    "pre-commit": "changes the checkout's hooks",
    "sphinx-build": "CI builds the site",
    "mypy": "CI checks types",
    "ruff": "CI checks style",
    "nanogpt_char": "takes a GPU: steps of 16,384 characters through 10.7 million parameters",
    "torchrun": "takes several devices",
    "srun": "takes a cluster",
    "launcher=slurm": "takes a cluster",
    "launcher=ray": "takes a cluster",
    "tune.storage=postgresql://user:password@host/studies": "takes a database",
    "--revisions": "takes a repository",
    "meta=meta.pkl": "takes a checkpoint of nanoGPT",
    "checkpoint=run.ckpt": "takes a checkpoint of nanoGPT",
    "init_from=run.ckpt": "takes a checkpoint of nanoGPT",
    "litchar.training.follow": "the first rank starts it",
}
TRAIN = (
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "data.max_val_characters=2000",
    "trainer.accumulate_grad_batches=1",
    "trainer.accelerator=cpu",
    "data.train_sample=0",
    "data.batch_size=4",
)
SCALED_DOWN = {
    "train.py": TRAIN,
    "tune.py": (*TRAIN, "tune.trials=2", "tune.storage=null"),  # no server of a database here
    "scaling.py": ("--steps", "2", "--width", "16"),
    "encode": ("--megabytes", "1", "--repeats", "1"),
    "generate": ("--characters", "20", "--repeats", "1"),
    "train": ("--repeats", "1", "--text", "tiny_shakespeare.txt", *TRAIN, "target_val_loss=99"),
    "overhead": ("--steps", "50", "--repeats", "1"),
    "startup": ("--repeats", "1"),
    "dashboard": ("--steps", "4", "--repeats", "1"),
}
SERVES = ("tensorboard", "serve.py", "playground.py")  # until they are stopped


def scaled_down(words: list[str]) -> list[str]:
    """Return a part's words, changed so that it takes seconds and no network."""
    program, *arguments = words
    if program != "python" or not arguments[0].startswith("scripts/"):
        return words
    name = arguments[0].removeprefix("scripts/")
    if "--help" in arguments or "--cfg" in arguments:
        return words
    if name == "benchmark.py":
        if "--peer" in arguments:
            at = arguments.index("--peer")
            del arguments[at : at + 2]
        return [program, *arguments, *SCALED_DOWN[arguments[1]]]
    return [program, *arguments, *_local(arguments), *SCALED_DOWN.get(name, ())]


def _local(arguments: list[str]) -> list[str]:
    """Return overrides that make a command use a local copy instead of downloading."""
    downloads = {"tiny_shakespeare": "tiny_shakespeare.txt", "names": "names.txt"}
    downloads |= {"enwik8": "tiny_shakespeare.txt", "text8": "tiny_shakespeare.txt"}
    chosen = {}
    for word in arguments:
        for key, name in re.findall(r"\A(data|experiment)=(\w+)", word):
            chosen[key] = name
    data = chosen.get("data")
    if data is None and "experiment" in chosen:
        path = ROOT / "conf/experiment" / f"{chosen['experiment']}.yaml"
        text = path.read_text() if path.exists() else ""  # the document's own
        parent = re.search(r"override /data: (\w+)", text)
        data = parent[1] if parent else "tiny_shakespeare"
    if data in downloads and not any(word.startswith("data.path=") for word in arguments):
        return [f"data.path={downloads[data]}"]
    return []


def _not_run(parts: list[list[str]]) -> str:
    """Return why a command is not run here, or an empty value if it is."""
    return next((NOT_RUN[word] for part in parts for word in part if word in NOT_RUN), "")


def give_texts(directory: Path) -> None:
    """Create the files that readers are expected to have, and those that would be downloaded."""
    text = (ROOT / "src/litchar/text/ml.txt").read_text()[:20_000]
    lines = text.splitlines()
    for name in ("my.txt", "other.txt", "tiny_shakespeare.txt", "molecules.smi"):
        (directory / name).write_text(text)
    (directory / "names.txt").write_text("\n".join(re.findall(r"[a-z]{3,9}", text)))
    (directory / "my.txt.gz").write_bytes(gzip.compress(text.encode()))
    for folder, suffix in (("my_directory", "md"), ("poems", "txt"), ("my_data_set", "txt")):
        (directory / folder).mkdir(exist_ok=True)
        for number in range(30):
            (directory / folder / f"{number}.{suffix}").write_text("\n".join(lines[number::30]))
    (directory / "dumps").mkdir(exist_ok=True)
    rows = "".join(json.dumps({"meta": {"title": line}}) + "\n" for line in lines)
    (directory / "dumps/one.jsonl.zst").write_bytes(zstd.compress(rows.encode()))
    (directory / "plays.txt").write_text(text)
    (directory / "novels").mkdir(exist_ok=True)
    (directory / "novels/one.txt").write_text(text[::-1])
    parquet.write_table(pyarrow.table({"text": lines}), directory / "stories.parquet")


def run(command: Command, checkout: Path, environment: dict[str, str]) -> int | None:
    """Run a command in `checkout`, scaled down, and return its exit code; None if it is not run.

    Servers are stopped as soon as they answer, which counts as 0.
    """
    parts = command.parts()
    if parts[0][0] == "pip" and ["&&"] in parts:
        parts = parts[parts.index(["&&"]) + 1 :]
    if _not_run(parts):
        return None
    parts = [part if set(part[0]) <= SEPARATORS else scaled_down(part) for part in parts]
    # A pattern of runs is for the shell; others, such as `data.pattern`, are quoted.
    words = (
        word if set(word) <= SEPARATORS or word.startswith("outputs/") else shlex.quote(word)
        for part in parts
        for word in part
    )
    line = " ".join(words)
    if any(server in line for server in SERVES):
        return _serves(line, checkout, environment)
    ended = subprocess.run(
        ["bash", "-c", line], cwd=checkout, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    return ended.returncode


def _serves(line: str, checkout: Path, environment: dict[str, str]) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    form = "--port {}" if "tensorboard" in line else "port={}"
    words = [*shlex.split(line), *form.format(port).split()]
    with subprocess.Popen(words, cwd=checkout, env=environment) as server:
        try:
            while server.poll() is None:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5),
                ):
                    return 0
                time.sleep(0.2)
            return server.returncode
        finally:
            server.terminate()


def main() -> None:
    """Run a document's commands in this checkout and print their exit codes."""
    document = Path(sys.argv[1]).resolve()
    give_texts(ROOT)
    for command in commands_of(document):
        code = run(command, ROOT, dict(os.environ))
        said = _not_run(command.parts()) if code is None else code
        print(f"{document.name}:{command.line}\t{said}\t{command.text}", file=sys.stderr)


if __name__ == "__main__":
    main()

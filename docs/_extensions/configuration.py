"""References generated from their sources: the comments in `conf/`, the keys of `summary.json`.

Each key is listed once, under the file that defines it, with its default and its description: the
comment after or above it, or else its entry in the Args of what the file builds.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from docutils import nodes
from hydra.utils import get_object
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from litchar.training.summary import KEYS

CONF = Path(__file__).resolve().parents[2] / "conf"
HIDDEN = ("_target_", "_partial_", "_recursive_", "_convert_", "defaults", "hydra")
COMMAND = re.compile(r"(python scripts/|pip install )")


@dataclass
class Key:
    """A key with a value of its own.

    Attributes:
        name: dotted name, as on the command line.
        value: value, as written in the file.
        comment: its comment in the file.
        target: the class or function that takes it as an argument, if the file names one.
    """

    name: str
    value: str
    comment: str
    target: str | None

    @property
    def says(self) -> str:
        """Its description: the comment, or else the target's docstring entry."""
        return self.comment or arguments(self.target).get(self.name.rpartition(".")[2], "")


@dataclass
class ConfigFile:
    """A parsed file of `conf/`.

    Attributes:
        description: its leading comment.
        commands: the commands in that comment.
        defaults: the entries of its defaults list: a name, or `group=name`.
        target: the class or function it instantiates.
    """

    path: Path
    description: str = ""
    commands: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    target: str | None = None
    keys: list[Key] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Its name on the command line, or its file name if it is the main file of a script."""
        group = self.path.parent.relative_to(CONF)
        return f"{group}={self.path.stem}" if group.name else f"{self.path.stem}.yaml"


def read(path: Path) -> ConfigFile:
    """Parse a YAML file of `conf/`, including its comments."""
    text = path.read_text()
    lines = text.splitlines()
    file = ConfigFile(path)
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    package = next((line.split()[1] for line in header if line.startswith("@package")), None)
    prose = [line for line in header if not line.startswith("@package")]
    file.commands = [line for line in prose if COMMAND.match(line)]
    file.description = " ".join(line for line in prose if not COMMAND.match(line))
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        return file
    names = {key.value: value for key, value in root.value}
    if "defaults" in names:
        file.defaults = list(_defaults(names["defaults"]))
    if "_target_" in names:
        file.target = names["_target_"].value
    group = path.parent.relative_to(CONF)
    prefix = "" if package == "_global_" or not group.name else ".".join(group.parts) + "."
    file.keys = list(_keys(root, prefix, lines, len(header), None))
    return file


def files() -> list[ConfigFile]:
    """Return all files of `conf/`: the main files of scripts, then group by group."""
    first = CONF / "train.yaml"
    paths = sorted(CONF.rglob("*.yaml"), key=lambda p: (len(p.parts), p != first, p))
    ours = [path for path in paths if path.relative_to(CONF).parts[0] != "hydra"]
    return [read(path) for path in ours]


def _defaults(node: yaml.Node) -> Iterator[str]:
    for entry in node.value:
        if isinstance(entry, yaml.ScalarNode):
            if entry.value != "_self_" and "hydra" not in entry.value:
                yield entry.value
            continue
        for group, name in entry.value:
            if "hydra" not in group.value and name.value != "null":
                yield f"{group.value.removeprefix('override ').removeprefix('/')}={name.value}"


def _keys(
    node: yaml.MappingNode, prefix: str, lines: list[str], first: int, target: str | None
) -> Iterator[Key]:
    """Yield the keys below `node`.

    Args:
        first: the first line after the file's leading comment.
    """
    names = {key.value: value for key, value in node.value}
    target = names["_target_"].value if "_target_" in names else target
    for key, value in node.value:
        if key.value in HIDDEN:
            continue
        name = f"{prefix}{key.value}"
        whole = _written(value, lines).startswith("{type:")  # the search space of a key
        if isinstance(value, yaml.MappingNode) and value.value and not whole:
            if value.start_mark.line >= key.start_mark.line:  # not an alias of an earlier node
                yield from _keys(value, f"{name}.", lines, first, None)
            continue
        written = _written(value, lines)
        yield Key(name, written, _comment(key, value, lines, first), target)


def _written(value: yaml.Node, lines: list[str]) -> str:
    if isinstance(value, yaml.ScalarNode) and value.style in ("|", ">"):
        return "..."
    start, end = value.start_mark, value.end_mark
    if start.line != end.line:
        return " ".join(yaml.serialize(value).split())
    return lines[start.line][start.column : end.column].strip()


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str], first: int) -> str:
    """Return the comment after a value, or else the comment lines directly above its key."""
    end = value.end_mark
    behind = lines[end.line][end.column :] if end.line < len(lines) else ""
    if found := re.match(r"\s*#\s*(.*)", behind):
        return found[1]
    above: list[str] = []
    for line in reversed(lines[first : key.start_mark.line]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().removeprefix("#").strip())
    return " ".join(above)


@cache
def arguments(target: str | None) -> dict[str, str]:
    """Return the Args entries in the docstrings of a class (and its bases) or function, by name."""
    if target is None:
        return {}
    found = get_object(target)
    owners = inspect.getmro(found) if inspect.isclass(found) else (found,)
    documented = [part for owner in owners for part in (owner, vars(owner).get("__init__"))]
    said: dict[str, str] = {}
    for text in (inspect.cleandoc(part.__doc__ or "") for part in documented if part is not None):
        section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
        if section is None:
            continue
        entries = re.split(r"^    (?=\S)", section[1], flags=re.MULTILINE)
        for entry in entries:
            name, colon, rest = entry.partition(":")
            if colon:
                first = rest.strip().split("\n\n")[0]
                words = " ".join(first.replace("``", "`").split())
                said.setdefault(name.split("(")[0].strip("* "), words)
    return said


class Configuration(SphinxDirective):
    """Directive that renders the reference of all files of `conf/`."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each file."""
        found = files()
        for file in found:
            self.env.note_dependency(str(file.path))
        groups: dict[str, list[ConfigFile]] = {}
        for file in found:
            groups.setdefault(str(file.path.parent.relative_to(CONF)), []).append(file)
        text = "".join(_group(group, members) for group, members in groups.items())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class SummaryKeys(SphinxDirective):
    """Directive that renders the table of the keys of `summary.json`."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [f"| `{key}` | {_cell(says)} |" for key, says in KEYS.items()]
        return self.parse_text_to_nodes("\n".join(["| key | what it is |", "|---|---|", *rows]))


def _group(group: str, members: list[ConfigFile]) -> str:
    title = "What scripts begin with" if group == "." else f"`{group}`"
    return f"## {title}\n\n" + "".join(map(_section, members))


def _section(file: ConfigFile) -> str:
    parts = [f"### `{file.title}`"]
    if file.description:
        parts.append(file.description)
    if file.defaults:
        group = file.path.parent.relative_to(CONF)
        beside = f"{group}=%s" if group.name else "%s.yaml"
        named = [entry if "=" in entry else beside % entry for entry in file.defaults]
        begins = ", ".join(f"`{name}`" for name in named)
        parts.append(f"Begins with {begins}.")
    if file.target:
        parts.append(f"Builds `{file.target}`.")
    if file.commands:
        parts.append("```sh\n" + "\n".join(file.commands) + "\n```")
    if file.keys:
        rows = [f"| `{k.name}` | {_code(k.value)} | {_cell(k.says)} |" for k in file.keys]
        parts.append("\n".join(["| key | value | what it is |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n\n"


def _code(value: str) -> str:
    return f"`{_cell(value)}`" if value else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives to Sphinx."""
    app.add_directive("configuration", Configuration)
    app.add_directive("summary-keys", SummaryKeys)
    return {"parallel_read_safe": True}

"""References made from what they describe: the comments in `conf/`, the keys of `summary.json`.

Each key stands once, in the file that defines it, with its default and what is said of it there:
the comment behind it or above it; or else, in the docstring of what the file builds, its argument.
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
        name: dotted, as on the command line.
        value: as the file has it.
        comment: what the file says of it.
        target: the class or function whose argument it is, if the file says so.
    """

    name: str
    value: str
    comment: str
    target: str | None

    @property
    def says(self) -> str:
        """What is known of it: the comment, or what the docstring of the target says."""
        return self.comment or arguments(self.target).get(self.name.rpartition(".")[2], "")


@dataclass
class ConfigFile:
    """A file of `conf/`, taken apart.

    Attributes:
        description: what its first lines say.
        commands: that use it.
        defaults: the entries of its defaults list: a name, or `group: name`.
        target: what it builds.
    """

    path: Path
    description: str = ""
    commands: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    target: str | None = None
    keys: list[Key] = field(default_factory=list)

    @property
    def title(self) -> str:
        """How it is named on the command line; a file that a script begins with, by its name."""
        group = self.path.parent.relative_to(CONF)
        return f"{group}={self.path.stem}" if group.name else f"{self.path.stem}.yaml"


def read(path: Path) -> ConfigFile:
    """Return what is in a YAML file of `conf/`, comments included."""
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
    """Return all files of `conf/`: those that scripts begin with, then group by group."""
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
        first: the line from which on comments are of keys, not of the file.
    """
    names = {key.value: value for key, value in node.value}
    target = names["_target_"].value if "_target_" in names else target
    for key, value in node.value:
        if key.value in HIDDEN:
            continue
        name = f"{prefix}{key.value}"
        whole = _written(value, lines).startswith("{type:")  # what tuning searches a key in
        if isinstance(value, yaml.MappingNode) and value.value and not whole:
            if value.start_mark.line >= key.start_mark.line:  # not an alias of one further up
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
    """Return the comment behind a value, or the lines of comment right above its key."""
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
    """Return what the docstring of a class or function says of its arguments."""
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
    """Writes the reference of all files of `conf/`."""

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
    """Writes the table of what stands in `summary.json`."""

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
    """Add the directive to Sphinx."""
    app.add_directive("configuration", Configuration)
    app.add_directive("summary-keys", SummaryKeys)
    return {"parallel_read_safe": True}

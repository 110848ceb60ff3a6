"""The command line, run the way a user runs it."""

import contextlib
import errno
import fcntl
import gc
import io
import os
import pty
import random
import re
import runpy
import signal
import subprocess
import sys
import termios
import types

import hydra
import pytest
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conftest import ROOT, composed, hears_hangups, summary, wait_until
from litchar import signals
from litchar.analysis import compare
from litchar.checkpoints import Checkpoint
from litchar.cli import check_checkout, hydra_main, lasting_imports
from litchar.errors import Interrupted, UserError, is_users
from litchar.generation.run import prompts_of
from litchar.overrides import check, check_composed, explain, quote, readable
from litchar.training.resume import redirect

SMALL = (
    "data.block_size=16",
    "data.batch_size=8",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "trainer.accelerator=cpu",
    "trainer.max_steps=10",
    "report=false",
)


@pytest.fixture
def main(monkeypatch, capsys):
    """Run train.py in this process; return its exit code, stdout and stderr."""

    def main(*words: str, target: str = "litchar.training.run:main") -> tuple[int, str, str]:
        script = str(ROOT / "scripts/train.py")
        monkeypatch.setattr(sys, "argv", [script, *words])
        capsys.readouterr()
        code = 0
        try:
            hydra_main(script, "train", target, before=redirect)
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return main


def through_hydra(text: str) -> str:
    override = OverridesParser.create().parse_override(quote(f"prompt={text}"))
    assert not override.is_sweep_override()
    config = OmegaConf.create({"prompt": ""})
    OmegaConf.update(config, "prompt", override.value())
    return config.prompt


def test_any_text_reaches_the_program_unchanged():
    draw = random.Random(0)
    pieces = [
        "\\",
        '"',
        "'",
        "${",
        "$",
        "}",
        "a",
        " ",
        "=",
        ",",
        "\n",
        "~",
        "[",
        "]",
        "(",
        ":",
        "#",
        "你",
        "\t",
    ]
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randrange(8)))
        if quote(f"prompt={text}") != f"prompt={text}":  # a text in quotes stays as Hydra has it
            assert through_hydra(text) == text
    for text in ("Once ", "To be, or not", "it's", "~/x", 'say "hi"', '"a", "b"', "null", "[1,2]"):
        assert through_hydra(text) == text


def test_values_that_hydra_should_read_stay_as_they_are():
    for argument in (
        "model.n_layer=2,4",
        'prompt="quoted, already"',
        "data.path=[a.txt,b.txt]",
        "init_from=null",
        "--cfg",
        "-m",
    ):
        assert quote(argument) == argument


@pytest.mark.parametrize("argument", ["data.path=", 'resume=""', "run_dir=''", "data.path=a.txt,"])
def test_an_empty_path_is_not_the_working_directory(argument):
    with pytest.raises(UserError, match="is empty"):
        quote(argument, sweeps=True)
    assert quote("prompt=") == 'prompt=""'


def test_a_directory_that_hydra_would_not_create_as_it_stands_is_refused():
    with pytest.raises(UserError, match=r"as the value of a key; .* write 'run_dir=\"a/\${b}\"'$"):
        quote("run_dir=a/${b}")
    assert quote('run_dir="a/${seed}"') == 'run_dir="a/${seed}"'


def test_a_list_where_one_place_is_taken_is_a_name():
    assert quote("prompts=[a,b]") == 'prompts="[a,b]"'
    assert quote("stop=[a,b]") == "stop=[a,b]"


@pytest.mark.parametrize("argument", ["outputs_dir=null", "run_dir=null"])
def test_a_place_cannot_be_missing(argument):
    with pytest.raises(UserError, match=f"^{argument}: runs must be stored"):
        quote(argument)


def test_a_full_disk_ends_with_2_and_one_line(monkeypatch, capsys):
    def run(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(sys.modules, "full", types.SimpleNamespace(run=run))
    monkeypatch.setattr(sys, "argv", ["export.py"])
    with pytest.raises(SystemExit) as ended:
        hydra_main(str(ROOT / "scripts/export.py"), "export", "full:run")
    assert ended.value.code == 2
    assert "the output disk: No space left on device; free" in capsys.readouterr().err


def test_a_script_runs_with_its_output_closed(monkeypatch):
    monkeypatch.setitem(sys.modules, "said", types.SimpleNamespace(run=lambda _: print("hello")))
    monkeypatch.setattr(sys, "argv", ["export.py"])
    monkeypatch.setattr(sys, "stdout", None)
    hydra_main(str(ROOT / "scripts/export.py"), "export", "said:run")
    assert sys.stdout.isatty() is False


def test_what_is_piped_in_is_utf8_in_any_locale(monkeypatch, capsys):
    def piped(data: bytes) -> None:
        like = {"encoding": "ascii", "errors": "surrogateescape", "newline": "\n"}  # Python's own
        stdin = io.TextIOWrapper(io.BytesIO(data), **like)
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "argv", ["generate.py"])
        hydra_main(str(ROOT / "scripts/generate.py"), "generate", "piped:run")

    run = types.SimpleNamespace(run=lambda config: print(prompts_of(config)))
    monkeypatch.setitem(sys.modules, "piped", run)
    piped("für\n".encode())
    assert capsys.readouterr().out == "['für']\n"
    for ended, prompt in ((b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"a\r", "a\r")):
        piped(ended)
        assert capsys.readouterr().out == f"{[prompt]}\n"
    with pytest.raises(SystemExit) as ended:
        piped("für".encode("latin-1"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: standard input: not UTF-8 at byte 1\n"


@pytest.mark.parametrize("place", [["--config-dir", "{}/b=c"], ["--config-dir={}/b=c"], []])
def test_options_may_stand_anywhere(monkeypatch, tmp_path, capsys, place):
    (tmp_path / "b=c").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["output=a", *(word.format(tmp_path) for word in place), "--cfg", "job", "format=onnx"]
    monkeypatch.setattr(sys, "argv", ["export.py", *words])
    hydra_main(str(ROOT / "scripts/export.py"), "export", "nowhere:nothing")
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.output, shown.format) == ("a", "onnx")


def test_a_directory_of_configurations_that_is_not_there_is_named(main, tmp_path):
    line = ("--config-dir", str(tmp_path / "nope"), "experiment=mine")
    _, _, said = main(*line, target="nowhere:nothing")
    assert re.match("error: Additional config directory '.*nope' not found", said)


def test_the_code_of_another_checkout_is_not_run(tmp_path, monkeypatch, capsys):
    other = tmp_path / "a worktree"
    (other / "src/litchar").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", [str(other / "scripts/compare.py")])
    mend = f"PYTHONPATH='{other}/src', or install this one: pip install -e '{other}'"
    for main in (lambda: hydra_main(sys.argv[0], "train", "nowhere:nothing"), compare.main):
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert capsys.readouterr().err.endswith(f"{ROOT}/src; run it with {mend}\n")
    (other / "src/litchar").rmdir()
    (other / "src").rmdir()
    (other / "src").symlink_to(ROOT / "src")  # the same under another name
    check_checkout(sys.argv[0])


def test_an_option_may_be_the_last_word(script):
    assert "output: a" in script("export.py", "output=a", "--info").stdout


def test_an_experiment_may_have_names_of_its_own(tmp_path):
    (tmp_path / "experiment").mkdir()
    content = "# @package _global_\nwidth: 32\nmodel: {n_embd: '${width}'}\nother: 1\n"
    (tmp_path / "experiment/mine.yaml").write_text(content)
    line = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    config = composed("train", *line)
    with pytest.raises(UserError, match=r"^other: there is no such key or group"):
        check_composed(config, readable(ROOT / "conf", "train"), {})


def test_an_empty_path_ends_with_2_and_one_line(main, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, said = main("resume=", target="nowhere:nothing")
    assert code == 2
    assert said == "error: resume= is empty (an unset variable?); give a value or leave it out\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["-m", "--multirun", "--multi"])
def test_a_sweep_is_one_however_it_is_spelt(main, monkeypatch, tmp_path, capsys, option):
    monkeypatch.chdir(tmp_path)
    script = str(ROOT / "scripts/generate.py")
    monkeypatch.setattr(sys, "argv", [script, option, "seed=1,2"])
    with pytest.raises(SystemExit) as ended:
        hydra_main(script, "generate", "nowhere:nothing")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "error: -m: generate takes one value per key; leave -m out\n"
    assert not list(tmp_path.iterdir())
    code, _, said = main("data.path=a.txt,b.txt", "run_dir=x", option, target="nowhere:nothing")
    assert code == 2
    assert said.startswith("error: run_dir is for one run; name a sweep's directory")
    assert sys.argv[1] == 'data.path="a.txt","b.txt"'


def test_a_part_of_a_data_set_is_a_text_of_the_librarys():
    assert quote("data.split=train[:10%]") == 'data.split="train[:10%]"'
    assert quote("data.subset=20231101.de") == 'data.subset="20231101.de"'


def test_a_path_may_be_long_and_its_home_directory_unknown(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = [f"{letter * 200}.txt" for letter in "abcdefghijklmnopqrstuvwxyz"]
    quoted = ",".join(f'"{path}"' for path in paths)
    assert quote(f"data.path={','.join(paths)}", sweeps=True) == f"data.path={quoted}"
    assert quote("data.path=~nobody-here/x,y", sweeps=True) == 'data.path="~nobody-here/x","y"'
    for lists in ("data.path=[a.txt,b.txt],c.txt", "data.path=a,[b,c]"):
        assert quote(lists, sweeps=True) == lists
    assert quote('data.path="a,b",c d', sweeps=True) == 'data.path="a,b","c d"'
    assert quote("data.path=c d,'a,b'", sweeps=True) == "data.path=\"c d\",'a,b'"
    assert quote("data.path='tis,b's", sweeps=True) == 'data.path="\'tis","b\'s"'
    for missing in ("a,,b", "a,", ",a", '"a",'):
        with pytest.raises(UserError, match="is empty"):
            quote(f"data.path={missing}", sweeps=True)
    assert quote("data.path=d[1],x],y", sweeps=True) == 'data.path="d[1]","x]","y"'
    assert quote("data.path=~/x") == 'data.path="~/x"'  # the program's own code expands it
    assert quote("run_dir=~/x") == 'run_dir="/home/me/x"'
    assert quote("outputs_dir=~") == 'outputs_dir="/home/me"'
    assert quote("run_dir=~nobody-here/x") == 'run_dir="~nobody-here/x"'


@pytest.fixture
def hostile_path(tmp_path, text_file):
    path = tmp_path / "a, b = 'c' \"d\" ${e} [f] 文字.txt"
    path.write_text(text_file.read_text())
    return path


def test_train_generate_and_evaluate_from_any_directory(
    script, generated, loss_of, hostile_path, tmp_path, capsys
):
    """End to end in three commands, with a path that Hydra's grammar would reject."""
    trained = script("train.py", *SMALL, f"data.path={hostile_path}", "report=true")
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    assert re.search(r"yardsticks +uniform 3\.907, unigram \d", trained.stdout)  # 15 characters
    for noise in ("Tip", "lightning.ai", "Warning", "GPU available"):
        assert noise not in trained.stdout
    (run_dir,) = (tmp_path / "outputs" / "runs").iterdir()
    assert {entry.name for entry in run_dir.iterdir()} >= {
        ".hydra",
        "checkpoints",
        "tensorboard",
        "metrics.csv",
        "train.log",
        "environment.json",
        "summary.json",
    }
    figures = summary(run_dir)

    written = generated("prompt=1 and ", "max_new_tokens=40", "seed=3")
    assert written.out.startswith("1 and ")
    assert len(written.out) == len("1 and ") + 40 + 1
    two = generated("prompt=1", "max_new_tokens=5", "num_samples=2", "temperature=0")
    assert two.out.count("-" * 8) == 1

    scored, packages = loaded("evaluate.py", "split=val")
    assert packages == "['torch', 'numpy']"
    nats = float(scored.split(" nats per character")[0].split()[-1])
    assert nats == pytest.approx(figures["best_val_loss"], abs=1e-5)

    other = tmp_path / "other.txt"
    other.write_text("1 and 2!?!\n" * 20)
    capsys.readouterr()
    loss_of(f"data.path={other}")
    told = capsys.readouterr().out
    assert "Left out: 60 characters (27.27%)" in told
    assert "'!' (EXCLAMATION MARK), '?' (QUESTION MARK)" in told

    with pytest.raises(UserError, match="CJK UNIFIED IDEOGRAPH-4F60"):
        generated("prompt=你1")
    assert generated("prompt=你1", "unknown=skip", "max_new_tokens=1").out[0] == "1"
    assert generated("prompt=你1", "unknown=0", "max_new_tokens=1").out[:2] == "01"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["modl.n_layer=3"], "did you mean model"),
        (["model.n_layr=3"], "did you mean model.n_layer?"),
        (["trainer.max_step=3"], "did you mean trainer.max_steps?"),
        (["dropout=0.1"], "did you mean model.dropout?"),
        (["model=transformr"], "did you mean transformer?"),
        (["experiment=nanogpt"], "did you mean nanogpt_char"),
        (["+typo=1"], "typo"),
        (["--max_steps=5"], "--max_steps=5: there is no such option; keys have no dashes"),
        (["--=1"], "ambiguous option: --=1 could match"),
        (["seed=1", "--max_steps", "5"], "--max_steps: there is no such option"),
        (["optimizer.lr=["], "optimizer.lr=[: Hydra cannot parse this"),
        (["run_dir=/dev/null/nowhere"], "/dev/null/nowhere"),
        (["--config-name", "mine"], "--config-name=mine: there is no such file in conf; leave it"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(main, arguments, words):
    code, _, said = main(*arguments, target="nowhere:nothing")
    assert code == 2
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def refused(script, *arguments):
    """The one-line error message for a command line."""
    conf = ROOT / "conf"
    try:
        check(arguments, conf, script)
        return str(composed(script, *arguments).logger)  # which a run reads
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return explain(error, conf, script)


@pytest.mark.parametrize(
    ("script", "argument", "line"),
    [
        (
            "evaluate",
            "data=tiny_shakespeare",
            "data: evaluate has no such group; data has data.path, data.pattern, data.field, "
            "data.column",
        ),
        ("export", "model=gpt2", "model: export has no such group; choose from checkpoint, "),
        (
            "train",
            "logger=null",
            "logger=null: must name one of the group's files: csv, mlflow, tensorboard, ",
        ),
        (
            "train",
            "experiment=tune/nope",
            "experiment=tune/nope: there is no such file in conf/experiment; choose from cpu_fast",
        ),
        (
            "train",
            "experiment=/home/me/mine.yaml",
            "experiment=/home/me/mine.yaml: there is no such file in conf/experiment; give its",
        ),
        (
            "train",
            "experiment=./mine.yaml",
            "experiment=./mine.yaml: there is no such file in conf/experiment; give its name",
        ),
        (
            "train",
            "experiment=cpu_fats.yaml",
            "experiment=cpu_fats.yaml: there is no such file in conf/experiment; did you mean cpu_",
        ),
        (
            "train",
            "data=texts/my.txt",
            "data=texts/my.txt: there is no such file in conf/data; for a text of your own: data=t",
        ),
        (
            "train",
            "callbacks.embeddings.foo=1",
            "callbacks.embeddings.foo: there is no such key; did you mean "
            "callbacks.embeddings._target_? (+callbacks.embeddings.foo passes it to its class)",
        ),
        ("train", "~logger", "logger: is required; leave ~logger out"),
        (
            "train",
            "+experiment=mine",
            "+experiment=mine: this group is there; write experiment=mine",
        ),
        (
            "train",
            "hydra.run.dir=/x",
            "hydra.run.dir=/x: not a key for command lines; name the directory of a run",
        ),
        (
            "train",
            "++hydra.output_subdir=null",
            "++hydra.output_subdir=null: not a key for command lines; ",
        ),
        (
            "train",
            "hydra.job.chdir=true",
            "hydra.job.chdir=true: not a key for command lines; paths on a command",
        ),
        (
            "train",
            "hydra.sweep.subdir=a",
            "hydra.sweep.subdir=a: not a key for command lines; a job's directory",
        ),
        (
            "train",
            "hydra.output_subdir=false",
            "hydra.output_subdir=false: not a key for command lines; ",
        ),
        ("train", "hydra/sweeper=basic", "hydra/sweeper=basic: not a key for command lines; "),
        ("generate", "hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: not a key for command lines; "),
        ("train", "model.n_layers=3", "model.n_layers: there is no such key; did you mean model.n"),
        ("train", str(ROOT), f"{ROOT}: write KEY=VALUE: data=text data.path={ROOT}"),
        ("generate", str(ROOT), f"{ROOT}: write KEY=VALUE: checkpoint={ROOT}"),
        ("train", "nowhere.txt", "nowhere.txt: Hydra cannot parse this; write KEY=VALUE, "),
    ],
)
def test_a_group_that_cannot_be_is_not_proposed_again(script, argument, line):
    assert refused(script, argument).startswith(line)


@pytest.mark.parametrize("target", ["mine.Talk", "litchar.training.optimizers.adamww"])
def test_a_class_that_is_not_found_is_named_with_its_key(target):
    node = OmegaConf.create({"callbacks": {"a": {"_target_": target}}}).callbacks.a
    with pytest.raises(HydraException) as failure:
        hydra.utils.instantiate(node)
    line = explain(failure.value, ROOT / "conf", "train")
    assert line.startswith(f"callbacks.a._target_={target}: cannot be imported (No module named")
    assert ("a module of your own must be on PYTHONPATH" in line) is target.startswith("mine.")


def test_a_key_of_another_choice_is_not_proposed_again():
    line = refused("train", "model=bigram", "model.n_layer=3")
    assert line == "model.n_layer: the chosen model has no such key"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["optimizer=adamw", "optimizer.weight_deca=1"], "did you mean optimizer.weight_decay?"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patienc=1"], "stopping.patience?"),
        (["data=huggingface", "data.nam=x"], "did you mean data.name?"),
        (["model=gru", "experimen=x"], "did you mean experiment?"),
    ],
)
def test_a_key_that_is_proposed_is_one_of_the_files_that_are_chosen(arguments, line):
    assert line in refused("train", *arguments)
    assert "momentum" not in refused("train", "optimizer=adamw", "optimizer.momentu=1")


@pytest.mark.parametrize(
    ("script", "argument", "line"),
    [
        ("train", "+checkpoint.every_second=5", "did you mean checkpoint.every_seconds?"),
        ("train", "++sweep.retry_faild=true", "did you mean sweep.retry_failed?"),
        ("train", "+checkpoint.every.seconds=5", "checkpoint.every: there is no such key"),
        ("train", "+trainer.logger=false", "trainer.logger: there is no such key"),
        ("train", "+seed.of=1", "seed.of: there is no such key"),
        ("train", "+modl.n_layer=1", "did you mean model?"),
        ("tune", "+tune.trial=5", "did you mean tune.trials?"),
        ("tune", "+tune.spce.model.n_layer=5", "did you mean tune.space?"),
        ("evaluate", "+data.pth=x", "did you mean data.path?"),
        ("evaluate", "+model.n_layer=3", "model: there is no such key or group"),
    ],
)
def test_a_key_that_nothing_reads_is_not_added(script, argument, line):
    with pytest.raises(UserError, match=re.escape(line)):
        check([argument], ROOT / "conf", script)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("seed: 5", "experiment=mine: this file sets keys under experiment, which nothing reads"),
        ("# @package _global_\nby_device: {cpus: {}}", "by_device.cpus: there is no such key; did"),
        ("# @package _global_\nlauncher: {n_jobs: 2}", "launcher.n_jobs: there is no such key"),
        ("# @package _global_\nmodle: {n_layer: 1}", "modle: there is no such key or group; "),
        ("# @package _global_\nrun: 3", "run: there is no such key or group; "),  # not ${run_dir}
        (
            "# @package _global_\ncheckpoint: {every: 1}",
            "checkpoint.every: there is no such key; choose from every_seconds",
        ),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_a_key_of_an_experiment_that_nothing_reads_is_refused(
    main, monkeypatch, tmp_path, content, line, sweep
):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/mine.yaml").write_text(content)
    words = ["--config-dir", str(tmp_path / "mine"), "outputs_dir=out", "experiment=mine", *sweep]
    monkeypatch.chdir(tmp_path)
    code, _, said = main(*words, target="nowhere:nothing")
    assert code == 2
    assert said.startswith(f"error: {line}")
    assert not list((tmp_path / "out").glob("*/*"))


@pytest.mark.parametrize("name", [file.stem for file in (ROOT / "conf").glob("*.yaml")])
def test_every_key_of_a_script_is_read(name):
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = hydra.compose(name, return_hydra_config=True)
    choices = config.hydra.runtime.choices
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    check_composed(config, readable(ROOT / "conf", name), choices)


def test_what_may_be_added_is():
    for argument in (
        "+callbacks.stop.step=3",
        "+logger.wandb.entity=us",
        "+data.name=x",
        "+model.bias=true",
        "+trainer.profiler.dirpath=here",
        "++trainer.max_steps=3",
        "+experiment/tune=t1",
        "+hydra.launcher.init.num_cpus=2",
    ):
        check([argument], ROOT / "conf", "train")
    check(["+tune.space.optimizer.lrr={type:float,low:1,high:2}"], ROOT / "conf", "tune")
    check(["+seed=3"], ROOT / "conf", "tune")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("", [], "the text is empty"),
        ("aaaaaa", [], "one distinct character, 'a'"),
        ("abcdefgh" * 20, ["data.block_size=16"], "the largest that fits is data.block_size=15"),
        (b"good text \xff here", [], "0xff at offset 10"),
        ("abcdefgh" * 99, ["data.val_fraction=0"], "data.val_fraction=0"),
        (
            "abcdefgh" * 99,
            ["model.n_embd=18", "model.n_head=4"],
            "n_embd=18 is not divisible by n_head=4",
        ),
    ],
)
def test_an_unfit_text_or_setting_leaves_nothing_behind(train, tmp_path, content, arguments, words):
    path = write(tmp_path / "text.txt", content)
    with pytest.raises(Exception, match=re.escape(words)) as refusal:
        train(*SMALL, f"data.path={path}", *arguments, only=True)
    assert is_users(refusal.value)
    assert not list(tmp_path.glob("outputs/runs/*"))


def forbidden(config):
    raise PermissionError(13, "Permission denied", "/root/secret.txt")


def test_a_file_without_the_rights_for_it_ends_with_2_and_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export.py"])
    with pytest.raises(SystemExit) as ended:
        hydra_main(str(ROOT / "scripts/export.py"), "export", "test_cli:forbidden")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /root/secret.txt: Permission denied; ")
    assert said.count("\n") == 1


def test_a_signal_while_packages_are_imported_leaves_nothing_behind(main, tmp_path, monkeypatch):
    def imported(target):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("litchar.cli._function", imported)
    code, *_ = main(f"run_dir={tmp_path / 'run'}")
    assert code == 128 + signal.SIGTERM
    assert not (tmp_path / "run").exists()


def test_a_signal_leaves_alone_what_another_process_trains_in_by_now(main, tmp_path, monkeypatch):
    with contextlib.ExitStack() as another:

        def imported(target):
            another.enter_context(FileLock(tmp_path / "run/.lock"))
            raise Interrupted(signal.SIGTERM)

        monkeypatch.setattr("litchar.cli._function", imported)
        main(f"run_dir={tmp_path / 'run'}")
        assert {".hydra", ".lock"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_a_lock_that_cannot_be_had_hides_no_signal(main, tmp_path, monkeypatch):
    def imported(target):
        (tmp_path / "run/.lock").mkdir()
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("litchar.cli._function", imported)
    code, *_ = main(f"run_dir={tmp_path / 'run'}")
    assert code == 128 + signal.SIGTERM


def test_an_unfit_text_ends_with_2_and_one_line(main, tmp_path):
    path = write(tmp_path / "text.txt", b"good text \xff here")
    code, _, said = main(*SMALL, f"data.path={path}")
    assert code == 2
    assert said.startswith("error: ")
    assert "0xff at offset 10" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("outputs/runs/*"))


def loaded(script: str, *arguments: str) -> tuple[str, str]:
    """Return a script's output, and the heavy packages that it has imported when it ends."""
    check = (
        f"import runpy, sys; sys.argv = [{script!r}, *sys.argv[1:]]\n"
        f"try: runpy.run_path({str(ROOT / 'scripts' / script)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = 'torch', 'torch._dynamo', 'lightning', 'tensorboard', 'numpy'\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=True
    )
    printed, _, packages = result.stdout.rstrip().rpartition("\n")
    return printed, packages


@pytest.mark.parametrize("option", [["--help"], ["--cfg", "job"]])
def test_help_and_config_need_nothing_heavy(option):
    printed, packages = loaded("train.py", *option)
    assert packages == "[]"
    assert "n_layer" in printed


def test_the_help_of_a_report_needs_nothing_heavy():
    printed, packages = loaded("report.py", "--help")
    assert packages == "[]"
    assert "--device" in printed


def test_runs_are_compared_without_torch(train, tmp_path):
    printed, packages = loaded("compare.py", str(train()), "--out", str(tmp_path / "out"))
    assert packages == "['numpy']"
    assert "report.html" in printed


def test_generating_imports_no_compiler(train):
    printed, packages = loaded("generate.py", f"checkpoint={train()}", "device=cpu", "prompt=1 and")
    assert packages == "['torch', 'numpy']"
    assert printed.startswith("1 and")


def test_imports_are_not_looked_through_for_garbage():
    frozen = gc.get_freeze_count()
    with lasting_imports():
        assert not gc.isenabled()
        module = ["what an import makes"]
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    assert not any(module is thing for thing in gc.get_objects())


SCRIPTS = sorted(path.stem for path in (ROOT / "conf").glob("*.yaml"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_a_script_does_and_what_each_key_is(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        hydra_main(str(ROOT / "scripts" / f"{name}.py"), name, "nowhere:nothing")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"python scripts/{name}.py" in shown
    assert "Powered by Hydra" not in shown
    if name not in ("train", "tune"):  # whose keys stand in many files
        for line in (ROOT / "conf" / f"{name}.yaml").read_text().split("\n\n")[1].splitlines():
            assert line in shown  # each key with its comment


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "train"])
def test_only_training_is_swept(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "-m"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 2
    assert "leave -m out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_multirun_trains_each_job_in_its_own_directory(script, text_file, tmp_path):
    result = script("train.py", "-m", *SMALL, f"data.path={text_file}", "seed=1,2")
    assert result.returncode == 0, result.stderr
    jobs = sorted(path.parent for path in tmp_path.glob("outputs/sweeps/*/*/summary.json"))
    assert [summary(job)["seed"] for job in jobs] == [1, 2]
    assert all((job / "metrics.csv").exists() and (job / "tensorboard").is_dir() for job in jobs)


@pytest.fixture
def endless(text_file, tmp_path):
    """Start a run that would never end, and wait until it is training."""
    processes = []

    def endless(*arguments, terminal=None, **streams):
        run_dir = tmp_path / "run"

        def is_training():
            with contextlib.suppress(BlockingIOError):  # what nobody read would hold it up
                if terminal is not None:
                    os.read(terminal, 1 << 16)
            return (run_dir / "metrics.csv").exists()

        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(
            [
                sys.executable,
                ROOT / "scripts/train.py",
                *SMALL,
                f"data.path={text_file}",
                f"run_dir={run_dir}",
                "trainer.max_steps=1000000",
                "trainer.val_check_interval=1000000",
                "trainer.log_every_n_steps=1",
                *arguments,
            ],
            text=True,
            start_new_session=True,
            **{"preexec_fn": hears_hangups, **piped, **streams},
        )
        processes.append(process)
        wait_until(is_training, process)
        return process, run_dir

    yield endless
    for process in processes:
        process.kill()


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_ends_with_its_exit_code(endless, signum):
    process, run_dir = endless("data.num_workers=1")
    os.killpg(process.pid, signum)  # a terminal and a batch system tell the workers too
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, output
    figures = summary(run_dir)
    assert figures["status"] == "interrupted"
    assert figures["steps"] > 0
    assert Checkpoint.load(run_dir / "checkpoints/last.ckpt").step == figures["steps"]
    assert "Traceback" not in output


def test_a_run_whose_terminal_is_closed_is_saved(endless):
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)

    def in_a_terminal():
        hears_hangups()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process, run_dir = endless(
        terminal=ours, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=in_a_terminal
    )
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert summary(run_dir)["status"] == "interrupted"
    assert Checkpoint.load(run_dir / "checkpoints/last.ckpt").step == summary(run_dir)["steps"] > 0


def test_nohup_is_left_to_work():
    before = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signals.install()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signals.install()
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@pytest.mark.slow
def test_a_run_outlives_whoever_reads_what_it_prints(endless):
    process, run_dir = endless("trainer.max_steps=100", "trainer.log_every_n_steps=20")
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert summary(run_dir)["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["launcher=sequential"], ["launcher=parallel", "hydra.launcher.n_jobs=1"]]
)
def test_a_sweep_outlives_whoever_reads_what_it_prints(text_file, tmp_path, launcher):
    sweep = ("seed=1,2", "sweep.name=s", "report=false", *launcher)
    words = ["-m", *SMALL, f"data.path={text_file}", *sweep]
    command = [sys.executable, ROOT / "scripts/train.py", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=300) == 0, process.stderr.read()
    jobs = (tmp_path / "outputs/sweeps/s").glob("*/summary.json")
    assert [summary(job.parent)["status"] for job in jobs] == ["completed"] * 2


TALKER = f"""
import os, sys
from litchar.cli import hydra_main

def talk(*_):
    for i in range(100_000):
        print(i)

def whisper(*_):
    print("one line, written out when the interpreter ends")

def show(*_):
    from rich.console import Console
    for i in range(100):
        Console().print(i)

def lose_a_pipe(*_):
    reading, writing = os.pipe()
    os.close(reading)
    os.write(writing, b"x")

name = sys.argv.pop()
hydra_main({str(ROOT / "scripts/export.py")!r}, "export", f"__main__:{{name}}")
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("name", "listens", "code"),
    [
        ("talk", False, 0),
        ("whisper", False, 0),
        ("show", False, 0),
        ("lose_a_pipe", True, 1),
    ],
)
def test_a_reader_that_has_enough_ends_a_script_quietly(name, listens, code, unbuffered):
    """Such as `| head`; any other broken pipe is a failure."""
    process = subprocess.Popen(
        [sys.executable, "-c", TALKER, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    if not listens:
        process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=300) == code, said
    assert ("BrokenPipeError" in said) == (code == 1)
    assert code == 1 or not said


@pytest.mark.slow
def test_a_second_signal_ends_at_once(endless):
    # Nearly all the time goes to validation, whose end the first signal would wait for.
    process, run_dir = endless("trainer.val_check_interval=2", "data.val_batch_size=1")
    for signum in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        process.send_signal(signum)  # so that the second is there when the first is heard
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert summary(run_dir)["status"] == "interrupted"
    for path in (run_dir / "checkpoints").glob("*"):
        assert path.name in ("best.ckpt", "last.ckpt", "previous.ckpt")
        Checkpoint.load(path)


def test_a_run_is_gone_on_with_from_the_command_line(main, text_file, tmp_path):
    setting = (*SMALL, f"data.path={text_file}", f"run_dir={tmp_path / 'run'}")
    assert main(*setting)[0] == 0
    began = (tmp_path / "run/.hydra/overrides.yaml").read_text()
    code, printed, said = main(*setting, "resume=auto", "trainer.max_steps=15")
    assert (code, said) == (0, "")
    assert "Resuming from last.ckpt, step 10" in printed
    assert summary(tmp_path / "run")["steps"] == 15
    assert (tmp_path / "run/.hydra/overrides.yaml").read_text() == began
    assert [path.name for path in (tmp_path / "run/.hydra").glob("resumed-*")] == ["resumed-1"]


def test_a_relative_path_is_found_again_from_another_directory(
    train, loss_of, text_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run_dir = train(f"data.path={text_file.name}")
    monkeypatch.chdir("/")
    assert loss_of() == pytest.approx(summary(run_dir)["best_val_loss"], abs=1e-5)


def test_an_unwritable_cache_is_refused_by_its_variable(train, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LITCHAR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="LITCHAR_CACHE"):
        train()


def test_a_diverged_run_ends_with_1_and_one_line(main, text_file, tmp_path):
    run_dir = tmp_path / "run"
    diverging = ("optimizer.lr=1e38", "scheduler=constant", "trainer.val_check_interval=1")
    code, _, said = main(*SMALL, f"data.path={text_file}", f"run_dir={run_dir}", *diverging)
    assert code == 1
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert summary(run_dir)["status"] == "diverged"

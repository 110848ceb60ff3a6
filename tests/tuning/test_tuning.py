"""Studies, run the way a user runs them and in this process."""

import errno
import functools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import optuna
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from optuna.trial import TrialState

from conftest import ROOT, SignalAt, composed, summary
from litchar import signals
from litchar.checkpoints import Checkpoint
from litchar.errors import Interrupted, UserError, is_users
from litchar.overrides import quote
from litchar.terminal import Terminal
from litchar.training import run as training
from litchar.tuning import report
from litchar.tuning import run as tuning
from litchar.tuning.report import best_experiment, print_report
from litchar.tuning.space import override, read_space
from litchar.tuning.storage import JournalLock, open_storage
from litchar.tuning.study import Search
from litchar.tuning.worker import Worker

SMALL = (
    "data.block_size=16",
    "data.batch_size=8",
    "data.train_sample=0",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "trainer.accelerator=cpu",
    "trainer.max_steps=12",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=2",
    "tune.trials=4",
    "report=false",
    "callbacks=none",
)


@pytest.fixture
def tune(text_file, tmp_path, monkeypatch):
    """Work on a study in this process, without a report; return its trials."""
    monkeypatch.setattr(tuning, "write_report", lambda *_: None)  # takes a second or two

    def tune(*overrides: str, name: str = "t1", small: tuple[str, ...] = SMALL):
        OmegaConf.register_new_resolver("unique", lambda: "test", replace=True)
        signals.reset()
        line = [f"data.path={text_file}", *small, f"tune.name={name}", *overrides]
        line = [quote(argument) for argument in line]
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = hydra.compose("tune", line, return_hydra_config=True)
            OmegaConf.set_readonly(config.hydra, False)
            config.hydra.overrides.task = line
            HydraConfig.instance().set_config(config)
            OmegaConf.set_struct(config, False)
            del config["hydra"]
            tuning.run(config)
        return study_of(tmp_path / "outputs", name).trials

    return tune


def study_of(outputs: Path, name: str) -> optuna.Study:
    directory = outputs / "tune" / name
    return optuna.load_study(study_name=name, storage=open_storage(None, directory))


def written(line: list[str], **trial) -> str:
    """Return the best-settings file of a study with this command line and one trial."""
    study = optuna.create_study(study_name="t1")
    study.set_user_attr("command", "python scripts/tune.py")
    study.add_trial(optuna.create_trial(value=1.5, **trial))
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return best_experiment(study, Search({}, line, {}))


def outcomes(trials) -> list[str]:
    return [trial.user_attrs["outcome"] for trial in trials]


# The search space


def test_a_space_is_in_optunas_terms_nested_or_with_dotted_keys():
    lr = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
    layers = {"type": "int", "low": 2, "high": 8, "step": 2}
    norm = {"type": "categorical", "choices": ["rms", "layer", None]}
    space = read_space({"optimizer.lr": lr, "model": {"n_layer": layers, "norm": norm}})
    assert space == {
        "optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "model.n_layer": optuna.distributions.IntDistribution(2, 8, step=2),
        "model.norm": optuna.distributions.CategoricalDistribution(["rms", "layer", None]),
    }


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (3, "=3: must be a distribution"),
        ({"type": "flaot", "low": 1, "high": 2}, "type=flaot; choose from float, int, categorical"),
        ({"low": 1, "high": 2}, "type=None"),
        ({"type": "float", "low": 1}, "a float needs high"),
        ({"type": "float", "low": "x", "high": 2}, "low=x must be a float"),
        ({"type": "int", "low": 1, "high": 2.5}, "high=2.5 must be a int"),
        ({"type": "int", "low": 1, "high": 3, "lgo": True}, "a int has no lgo"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "low"),
        ({"type": "float", "low": 2, "high": 1}, "low"),
        ({"type": "float", "low": math.nan, "high": 1.0}, "low=nan must be finite"),
        ({"type": "float", "low": 1.0, "high": math.inf}, "high=inf must be finite"),
        ({"type": "categorical", "choices": []}, "choices"),
        ({"type": "categorical", "choices": [[1]]}, r"the choice \[1\] must be"),
    ],
)
def test_a_malformed_space_is_refused_by_its_key(leaf, reason):
    with pytest.raises(UserError, match=r"tune\.space\.model\.x.*" + reason):
        read_space({"model": {"x": leaf}})


TEXTS = ["it's", 'a "b"', "a\\", "a\\b", "x=y,z", "muon", "1e3", "null", "[1]"]


@pytest.mark.parametrize("value", TEXTS)
def test_a_text_of_the_space_reaches_the_configuration_unchanged(compose, value):
    assert compose(override("name", value)).name == value


def test_numbers_and_null_of_the_space_stay_what_they_are(compose):
    for value in (1e-05, 3, None, True):
        chosen = compose(override("optimizer.lr", value)).optimizer.lr
        assert chosen == value
        assert type(chosen) is type(value)


# A whole study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study run from the command line, with outcomes of several kinds."""
    directory = tmp_path_factory.mktemp("finished")
    text = directory / "my text.txt"
    text.write_text("".join(f"{a} and {b}\n" for a in range(40) for b in range(40))[:8000])
    places = {name: str(directory / name.lower()) for name in ("LITCHAR_OUTPUTS", "LITCHAR_CACHE")}

    def script(name: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / name), *arguments],
            capture_output=True,
            text=True,
            env=os.environ | places,
            cwd=directory,
            check=False,
        )

    result = script(
        "tune.py",
        "data=text",
        "data.path=my text.txt",
        *(setting for setting in SMALL if "n_head" not in setting),
        "optimizer=muon",
        "tune.trials=7",
        "tune/pruner=hyperband",
        "tune.space.scheduler.warmup_steps.high=300",  # of these trials two are completed
        "~tune.space.model",
        "+tune.space.model.n_head={type:categorical,choices:[1,2,3]}",
    )
    return script, result, directory, directory / "litchar_outputs"


def test_a_study_ends_with_every_trial_accounted_for(finished):
    _, result, _, outputs = finished
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    trials = study_of(outputs, "default").trials
    assert len(trials) == 7
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        run_dir = Path(trial.user_attrs["run"])
        if trial.params["model.n_head"] == 3:
            assert trial.user_attrs["outcome"] == "infeasible"
            assert "n_embd=16 is not divisible by n_head=3" in trial.user_attrs["reason"]
            assert not run_dir.exists()
            continue
        figures = summary(run_dir)
        assert figures["status"] == "completed"
        mark = json.loads((run_dir / "trial.json").read_text())
        assert mark["values"] == trial.params
        assert mark["outcome"] == trial.user_attrs["outcome"]
        losses = list(trial.intermediate_values.values())
        if trial.state == TrialState.COMPLETE:
            assert figures["steps"] == 12
            assert len(losses) == 6
            assert trial.value == figures["best_val_loss"] == min(losses)
        else:
            assert mark["outcome"] == "pruned"
            assert figures["steps"] == 2 * len(losses) < 12
    assert set(outcomes(trials)) == {"completed", "pruned", "infeasible"}


def test_the_best_settings_are_an_experiment_that_gives_the_same_loss(finished, tmp_path):
    script, result, directory, outputs = finished
    assert "python scripts/train.py experiment=tune/default" in result.stdout
    lines = (outputs / "conf/experiment/tune/default.yaml").read_text().splitlines()
    assert lines[:2] == ["# @package _global_", "# python scripts/train.py experiment=tune/default"]
    assert "python scripts/tune.py data=text 'data.path=\"my text.txt\"'" in lines[2]
    shown = script("train.py", "experiment=tune/default", "name=again", "--cfg", "job")
    config = OmegaConf.create(shown.stdout)
    assert config.data.path == str(directory / "my text.txt")
    assert config.optimizer["_target_"].endswith("muon")
    assert training.run(config, tmp_path) == study_of(outputs, "default").best_value


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (["data.path=one.txt"], {"path": "{cwd}/one.txt"}),
        (["data.path=[one.txt,two]"], {"path": ["{cwd}/one.txt", "{cwd}/two"]}),
        (
            ["data.mixture=[{path:one.txt,weight:2},{path:[two,three],name:a}]"],
            {
                "mixture": [
                    {"path": "{cwd}/one.txt", "weight": 2},
                    {"path": ["{cwd}/two", "{cwd}/three"], "name": "a"},
                ]
            },
        ),
        (["data=huggingface", "data.name=set"], {"name": "{cwd}/set"}),
        (["data=huggingface", "data.name=at/hub"], {"name": "at/hub"}),
    ],
)
def test_the_best_settings_name_a_text_that_is_found_from_anywhere(
    tmp_path, monkeypatch, line, text
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    expected = json.loads(json.dumps(text).replace("{cwd}", str(tmp_path)))
    assert OmegaConf.to_container(OmegaConf.create(written(line)).data) == expected


def test_the_best_settings_name_the_parent_so_that_it_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert OmegaConf.create(written(["init_from=runs/one"])).init_from == f"{tmp_path}/runs/one"


@pytest.mark.parametrize(
    "line",
    [
        ["experiment=cpu_fast"],
        ["data=names", "experiment=[cpu_fast,teaching_bigram]", "debug=fast", "logger=csv"],
        ["optimizer=adamw", "experiment=cpu_fast", "trainer.max_steps=7"],
    ],
)
def test_the_best_settings_take_experiments_along(tmp_path, line):
    conf = tmp_path / "experiment"
    conf.mkdir()
    (conf / "best.yaml").write_text(written(line))
    alike = (f"hydra.searchpath=[file://{tmp_path}]", "name=test", "run_dir=x")
    assert composed("train", *alike, "experiment=best") == composed("train", *alike, *line)


def test_a_refused_sampler_or_pruner_leaves_no_study_behind(tune):
    for wrong in (
        "tune.pruner.min_resource=0",
        "tune.sampler._target_=optuna.TPE",
        "+tune.sampler.typo=1",
    ):
        with pytest.raises(Exception) as refusal:  # noqa: PT011
            tune("tune.trials=1", wrong)
        assert is_users(refusal.value)
    assert len(tune("tune.trials=1")) == 1


def test_brackets_in_values_and_paths_are_shown(tune, tmp_path, capsys):
    names = "+tune.space.name={type:categorical,choices:['[/b]']}"
    tune("tune.trials=1", "~tune.space", names)
    assert "trial 0: name=[/b]" in capsys.readouterr().out
    study = study_of(tmp_path / "outputs", "t1")
    print_report(study, 1, Path("/of [old]/tune/t1"), Terminal())
    printed = capsys.readouterr().out
    assert "name=[/b]" in printed
    assert "Report: /of [old]/tune/t1/report.html" in printed
    train = "LITCHAR_OUTPUTS='/of [old]' python scripts/train.py"
    seeds = f"{train} -m experiment=tune/t1 seed=1,2,3"
    assert printed.endswith(f"Next:\n  {train} experiment=tune/t1\n  {seeds}\n")


def test_the_report_needs_nothing_beside_it(finished):
    study = finished[-1] / "tune/default"
    page = (study / "report.html").read_text()
    assert "Hyperparameter Importances" in page
    assert '"xaxis":{"title":{"text":"validation"}' in page  # not a step, as Optuna has it
    assert "n_embd=16 is not divisible by n_head=3" in page
    assert "<script src" not in page
    assert (study / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(study.rglob(".draft*")) + list((study / "workers").iterdir())


@pytest.mark.linux
def test_a_text_whose_name_is_no_utf8_is_searched(tune, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "write_report", report.write_report)
    named = text_file.rename(text_file.with_name(os.fsdecode(b"caf\xe9.txt")))
    line = quote(f"data.path={named}")
    monkeypatch.setattr(sys, "argv", ["tune.py", line])
    (trial,) = tune(line, "tune.trials=1")
    assert trial.user_attrs["outcome"] == "completed"
    study = tmp_path / "outputs/tune/t1"
    for page in (study / "trials/0000/train.log", study / "report.html"):
        assert r"caf\udce9.txt" in page.read_text(encoding="utf-8")


def test_another_search_under_the_same_name_is_refused(tune, tmp_path):
    tune("tune.trials=1")
    journal = tmp_path / "outputs/tune/t1/journal.log"
    before = journal.read_bytes()
    with pytest.raises(UserError) as refusal:
        tune("trainer.max_steps=14", "tune.space.optimizer.lr.low=1e-5", "tune/pruner=none")
    for words in (
        "tune.space.optimizer.lr.low: 0.0003 then, 1e-05 now",
        "trainer.max_steps: 12 then, 14 now",
        "NopPruner now",
    ):
        assert words in str(refusal.value)
    with pytest.raises(UserError, match=r"callbacks\.layers\.length: not set then, 24 now"):
        tune(small=SMALL[:-1])
    assert journal.read_bytes() == before
    assert len(tune("tune.trials=2", "logger=csv")) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+tune.space.optimizer.lrr={type:float,low:1,high:2}"], "~tune.space.optimizer.lrr"),
        (
            ["+tune.space.data.val_batch_size={type:categorical,choices:[2,4]}"],
            "tune.space.data.val_batch_size: trainer.limit_val_batches=2",
        ),
        (
            [
                "trainer.overfit_batches=1",
                "+tune.space.data.val_batch_size={type:categorical,choices:[2,4]}",
            ],
            "tune.space.data.val_batch_size: trainer.overfit_batches=1",
        ),
        (["trainer.overfit_batches=x"], "trainer.overfit_batches=x: must be a whole number"),
        (
            [
                "trainer.fast_dev_run=3",
                "+tune.space.data.val_batch_size={type:categorical,choices:[2,4]}",
            ],
            "tune.space.data.val_batch_size: trainer.fast_dev_run=3",
        ),
        (
            ["+tune.space.data.val_fraction={type:float,low:0.1,high:0.5}"],
            "tune.space.data.val_fraction: losses on different texts cannot be compared",
        ),
        (
            ["+tune.space.seed={type:categorical,choices:[1,2]}"],
            "tune.space.seed: is chance, of which no choice is better",
        ),
        (
            ["+tune.space.data={type:categorical,choices:[ml,text]}"],
            "tune.space.data: losses on different texts cannot be compared",
        ),
        (["optimizer.lr=1"], "~tune.space.optimizer.lr"),
        (["run_dir=x"], "each trial has its own run directory"),
        (["+tune.space.debug={type:categorical,choices:[null]}"], "choices are names of files"),
        (
            ["+tune.space.resume={type:categorical,choices:[a]}"],
            "each trial has its own run directory",
        ),
        (["tune.sampler={_target_:optuna.samplers.BruteForceSampler}"], "use a sweep for that"),
        (["tune.sampler._target_=optuna.samplers.GridSampler"], "use a sweep for that"),
        (["tune.sampler._target_=types.SimpleNamespace"], "must be one of optuna.samplers"),
        (["tune.pruner={_target_:types.SimpleNamespace}"], "must be one of optuna.pruners"),
        (["+tune.sampler.multivariat=true"], "multivariat: optuna.samplers.TPESampler takes no"),
        (["tune.pruner._target_=optuna.pruners.PercentilePruner"], "Pruner takes no such argument"),
        (["~callbacks"], "cannot delete keys"),
        (["tune.name=a/b"], "tune.name=a/b"),
        (["tune.name=null"], "tune.name=null: give the study a name"),
        (["tune.space=null"], "tune.space is empty"),
        (["tune.name='ü'"], "tune.name=ü"),  # no value of experiment=tune/... to Hydra
        (["tune.trials=0"], "tune.trials=0"),
        (["tune.storage=nosql://x"], "tune.storage=nosql://x: cannot be opened"),
        (["tune.storage=nosql://me:secret@x"], "tune.storage=nosql://***@x: cannot be opened"),
        (["model.n_head=3"], "all 5 trials were refused; the last one: n_embd=16"),
        (["data.path=/nowhere.txt"], "/nowhere.txt"),
        (["trainer=ddp", "trainer.devices=2"], "several devices cannot be pruned"),
    ],
)
def test_what_no_trial_can_mend_is_refused(tune, tmp_path, arguments, words):
    with pytest.raises(UserError) as refusal:
        tune("tune.trials=9", *arguments)
    assert words in str(refusal.value)
    assert not [*tmp_path.glob("outputs/runs/*"), *tmp_path.glob("outputs/tune/*/trials/*")]


@pytest.mark.parametrize("limit", ["limit_val_batches", "overfit_batches", "fast_dev_run"])
def test_how_much_is_validated_is_not_searched(tune, limit):
    small = tuple(setting for setting in SMALL if limit not in setting)
    with pytest.raises(UserError, match="losses on different parts of the validation split"):
        tune(f"+tune.space.trainer.{limit}={{type:categorical,choices:[1,2]}}", small=small)


def test_all_batches_are_no_limit_of_validation(tune):
    space = "+tune.space.data.val_batch_size={type:categorical,choices:[2,4]}"
    assert len(tune("trainer.limit_val_batches=1.0", space, "tune.trials=1")) == 1


def test_a_limit_of_validation_may_be_read_from_the_environment(tune):
    space = "+tune.space.data.val_batch_size={type:categorical,choices:[2,4]}"
    limit = "trainer.limit_val_batches=${oc.env:UNSET_LIMIT,null}"
    assert len(tune(limit, space, "tune.trials=1")) == 1


def test_a_limit_of_validation_counts_batches_of_the_data_not_what_else_has_their_name(tune):
    space = "+tune.space.callbacks.mine.block_size={type:categorical,choices:[2,4]}"
    mine = "+callbacks.mine={_target_:conftest.NotThere,block_size:4}"
    assert outcomes(tune(mine, space, "tune.trials=1")) == ["infeasible"]  # as is this callback


def test_the_processes_of_one_run_are_no_workers_of_a_study(tune, tmp_path, monkeypatch):
    names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name, value in {**dict.fromkeys(names, "0"), "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start each worker of a study by itself"):
        tune("tune.trials=1")
    assert not (tmp_path / "outputs").exists()


def test_best_settings_are_not_begun_from_where_they_are_written(tune, tmp_path):
    best = tmp_path / "outputs/conf/experiment/tune/t1.yaml"
    best.parent.mkdir(parents=True)
    best.write_text("# @package _global_\noptimizer: {weight_decay: 0.01}\n")
    place = f"hydra.searchpath=[file://{tmp_path}/outputs/conf]"
    with pytest.raises(UserError, match=r"^experiment=tune/t1: this study writes that file"):
        tune("experiment=tune/t1", place)
    tune("experiment=tune/t1", place, "tune.trials=1", name="t2")


def test_trials_of_another_study_are_not_taken_for_a_new_ones(tune, tmp_path):
    tune("tune.trials=1")
    (tmp_path / "outputs/tune/t1/journal.log").unlink()
    with pytest.raises(UserError, match=r"t1: holds trials of a study that tune\.storage does"):
        tune("tune.trials=1", "seed=5")


def test_a_text_that_changes_ends_its_study(tune, text_file, monkeypatch):
    run_trial = tuning.run_trial

    def and_change(*arguments):
        run_trial(*arguments)
        text_file.write_text(text_file.read_text() + "more\n")

    monkeypatch.setattr(tuning, "run_trial", and_change)
    with pytest.raises(UserError, match="data: another text"):
        tune("tune.trials=2")


def test_an_experiment_that_was_searched_is_part_of_the_best_settings():
    choices = optuna.distributions.CategoricalDistribution(["cpu_fast", "teaching_bigram"])
    params, space = {"experiment": "teaching_bigram"}, {"experiment": choices}
    text = written(["experiment=cpu_fast"], params=params, distributions=space)
    assert OmegaConf.create(text).defaults == [
        "/experiment/cpu_fast",
        "/experiment/teaching_bigram",
    ]


# Going on


def test_a_stopped_study_goes_on_exactly(tune, tmp_path, monkeypatch):
    """The same values and losses, whether it was stopped within a trial or between trials."""
    tune = functools.partial(tune, "tune.trials=3")
    whole = tune(name="whole")
    stop = iter([None, SignalAt(7)])  # in the second trial

    original = tuning.Watch.on_train_start

    def and_stop(self, trainer, module):
        original(self, trainer, module)
        if (callback := next(stop, None)) is not None:
            trainer.callbacks.append(callback)

    monkeypatch.setattr(tuning.Watch, "on_train_start", and_stop)
    with pytest.raises(Interrupted) as stopped:
        tune(name="stopped")
    assert stopped.value.code == 128 + signal.SIGTERM
    run_dir = tmp_path / "outputs/tune/stopped/trials/0001"
    assert summary(run_dir)["status"] == "interrupted"
    assert Checkpoint.load(run_dir / "checkpoints/last.ckpt").step == 7
    trials = tune(name="stopped")
    assert outcomes(trials)[:3] == ["completed", "interrupted", trials[2].user_attrs["outcome"]]
    ended = [trial for trial in trials if trial.state != TrialState.FAIL]
    assert [trial.params for trial in ended] == [trial.params for trial in whole]
    assert [trial.values for trial in ended] == [trial.values for trial in whole]
    assert [t.intermediate_values for t in ended] == [t.intermediate_values for t in whole]
    assert "Resuming from last.ckpt, step 7" in (run_dir / "train.log").read_text()


def test_a_run_that_ended_before_its_worker_could_say_so_is_not_trained_again(
    tune, tmp_path, monkeypatch
):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            tune("tune.trials=1")
    run_dir = tmp_path / "outputs/tune/t1/trials/0000"
    before = summary(run_dir)
    trials = tune("tune.trials=1")
    assert outcomes(trials) == ["lost", "completed"]
    assert trials[1].value == before["best_val_loss"]
    assert summary(run_dir) == before


@pytest.mark.parametrize("pruned_at", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_pruned_trial_that_is_stopped_before_it_has_ended_stays_pruned(
    tune, tmp_path, monkeypatch, pruned_at
):
    """Stopped by a signal after its last validation, or killed (-9) before that is saved."""

    class Killed(BaseException):
        pass

    original = tuning.Watch.on_validation_end

    def and_stop(self, *arguments):
        original(self, *arguments)
        if self.pruned and pruned_at == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # waits until the step is saved
        elif self.pruned:
            raise Killed

    line = (
        "tune.trials=1",
        "tune/pruner=none",
        "tune.pruner._target_=optuna.pruners.ThresholdPruner",
        "+tune.pruner.upper=0.0",
        f"+tune.pruner.n_warmup_steps={pruned_at // 2}",
    )
    with monkeypatch.context() as patch:
        patch.setattr(tuning.Watch, "on_validation_end", and_stop)
        with pytest.raises((Interrupted, Killed)):
            tune(*line)
    # Successive halving does not decide twice at the same rung.
    monkeypatch.setattr(optuna.pruners.ThresholdPruner, "prune", lambda *_: False)
    (stopped, ended) = tune(*line)
    assert stopped.user_attrs["outcome"] == ("interrupted" if pruned_at == 2 else "lost")
    assert ended.user_attrs["outcome"] == "pruned"
    assert sorted(ended.intermediate_values) == list(range(1, pruned_at // 2 + 1))
    assert summary(tmp_path / "outputs/tune/t1/trials/0000")["steps"] == pruned_at


@pytest.mark.parametrize("ended", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_trial_whose_mark_a_power_cut_has_emptied_goes_on(tune, tmp_path, monkeypatch, ended):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if ended:
            patch.setattr(Worker, "finish", killed)
        else:
            patch.setattr(tuning.Watch, "on_validation_end", stop)
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            tune("tune.trials=1")
    (tmp_path / "outputs/tune/t1/trials/0000/trial.json").write_text("")
    assert outcomes(tune("tune.trials=1"))[-1] == "completed"


def test_a_trial_that_was_never_validated_is_refused_though_its_worker_was_killed(
    tune, monkeypatch
):
    def killed(*_, **__):
        raise KeyboardInterrupt

    line = ("tune.trials=1", "trainer.limit_val_batches=0")
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(*line)
    assert outcomes(tune(*line))[-1] == "infeasible"


@pytest.mark.parametrize("loss", ['"damaged"', "[1]", "9" * 400])
def test_a_summary_whose_loss_is_none_is_of_no_finished_trial(tmp_path, loss):
    (tmp_path / "summary.json").write_text(f'{{"status": "completed", "best_val_loss": {loss}}}')
    (tmp_path / "trial.json").write_text('{"outcome": null}')
    assert tuning._result(tmp_path) is None


def test_a_full_disk_ends_a_study_and_is_not_the_settings_fault(tune, monkeypatch):
    def full(*_):
        raise UserError("the end was not saved") from OSError(errno.ENOSPC, "No space left")

    with monkeypatch.context() as patch:
        patch.setattr(training, "run", full)
        with pytest.raises(UserError, match="the end was not saved"):
            tune("tune.trials=1")
    assert outcomes(tune("tune.trials=1")) == ["interrupted", "completed"]


def test_a_diverged_trial_stops_no_study(tune):
    trials = tune(
        "tune.trials=2",
        "~tune.space",
        "+tune.space.optimizer.lr={type:categorical,choices:[1e38]}",
        "scheduler=constant",
    )
    assert outcomes(trials) == ["diverged", "diverged"]
    assert "the loss is nan at step 2" in trials[0].user_attrs["reason"]


def test_a_journal_whose_last_line_was_cut_off_is_mended(tmp_path):
    journal = tmp_path / "journal.log"
    for content, whole in ((b"", b""), (b'{"a":1}\n{"b', b'{"a":1}\n'), (b"{", b"")):
        journal.write_bytes(content)
        lock = JournalLock(journal)
        lock.acquire()
        lock.release()
        assert journal.read_bytes() == whole


def test_a_journal_damaged_within_is_refused(tmp_path):
    (tmp_path / "journal.log").write_bytes(b'{"a":1\0\n{"b":2}\n')
    with pytest.raises(UserError, match=r"journal\.log: is damaged \(.*another tune\.name"):
        open_storage(None, tmp_path)


@pytest.mark.parametrize("url", [None, "sqlite:///{}/study.db"])
def test_a_place_that_can_be_no_directory_is_named(tmp_path, url):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/study: cannot be written \(Not a directory\); try"):
        open_storage(url and url.format(tmp_path), tmp_path / "file/study")


def test_a_silent_worker_elsewhere_is_dead_and_one_that_beats_is_not(tmp_path):
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage)
    elsewhere = {"worker": "far-1", "host": "far", "beat": 0}
    for _ in range(2):
        study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=elsewhere))
    with Worker(study, storage, tmp_path, 2, 0.05, lambda _: optuna.samplers.RandomSampler()) as w:
        deadline = time.monotonic() + 30
        beat = 0
        while study.trials[1].state == TrialState.RUNNING and time.monotonic() < deadline:
            storage.set_trial_user_attr(study.trials[0]._trial_id, "beat", beat)
            beat += 1
            w._bury_the_dead()
    assert study.trials[1].state == TrialState.FAIL
    assert study.trials[1].user_attrs["outcome"] == "lost"
    assert study.trials[0].state == TrialState.RUNNING


def test_who_stands_still_while_it_looks_takes_nobody_for_silent(tmp_path, monkeypatch):
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage)
    elsewhere = {"worker": "far-1", "host": "far", "beat": 0}
    study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=elsewhere))
    worker = Worker(study, storage, tmp_path, 1, 0.5, lambda _: optuna.samplers.RandomSampler())
    now, stopped, read = 0.0, 0.0, worker._trials

    def read_and_stopped():  # by Ctrl-Z, say, while the other one goes on
        nonlocal now
        trials = read()
        now += stopped
        return trials

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(worker, "_trials", read_and_stopped)
    worker._bury_the_dead()
    now, stopped = 0.1, 60.0
    worker._bury_the_dead()
    assert study.trials[0].state == TrialState.RUNNING


# Several workers


@pytest.fixture
def start(tune):
    """Start a worker in a forked process, which needs no imports."""
    processes = multiprocessing.get_context("fork")
    started = []

    def start(*overrides: str) -> multiprocessing.Process:
        process = processes.Process(target=tune, args=overrides)
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.kill()


STORM = (
    "tune.trials=7",
    "trainer.max_steps=200",
    "trainer.val_check_interval=20",
    "checkpoint.every_seconds=0.05",
)


def kill_within_the_second_trial(worker, trials: Path) -> None:
    last = trials / "0001/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    worker.kill()


def assert_seven_ended(directory: Path, url: str | None = None) -> None:
    trials = optuna.load_study(study_name="t1", storage=open_storage(url, directory)).trials
    ended = [trial for trial in trials if trial.state != TrialState.FAIL]
    assert {trial.state for trial in ended} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({trial.user_attrs.get("root", trial.number) for trial in ended}) == len(ended) == 7


@pytest.mark.slow
def test_of_three_workers_one_is_killed_and_no_trial_is_lost(start, tmp_path):
    directory = tmp_path / "outputs/tune/t1"
    victim = start(*STORM)
    kill_within_the_second_trial(victim, directory / "trials")
    others = [start(*STORM) for _ in range(2)]
    for other in others:
        other.join(120)
        assert other.exitcode == 0
    assert victim.exitcode == -signal.SIGKILL
    assert_seven_ended(directory)
    assert "lost" in outcomes(study_of(tmp_path / "outputs", "t1").trials)
    assert "Resuming from" in (directory / "trials/0001/train.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal", "database"])
def test_the_same_line_in_three_terminals_shares_one_study(tmp_path, text_file, storage):
    url = f"sqlite:///{tmp_path / 'studies.db'}" if storage == "database" else None
    line = [sys.executable, str(ROOT / "scripts/tune.py"), f"data.path={text_file}", *SMALL, *STORM]
    line += ["tune.name=t1", f"tune.storage={url or 'null'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    workers = [subprocess.Popen(line, **pipes) for _ in range(3)]
    directory = tmp_path / "outputs/tune/t1"
    kill_within_the_second_trial(workers[0], directory / "trials")
    for worker in workers[1:]:
        output = worker.communicate(timeout=240)[0]
        assert worker.returncode == 0, output
    workers[0].communicate()
    assert_seven_ended(directory, url)
    assert (directory / "report.html").exists()

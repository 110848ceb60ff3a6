"""`compile=true`: the same training, and a run that goes on where compilation fails."""

import pytest
import torch._inductor.config

from conftest import summary


def test_a_run_goes_on_uncompiled_where_compilation_fails(train, tmp_path, monkeypatch, capsys):
    plain = summary(train(name="plain"))
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/c++",))
    capsys.readouterr()
    broken = summary(train("compile=true", name="broken"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "Not compiled" in line]
    assert len(lines) == 1
    assert broken["status"] == "completed"
    assert broken["val_loss"] == plain["val_loss"]


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(train):
    plain = summary(train(name="plain"))
    compiled = summary(train("compile=true", name="compiled"))
    assert compiled["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-4)

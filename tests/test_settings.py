"""Settings as plain data."""

import math

import pytest
from omegaconf import OmegaConf

from conftest import ROOT
from litchar.settings import read_yaml

AWKWARD = {
    "numbers": [1e-5, -1e30, 0.0, 3, True, None, "1e-3", "1.5", "007", "0x1f", "1_000", "12:30:45"],
    "words": ["yes", "off", "null", "~", "", "2026-01-02", "${seed}", "a: b", "# no", "é\u2028\n "],
    "nested": {"1": {"a.b": []}, "none": {}},
}


def test_a_file_is_read_as_omegaconf_reads_it(tmp_path):
    saved = tmp_path / "saved.yaml"
    OmegaConf.save(OmegaConf.create(AWKWARD), saved)
    assert read_yaml(saved) == AWKWARD
    typed = tmp_path / "typed.yaml"
    typed.write_text("a: 1e-3\nb: 1e5\nc: .5\nd: 2026-01-02\ne: ???\nf: on\ng: [1, 2]\nh: -.inf\n")
    assert read_yaml(typed)["h"] == -math.inf
    for file in (typed, *sorted((ROOT / "conf").rglob("*.yaml"))):
        assert (read_yaml(file) or {}) == OmegaConf.to_container(OmegaConf.load(file)), file


@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"a: !!python/object:os.system x"])
def test_what_is_no_yaml_is_refused(tmp_path, content):
    (tmp_path / "file.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.yaml|utf-8"):
        read_yaml(tmp_path / "file.yaml")

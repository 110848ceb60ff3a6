"""Fuzzing: any command line gives a configuration or a one-line error message."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT, composed
from litchar.overrides import _keys, check, explain, quote

CONF = ROOT / "conf"
words = st.text(st.sampled_from("abn_.=,[]{}()$:\"'\\ +~@/*?%1-é你\n"), max_size=12)
keys = st.one_of(
    words,
    st.sampled_from(
        ["seed", "model", "data", "model.n_layer", "data.path", "trainer.max_steps", "experiment"]
    ),
)
arguments = st.lists(st.tuples(st.sampled_from(["", "+", "++", "~"]), keys, words), max_size=3)


@settings(
    deadline=None,
    max_examples=120,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(arguments)
def test_any_overrides_compose_or_are_explained_in_one_line(parts):
    try:
        line = [quote(f"{prefix}{key}={value}") for prefix, key, value in parts]
        check(line, CONF, "train")
        composed("train", *line)
    except Exception as error:
        if not explain(error, CONF, "train").strip():
            raise


def test_every_key_is_its_own_nearest():
    keys = list(_keys(CONF, "train"))
    assert len(keys) > 80
    assert {"seed", "model.n_layer", "trainer.max_steps", "experiment"} <= set(keys)

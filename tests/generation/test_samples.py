"""`generate`, run in this process."""

import sys


def test_a_byte_model_shows_only_whole_characters_as_they_complete(
    train, generated, tmp_path, monkeypatch
):
    path = tmp_path / "euro.txt"
    path.write_text("€" * 3000)
    run_dir = train(
        f"data.path={path}",
        "data.unit=byte",
        "scheduler=constant",
        "optimizer.lr=1e-2",
        "trainer.max_steps=60",
    )
    written = []

    def write(text: str) -> int:
        written.append(text)
        return len(text)

    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "write", write)
        generated(f"checkpoint={run_dir}", "prompt=€", "max_new_tokens=9", "temperature=0")
    assert "".join(written) == "€€€€\n"
    assert written[1:-2] == ["", "", "€"] * 3


def test_the_samples_of_a_seed_are_the_same_and_begin_with_the_prompt(train, generated):
    run_dir = train("trainer.max_steps=10")
    options = (f"checkpoint={run_dir}", "prompt=1 and", "num_samples=2", "max_new_tokens=20")
    text, _ = generated(*options)
    one, other = text.rstrip("\n").split("\n--------\n")
    assert one.startswith("1 and")
    assert other.startswith("1 and")
    assert len(one) == len(other) == 25
    assert generated(*options)[0] == text

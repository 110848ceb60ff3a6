"""Export to a directory that `transformers` opens, without any code of ours."""

import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from litchar import __version__
from litchar.checkpoints import gpt2
from litchar.checkpoints.checkpoint import Checkpoint
from litchar.checkpoints.model_card import model_card
from litchar.errors import UserError
from litchar.models import Transformer, block_size_of
from litchar.settings import read_json
from litchar.text import Vocabulary
from litchar.text.cleaning import SIGMA, Cleaning
from litchar.text.vocabulary import BOUNDARY, BOUNDARY_TOKEN, REPLACEMENT

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2Config, PreTrainedModel, Qwen3Config

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
SIGMA_AT_END = "ς"  # GREEK SMALL LETTER FINAL SIGMA

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2"}
# The values of our transformer's options with which their classes compute the same.
_BOTH: dict[str, Sequence[Any]] = {"head_bias": (False,), "ngrams": ((), []), "logit_cap": (None,)}
GPT2 = _BOTH | {"norm": ("layer",), "qk_norm": (False,), "activation": tuple(ACTIVATIONS)}
QWEN3 = _BOTH | {
    "norm": ("rms",),
    "qk_norm": (True,),
    "activation": ("swiglu",),
    "bias": (False,),
}
QWEN3_BLOCKS = "model.layers"
QWEN3_NAMES = {
    "token_embedding": ["model.embed_tokens"],
    "attention_norm": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.q_norm": ["self_attn.q_norm"],
    "attention.k_norm": ["self_attn.k_norm"],
    "attention.output": ["self_attn.o_proj"],
    "feed_forward_norm": ["post_attention_layernorm"],
    "feed_forward.input": ["mlp.gate_proj", "mlp.up_proj"],
    "feed_forward.output": ["mlp.down_proj"],
    "norm": ["model.norm"],
    "head": ["lm_head"],
}


def check_place(output: Path) -> None:
    """Check that writing to `output` replaces nothing but an earlier export.

    Raises:
        UserError: it is a file, the current directory, or a directory with other content.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output}: is a file; name a directory")
    if output.resolve() == Path.cwd():
        raise UserError(f"output={output}: is the current directory; name a new one")
    found = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
    if found and not (found <= FILES and "litchar" in read_json(output / "config.json")):
        raise UserError(
            f"output={output}: holds files that litchar did not export; name a new directory"
        )


def write_huggingface(
    checkpoint: Checkpoint, model: nn.Module, output: Path
) -> Callable[[np.ndarray], np.ndarray]:
    """Write a directory of `FILES`, load it again, and return the function of its logits.

    Raises:
        UserError: `transformers` has no class that computes what the model does, or no tokenizer
            for the vocabulary.
    """
    config = make_config(checkpoint, model)  # fail before the imports that take seconds
    tokenizer = make_tokenizer(checkpoint.vocabulary, checkpoint.cleaning)

    import transformers

    transformers.logging.disable_progress_bar()
    exported = with_weights(model, config)
    exported.save_pretrained(output)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=block_size_of(model),
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(output)
    (output / "README.md").write_text(model_card(checkpoint, model), encoding="utf-8")
    # safetensors lets nobody else read its file.
    shutil.copymode(output / "README.md", output / "model.safetensors")

    opened = transformers.AutoModelForCausalLM.from_pretrained(output).eval()
    opened_tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    for symbol in checkpoint.vocabulary.symbols:
        expected = checkpoint.vocabulary.encode(checkpoint.cleaning(symbol)).tolist()
        if opened_tokenizer(symbol).input_ids != expected:
            raise UserError(f"{checkpoint.path}: no transformers tokenizer gives {symbol!r} its id")
    return lambda ids: opened(torch.from_numpy(ids)).logits.detach().numpy()


def make_config(checkpoint: Checkpoint, model: nn.Module) -> "GPT2Config | Qwen3Config":
    """Return the configuration of the `transformers` model that computes what ours does.

    Raises:
        UserError: there is no such model; the message names the option that rules it out.
    """
    if type(model) is not Transformer:
        raise UserError(
            f"format=huggingface: transformers has no class for "
            f"model._target_={checkpoint.model_settings['_target_']}; try format=onnx"
        )
    parameters = inspect.signature(Transformer).parameters
    settings = {name: parameter.default for name, parameter in parameters.items()}
    settings |= checkpoint.model_settings
    learned = settings["position"] == "learned"
    name, fitting = ("GPT-2", GPT2) if learned else ("Qwen3", QWEN3)
    for option, values in fitting.items():
        if settings[option] not in values:
            found, wanted = (json.dumps(value) for value in (settings[option], values[0]))
            raise UserError(
                f"format=huggingface: model.position={settings['position']} needs "
                f"transformers' {name}, which has no model.{option}={found} (only {wanted}); "
                "try format=onnx"
            )

    from transformers import GPT2Config, Qwen3Config

    boundary = BOUNDARY if checkpoint.vocabulary.document else None
    common: dict[str, Any] = {
        "vocab_size": len(checkpoint.vocabulary),
        "bos_token_id": boundary,
        "eos_token_id": boundary,
        "tie_word_embeddings": settings["tie_head"],
        "litchar": __version__,
    }
    dropout = settings["dropout"]
    hidden = model.state_dict()["blocks.0.feed_forward.output.weight"].shape[1]
    if learned:
        return GPT2Config(
            n_positions=block_size_of(model),
            n_embd=settings["n_embd"],
            n_layer=settings["n_layer"],
            n_head=settings["n_head"],
            n_inner=hidden,
            activation_function=ACTIVATIONS[settings["activation"]],
            layer_norm_epsilon=float(settings["norm_eps"]),
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            **common,
        )
    return Qwen3Config(
        hidden_size=settings["n_embd"],
        intermediate_size=hidden,
        num_hidden_layers=settings["n_layer"],
        num_attention_heads=settings["n_head"],
        num_key_value_heads=settings["n_head"],
        head_dim=settings["n_embd"] // settings["n_head"],
        rms_norm_eps=float(settings["norm_eps"]),
        rope_parameters={"rope_type": "default", "rope_theta": settings["rope_theta"]},
        attention_bias=bool(settings["qkv_bias"]),
        attention_dropout=dropout,
        max_position_embeddings=block_size_of(model),
        # Beyond the block size, generation goes on with a sliding window, as ours does.
        use_sliding_window=True,
        sliding_window=block_size_of(model),
        max_window_layers=0,
        **common,
    )


def with_weights(model: nn.Module, config: "GPT2Config | Qwen3Config") -> "PreTrainedModel":
    """Return the model that `config` describes, with our weights.

    Biases that it has and ours lacks are zero.
    """
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM

    exported: PreTrainedModel
    longest = None
    if isinstance(config, GPT2Config):
        longest = config.n_positions
        exported = GPT2LMHeadModel(config)
        weights = gpt2.rename(model.state_dict(), gpt2.BLOCKS, gpt2.NAMES)
        for name in weights:
            if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):
                weights[name] = weights[name].T  # stored as (inputs, outputs)
    else:
        exported = Qwen3ForCausalLM(config)
        weights = gpt2.rename(model.state_dict(), QWEN3_BLOCKS, QWEN3_NAMES)
    expected = exported.state_dict()
    zeros = {n: torch.zeros_like(p) for n, p in expected.items() if n.endswith(".bias")}
    exported.load_state_dict(zeros | weights)
    exported.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,  # no limit; their default is 50
        bos_token_id=0,  # what a text without a prompt starts from
        eos_token_id=config.eos_token_id,
        max_length=longest,
    )
    return exported


def make_tokenizer(vocabulary: Vocabulary, cleaning: Cleaning) -> "Tokenizer":
    """Return a tokenizer that cleans a text and encodes it as `vocabulary` does.

    It splits a text into characters and looks each up. Unlike a tokenizer that merges pairs, it
    drops nothing, and raises an error for a character that is not in the vocabulary.

    Raises:
        UserError: the vocabulary has a surrogate, which no tokenizer can read.
    """
    if halves := [s for s in vocabulary.symbols if "\ud800" <= s <= "\udfff"]:
        raise UserError(
            f"format=huggingface: the vocabulary has {halves[0]!r}, half of a character, which no "
            "tokenizer can read; try format=onnx"
        )
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    of_bytes = vocabulary.unit == "byte"
    spelling = bytes_to_unicode()  # a printable character for each byte
    newline = spelling[ord("\n")] if of_bytes else "\n"
    spelled = [spelling[ord(s)] if of_bytes and s else s for s in vocabulary.symbols]
    # No text encodes to the boundary, since texts are split into single characters.
    ids = {symbol or BOUNDARY_TOKEN: i for i, symbol in enumerate(spelled)}
    rare = {"unk_token": REPLACEMENT} if vocabulary.replaces else {}

    tokenizer = Tokenizer(models.WordLevel(ids, **rare))
    steps: list[Any] = []
    if "\r" not in vocabulary.characters:  # as in `Checkpoint.cleaned`
        steps.append(normalizers.Replace(Regex(r"\r\n?"), "\n"))
    if form := cleaning.normalize:
        steps.append(getattr(normalizers, str(form))())
    if cleaning.lowercase:
        # Their Lowercase lacks the rule for final sigma (Unicode Standard, section 3.13).
        cased = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
        last = rf"(?<={cased}\p{{Case_Ignorable}}*){SIGMA}(?!\p{{Case_Ignorable}}*{cased})"
        steps += [normalizers.Replace(Regex(last), SIGMA_AT_END), normalizers.Lowercase(), *steps]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    cut = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    shown = decoders.Replace(BOUNDARY_TOKEN, newline)
    if of_bytes:
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([to_bytes, cut])
        tokenizer.decoder = decoders.Sequence([shown, decoders.ByteLevel()])
    else:
        tokenizer.pre_tokenizer = cut
        tokenizer.decoder = decoders.Sequence([shown, decoders.Fuse()])
    return tokenizer

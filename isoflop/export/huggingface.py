"""Hugging Face folders: config.json, safetensors (one file or sharded) and the tokenizer beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.export.anatomy import FAMILIES, Anatomy, anatomy_of
from isoflop.export.bundle import Bundle, gather, spread
from isoflop.export.fields import Fields
from isoflop.export.names import HUGGING_FACE
from isoflop.export.vocabulary import read_tokenizer
from isoflop.files import to_json
from isoflop.untrusted import parse_json, read_bytes

DTYPES = ("F64", "F32", "F16", "BF16")
# Hugging Face's words for activations; the first of each of ours is the one written
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
GPT1_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}  # its "gelu" is the tanh form
CLASSES = {
    "openai-gpt": "OpenAIGPTLMHeadModel",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "arcee": "ArceeForCausalLM",
    "apertus": "ApertusForCausalLM",
}


def read_folder(folder: Path, tokenizer: str = "", context: int = 0) -> Bundle:
    """The model in a Hugging Face folder.

    Args:
        tokenizer: a tokenizer's text to use in place of the one that lies there.
        context: see bundle.gather.

    Raises:
        UserError: for a model that our blocks cannot express, or files that are damaged, missing or pickled.
    """
    fields = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    anatomy = read_config(fields)
    found, load = open_weights(folder)
    names = HUGGING_FACE[anatomy.family]
    given = {name: theirs(name, found, names.optional_prefix) for name in found}
    heads = {"lm_head.weight"} if anatomy.tied else set()
    kept = {
        name: stored
        for stored, name in given.items()
        if name not in heads and not any(name.endswith(ending) for ending in names.ignored)
    }
    shapes = {name: found[stored] for name, stored in kept.items()}
    config, weights = gather(anatomy, names, shapes, lambda name: load(kept[name]), str(folder), context)
    text = tokenizer or read_tokenizer(folder)
    return Bundle(config, weights, text, f"hugging face {anatomy.family}")


def theirs(name: str, found: dict[str, tuple[int, ...]], prefix: str) -> str:
    """The full name of a tensor: OpenAI's own files leave the prefix away."""
    bare = prefix and not any(other.startswith(prefix) for other in found)
    return prefix + name if bare and not name.startswith("lm_head.") else name


def read_config(fields: Fields) -> Anatomy:
    """config.json as an Anatomy.

    Raises:
        UserError: naming the field that our blocks have nothing for.
    """
    family = fields.text("model_type")
    if family not in FAMILIES:
        raise UserError(f"{fields.origin}: model_type = {family[:80]!r} is not one of {', '.join(FAMILIES)}")
    anatomy = read_gpt(fields, family) if FAMILIES[family].norm == "layer" else read_llama(fields, family)
    if anatomy.heads % anatomy.kv_heads:
        raise UserError(f"{fields.origin}: {anatomy.kv_heads} key-value heads do not divide {anatomy.heads} heads")
    return anatomy


def read_gpt(fields: Fields, family: str) -> Anatomy:
    for name, allowed in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        fields.refuse_unless(name, allowed)
    fields.refuse_unless("add_cross_attention", False)
    d_model, heads = fields.size("n_embd"), fields.size("n_head")
    if d_model % heads:
        raise UserError(f"{fields.origin}: n_head = {heads} does not divide n_embd = {d_model}")
    gpt1 = family == "openai-gpt"
    drops = {fields.number(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    return Anatomy(
        family=family,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("n_positions", fields.get("n_ctx", None)),
        layers=fields.size("n_layer"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_dim=d_model // heads,
        d_ff=4 * d_model if gpt1 else fields.size("n_inner", 4 * d_model),
        activation=activation(
            fields, "afn" if gpt1 else "activation_function", GPT1_ACTIVATIONS if gpt1 else ACTIVATIONS
        ),
        eps=fields.number("layer_norm_epsilon", 1e-5),
        attention_bias=True,
        mlp_bias=True,
        tied=fields.flag("tie_word_embeddings", True),
        dropout=drops.pop() if len(drops) == 1 else 0.0,
    )


def read_llama(fields: Fields, family: str) -> Anatomy:
    fields.refuse_unless("use_sliding_window", False)
    kinds = set(fields.list_of("layer_types", str, []))
    if kinds - {"full_attention"}:
        raise UserError(
            f"{fields.origin}: layer_types has {min(kinds - {'full_attention'})[:80]!r}; ours are full attention"
        )
    heads, d_model = fields.size("num_attention_heads"), fields.size("hidden_size")
    defaults = FAMILY_DEFAULTS[family]
    return Anatomy(
        family=family,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings", defaults["max_position_embeddings"]),
        layers=fields.size("num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=fields.size("num_key_value_heads", heads),
        head_dim=fields.size("head_dim", defaults["head_dim"] or max(1, d_model // heads)),
        d_ff=fields.size("intermediate_size"),
        activation=activation(fields, "hidden_act", ACTIVATIONS),
        eps=fields.number("rms_norm_eps", defaults["rms_norm_eps"]),
        base=rotary_base(fields, defaults["rope_theta"]),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False) and FAMILIES[family].biases[1] == "either",
        tied=fields.flag("tie_word_embeddings", False),
    )


# what transformers takes where config.json does not say (it writes all of them itself)
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "head_dim": 0, "rope_theta": 1e4},
    "qwen3": {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "head_dim": 128, "rope_theta": 1e4},
    "arcee": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "head_dim": 0, "rope_theta": 1e4},
    "apertus": {"max_position_embeddings": 65536, "rms_norm_eps": 1e-5, "head_dim": 0, "rope_theta": 1.2e7},
}


def rotary_base(fields: Fields, default: float) -> float:
    """`rope_theta`, from where either generation of config.json has it.

    Raises:
        UserError: naming a kind of rope scaling, of which we have none.
    """
    theta = fields.get("rope_theta", default)
    for name in ("rope_scaling", "rope_parameters"):
        said = fields.get(name, {})
        if not isinstance(said, dict):
            raise fields.wrong(name, said, "an object")
        kind = said.get("rope_type", said.get("type", "default"))
        if kind != "default":
            raise UserError(f"{fields.origin}: {name} of kind {str(kind)[:80]!r}; our rotary positions have no scaling")
        if said.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{fields.origin}: partial_rotary_factor is not 1; our rotary positions turn whole heads")
        theta = said.get("rope_theta", theta)
    return Fields({"rope_theta": theta}, fields.origin).number("rope_theta")


def activation(fields: Fields, name: str, words: dict[str, str]) -> str:
    said = fields.text(name, "gelu" if name == "afn" else "gelu_new" if name == "activation_function" else "silu")
    if said not in words:
        raise UserError(f"{fields.origin}: {name} = {said[:80]!r} is not one of {', '.join(words)}")
    return words[said]


def open_weights(folder: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """name -> shape of every tensor in a folder's safetensors, and a function that reads one.

    Raises:
        UserError: for no safetensors, a file that is not one, or a dtype that is no floating-point number of ours.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise UserError(f"{index} has no weight_map of file names in this folder")
        files = sorted(set(shards.values()))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise UserError(
            f"{pickled[0]} is a pickle, which isoflop never opens, and there is no model.safetensors beside it; "
            "save the model as safetensors first"
        )
    else:
        raise UserError(f"{folder} has no model.safetensors")
    found: dict[str, tuple[int, ...]] = {}
    where: dict[str, Path] = {}
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} is missing, or is no file")
        with opened(folder / file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                part = tensors.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise UserError(
                        f"{folder / file}: {name[:200]!r} is {part.get_dtype()}; read are {', '.join(DTYPES)}"
                    )
                if name in found:
                    raise UserError(f"{folder} has {name[:200]!r} in two files")
                found[name], where[name] = tuple(part.get_shape()), folder / file

    def load(name: str) -> Tensor:
        with opened(where[name]) as tensors:
            return tensors.get_tensor(name)

    return found, load


class opened:
    """safetensors.safe_open, with one line for a file that is not one."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = safetensors.safe_open(str(path), framework="pt")
        except (OSError, ValueError, MemoryError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read as safetensors ({str(error)[:120]})") from None

    def __enter__(self) -> Any:
        return self.file.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)


def read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path} does not exist; name a folder with config.json and model.safetensors")
    value = parse_json(read_bytes(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def write_folder(bundle: Bundle, folder: Path) -> str:
    """Write a bundle into an existing empty folder: configuration, weights, tokenizer, as transformers saves them.

    Returns:
        The architecture.

    Raises:
        UserError: naming the block that no architecture of theirs has.
    """
    anatomy = anatomy_of(bundle.config, tuple(FAMILIES), "a Hugging Face model")
    tokenizer = Tokenizer.from_json(bundle.tokenizer)
    config = write_config(anatomy)
    ids = {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.eot}
    tensors = spread(bundle, anatomy, HUGGING_FACE[anatomy.family])
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    eos = token(tokenizer, tokenizer.eot)
    texts = {
        "config.json": to_json({**config, **ids, "pad_token_id": None}),
        "generation_config.json": to_json(ids),
        "tokenizer.json": bundle.tokenizer,
        "tokenizer_config.json": to_json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": token(tokenizer, tokenizer.start),
                "eos_token": eos,
                "clean_up_tokenization_spaces": False,
                "model_max_length": bundle.config.context,
            }
        ),
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))
    return anatomy.family


def write_config(anatomy: Anatomy) -> dict[str, Any]:
    """An Anatomy as config.json.

    Raises:
        UserError: for an activation that the architecture has no word for.
    """
    words = GPT1_ACTIVATIONS if anatomy.family == "openai-gpt" else ACTIVATIONS
    said = [word for word, ours in words.items() if ours == anatomy.activation]
    if not said:
        raise UserError(
            f"model.feed_forward.activation = {anatomy.activation} cannot be written as a Hugging Face model: "
            f"{anatomy.family} has {', '.join(dict.fromkeys(words.values()))}"
        )
    head = {
        "architectures": [CLASSES[anatomy.family]],
        "model_type": anatomy.family,
        "torch_dtype": "float32",
        "vocab_size": anatomy.vocab_size,
        "tie_word_embeddings": anatomy.tied,
    }
    if FAMILIES[anatomy.family].norm == "layer":
        return head | {
            "n_positions": anatomy.context,
            "n_embd": anatomy.d_model,
            "n_layer": anatomy.layers,
            "n_head": anatomy.heads,
            **({} if anatomy.family == "openai-gpt" else {"n_inner": anatomy.d_ff}),
            "afn" if anatomy.family == "openai-gpt" else "activation_function": said[0],
            "layer_norm_epsilon": anatomy.eps,
            "resid_pdrop": anatomy.dropout,
            "embd_pdrop": anatomy.dropout,
            "attn_pdrop": anatomy.dropout,
            **({"summary_first_dropout": 0.0} if anatomy.family == "openai-gpt" else {}),
        }
    return head | {
        "max_position_embeddings": anatomy.context,
        "hidden_size": anatomy.d_model,
        "intermediate_size": anatomy.d_ff,
        "num_hidden_layers": anatomy.layers,
        "num_attention_heads": anatomy.heads,
        "num_key_value_heads": anatomy.kv_heads,
        "head_dim": anatomy.head_dim,
        "hidden_act": said[0],
        "rms_norm_eps": anatomy.eps,
        "rope_theta": anatomy.base,  # where transformers 4 looks; 5 reads rope_parameters
        "rope_parameters": {"rope_type": "default", "rope_theta": anatomy.base},
        "attention_bias": anatomy.attention_bias,
        **({"mlp_bias": anatomy.mlp_bias} if FAMILIES[anatomy.family].biases[1] == "either" else {}),
        "attention_dropout": 0.0,
    }


def token(tokenizer: Tokenizer, number: int) -> str:
    return next(piece for piece, i in tokenizer.vocabulary.items() if i == number)

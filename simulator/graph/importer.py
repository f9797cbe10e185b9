"""Import of Hugging Face configurations: a ``config.json`` becomes the fields of a model file.

The families stand as a table in :mod:`simulator.graph.huggingface`; here a configuration is read through it,
checked like any model file, and written in the zoo's layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from simulator.graph.huggingface import FAMILIES, ConfigReader, Family
from simulator.specs.base import validate
from simulator.specs.errors import MemroofError, UnknownNameError
from simulator.specs.model import Model
from simulator.specs.source import Document

_STRUCTURAL = re.compile(
    r"^(num|n|use|has|with|no|enable|add|do|is|share|shared|cross)_"
    r"|_(size|dim|dims|rank|layers?|heads?|types?|pattern|window|width|step|freq|frequency|ratio|expansion)$"
    r"|bias|norm(?!_eps|_topk)|expert|lora|mamba|ssm|conv|moe|mla|recurrent|sparse|memory"
)
"""Keys that may tell of the structure: one that no rule reads and that is not harmless is refused."""
_HARMLESS = frozenset({
    "apply_residual_connection_post_layernorm", "bias_dropout_fusion", "chunk_size_feed_forward", "do_sample",
    "encoder_no_repeat_ngram_size", "ep_size", "is_decoder", "is_encoder_decoder", "model_type",
    "moe_eval_capacity_token_fraction", "moe_token_dropout", "n_ctx", "n_group", "n_special",
    "no_repeat_ngram_size", "normalize_router_prob_before_dropping", "num_beam_groups", "num_beams",
    "num_labels", "num_nextn_predict_layers", "num_return_sequences", "pooler_size_per_head", "problem_type",
    "rope_local_base_freq", "rope_type", "skip_bias_add", "skip_bias_add_qkv", "summary_type", "use_bfloat16",
    "use_cache", "use_cache_kernel", "use_cache_quantization", "use_dynamic_ntk", "use_flash_attn",
    "use_logn_attn", "use_return_dict",
})  # fmt: skip
_PLAIN = re.compile(r"(?!(?i:null)$)[A-Za-z][\w.-]*")


def import_config(
    config: Mapping[str, Any], name: str, *, file: str = "config.json", source: str = ""
) -> dict[str, Any]:
    """Convert a Hugging Face configuration into the fields of a model file.

    Keys that are left out take the value that the configuration class of ``transformers`` assumes. Keys that
    say nothing about the structure are ignored; those that may change it and that the family does not know
    are refused.

    Parameters
    ----------
    config : mapping
        The parsed ``config.json``; of a multimodal model the text part is read.
    name : str
        Name of the model, which is also its file's stem.
    file : str
        Where the configuration stands, for error messages.
    source : str
        What the model file cites; the configuration's ``_name_or_path`` and the file if empty.

    Returns
    -------
    dict
        Fields of :class:`~simulator.specs.model.Model` in its order, without those equal to its defaults.

    Raises
    ------
    UnknownNameError
        For a ``model_type`` that no family bears, with the nearest supported names.
    MemroofError
        For a missing or wrong key, or one that is not understood and may change the structure.
    """
    model = model_from_config(config, name, file=file, source=source)
    return model_fields(model)


def model_from_config(
    config: Mapping[str, Any], name: str, *, file: str = "config.json", source: str = ""
) -> Model:
    """Convert a Hugging Face configuration into a checked model; see :func:`import_config`."""
    if not isinstance(config, Mapping):
        raise MemroofError(f"{file}: found a {type(config).__name__}, expected keys and values")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise MemroofError(f"{file}: missing key 'model_type', which says what family the model is of")
    if model_type not in FAMILIES:
        raise UnknownNameError("model_type", model_type, FAMILIES)
    family = FAMILIES[model_type]
    reader = ConfigReader(_text_part(config, family, file), family.defaults, model_type, file)
    fields = family.fields(reader)
    _refuse_unread(reader, family)
    cited = source or f"Hugging Face {config.get('_name_or_path') or model_type}, {file}"
    document = Document(file, {"kind": "model", "name": name, "source": cited, **fields}, {})
    return Model.model_validate(model_fields(validate(document, Model)))


def model_fields(model: Model) -> dict[str, Any]:
    """Return a model's fields in the schema's order, without those that the schema assumes anyway.

    Heads and head widths that follow from others are left out as well, so that one model has one spelling.
    """
    fields = model.model_dump(exclude_defaults=True, exclude_none=True)
    if model.num_key_value_heads == model.num_attention_heads:
        del fields["num_key_value_heads"]
    if model.head_dim and model.head_dim * model.num_attention_heads == model.hidden_size:
        del fields["head_dim"]
    return fields


def to_yaml(fields: Mapping[str, Any]) -> str:
    """Write the fields of a model as the text of a model file, in the zoo's layout.

    Parameters
    ----------
    fields : mapping
        As :func:`import_config` returns them.

    Returns
    -------
    str
        YAML, one key a line; text is quoted wherever YAML could misread it.
    """
    lines: list[str] = []
    for key, value in fields.items():
        if key == "parameters":
            inner = ", ".join(f"{name}: {_scalar(item)}" for name, item in value.items())
            lines.append(f"{key}: {{{inner}}}")
        elif isinstance(value, Mapping):
            lines += [f"{key}:", *(f"  {name}: {_scalar(item)}" for name, item in value.items())]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _text_part(config: Mapping[str, Any], family: Family, file: str) -> Mapping[str, Any]:
    part = config.get(family.part, config) if family.part else config
    if not isinstance(part, Mapping):
        raise MemroofError(f"{file}: {family.part}: found a {type(part).__name__}, expected keys and values")
    return part


def _refuse_unread(reader: ConfigReader, family: Family) -> None:
    known = reader.read | _HARMLESS | family.ignored
    for key, value in reader.config.items():
        if value and key not in known and _STRUCTURAL.search(str(key)):
            raise reader.fault(
                str(key), f"found {value!r}, which may change the structure and is not understood"
            )


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")
    return str(value)

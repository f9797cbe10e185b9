"""Import of Hugging Face configurations: a ``config.json`` becomes the fields of a model file.

The families stand as a table in :mod:`simulator.graph.huggingface`; here a configuration is read through it, what the
schema assumes anyway is left out, and the result is checked like any file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from simulator.graph.huggingface import FAMILIES, ConfigReader, Family
from simulator.specs.base import validate
from simulator.specs.errors import MemroofError, UnknownNameError
from simulator.specs.model import LatentAttention, MixtureOfExperts, Model, Parameters
from simulator.specs.source import Document

_STRUCTURAL = re.compile(
    r"^(num|n|use|has|with|no|enable|add|do|is|share|shared|cross)_"
    r"|_(size|sizes|dim|dims|rank|layers?|heads?|types?|pattern|window|width|step|freq|frequency|ratio|expansion)$"
    r"|bias|norm(?!_eps|_epsilon|_topk)|expert|lora|mamba|ssm|conv|moe|mla|recurrent|sparse|memory"
)
_HARMLESS = frozenset(
    """
    add_bos_token add_eos_token add_router_probs auto_map_type chunk_size_feed_forward do_sample
    encoder_no_repeat_ngram_size ep_size interleave_type is_decoder is_encoder_decoder model_type moe_aux_loss_coeff
    moe_eval_capacity_token_fraction moe_token_dropout n_ctx n_group n_special no_repeat_ngram_size norm_topk_prob
    normalize_router_prob_before_dropping num_beam_groups num_beams num_labels num_nextn_predict_layers
    num_return_sequences problem_type rope_type router_z_loss_coef summary_type topk_group use_bfloat16 use_cache
    use_dynamic_ntk use_flash_attn use_logn_attn use_mup use_return_dict use_cache_quantization use_cache_kernel
    apply_residual_connection_post_layernorm bias_dropout_fusion skip_bias_add skip_bias_add_qkv output_hidden_states
    """.split()
)


def import_config(
    config: Mapping[str, Any], name: str, *, file: str = "config.json", source: str = ""
) -> dict[str, Any]:
    """Convert a Hugging Face configuration into the fields of a model file.

    Keys that are left out take the value that the family's configuration class in ``transformers`` assumes. Keys that
    say nothing about the structure are ignored; keys that may change it and that the family does not know are refused.

    Parameters
    ----------
    config : mapping
        The parsed ``config.json``; of multimodal models the text part is read.
    name : str
        Name of the model, which is also its file's stem.
    file : str
        Where the configuration stands, for error messages.
    source : str
        What the model file cites; the file and its ``_name_or_path`` if empty.

    Returns
    -------
    dict
        Fields of :class:`~simulator.specs.model.Model` in the schema's order, without those equal to its defaults.

    Raises
    ------
    UnknownNameError
        For a ``model_type`` that no family bears, with the nearest supported names.
    MemroofError
        For a missing or wrong key, or one that is not understood and may change the structure.
    """
    if not isinstance(config, Mapping):
        raise MemroofError(f"{file}: found {type(config).__name__}, expected keys and values")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise MemroofError(f"{file}: missing key 'model_type'; this key says which family the model is of")
    if kind not in FAMILIES:
        raise UnknownNameError("model_type", kind, FAMILIES)
    family = FAMILIES[kind]
    reader = ConfigReader(_part(config, family, file), family.defaults, kind, file)
    fields = family.fields(reader)
    _refuse_unknown(reader, family)
    cited = source or f"Hugging Face {config.get('_name_or_path') or kind}, {file}"
    checked = validate(Document(file, {"kind": "model", "name": name, "source": cited, **fields}, {}), Model)
    return model_fields(checked)


def model_from_config(config: Mapping[str, Any], name: str, *, file: str = "config.json", source: str = "") -> Model:
    """Convert a Hugging Face configuration into a checked model; arguments and errors of :func:`import_config`."""
    return Model.model_validate(import_config(config, name, file=file, source=source))


def model_fields(model: Model) -> dict[str, Any]:
    """Return a model's fields in the schema's order, without those that the schema assumes anyway."""
    fields = model.model_dump(exclude_defaults=True)
    if model.num_key_value_heads == model.num_attention_heads:
        fields.pop("num_key_value_heads", None)
    if model.head_dim and model.head_dim * model.num_attention_heads == model.hidden_size:
        fields.pop("head_dim", None)
    return {key: _drop_none(fields[key]) for key in Model.model_fields if key in fields}


def to_yaml(fields: Mapping[str, Any]) -> str:
    """Write a model's fields as the text of a model file, in the schema's order.

    Parameters
    ----------
    fields : mapping
        As :func:`import_config` returns them.

    Returns
    -------
    str
        YAML with one key a line; text is quoted where YAML could misread it.
    """
    lines: list[str] = []
    for key in (k for k in Model.model_fields if k in fields):
        value = fields[key]
        if key == "parameters":
            lines.append(f"{key}: {{{', '.join(f'{k}: {_scalar(v)}' for k, v in _ordered(value, Parameters))}}}")
        elif isinstance(value, Mapping):
            schema = MixtureOfExperts if key == "moe" else LatentAttention
            lines += [f"{key}:", *(f"  {k}: {_scalar(v)}" for k, v in _ordered(value, schema))]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _part(config: Mapping[str, Any], family: Family, file: str) -> Mapping[str, Any]:
    if not family.part or family.part not in config:
        return config
    part = config[family.part]
    if not isinstance(part, Mapping):
        raise MemroofError(f"{file}: {family.part}: found {type(part).__name__}, expected keys and values")
    return part


def _refuse_unknown(reader: ConfigReader, family: Family) -> None:
    for key, value in reader.config.items():
        neutral = not value or key in _HARMLESS or key in family.ignored
        if key not in reader.read and not neutral and _STRUCTURAL.search(str(key)):
            raise reader.fault(str(key), f"found {value!r}, which may change the structure and is not understood")


def _ordered(value: Mapping[str, Any], schema: type[Parameters] | type[MixtureOfExperts] | type[LatentAttention]) -> list[tuple[str, Any]]:
    return [(key, value[key]) for key in schema.model_fields if key in value]


def _drop_none(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z][\w.\-]*", value):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)

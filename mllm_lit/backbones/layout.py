"""Where an architecture keeps its vision encoder, its connector and its LLM.

Everything else asks a :class:`Layout` and never which architecture it is dealing with.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from mllm_lit.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Role = Literal["vision", "connector", "llm"]
ROLES: tuple[Role, ...] = get_args(Role)

# Names that transformers gives to these parts, directly under the model or under its ``model``.
VISION = (
    "vision_tower",
    "visual",
    "vision_model",
    "vision_encoder",
    "image_tower",
    "video_tower",
    "high_res_vision_model",
)
LLM = ("language_model", "text_model")
CONNECTOR = (
    "multi_modal_projector",
    "mm_projector",
    "connector",
    "projector",
    "aligner",
    "merger",
    "image_newline",
    "view_separator",
    "qformer",
    "query_tokens",
    "language_projection",
    "image_to_text_projection",
    "resampler_model",
    "vision_projection",
    "vision_adapter",
    "perception_emb_norm",
    "visual_embeddings_table",
    "embed_vision",
    "high_res_vision_neck",
    "high_res_vision_proj",
    "high_res_vision_alpha",
)
# Qwen-VL and its relatives keep the connector inside the vision module.
CONNECTOR_IN_VISION = ("merger", "merger_list", "deepstack_merger_list", "connector", "vision_adapter")
BLOCKS = ("layers", "h", "blocks")
NORM = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "embedding_norm")

# What peft puts in front of a name: tuners wrap twice, prompt methods once.
WRAPPERS = ("base_model.model.", "base_model.")
PROMPT = "prompt_encoder."


class LayoutError(UserError, ValueError):
    """The parts of a model could not be told apart; the message lists its modules and the keys to set."""


@dataclass(frozen=True)
class Layout:
    """The parts of a model as prefixes of its parameters' names; of two that match, the longer one counts.

    Attributes:
        vision: Prefixes of the vision encoder.
        connector: Prefixes of what maps vision features to the LLM's embeddings; may lie inside ``vision``.
        llm: Prefixes of the LLM, its embeddings and head among them.
        blocks: Path of the list of decoder blocks, such as ``model.language_model.layers``.
        norm: Path of the norm behind the last block, if there is one.
        head: Path of the output projection.
    """

    vision: tuple[str, ...]
    connector: tuple[str, ...]
    llm: tuple[str, ...]
    blocks: str
    norm: str | None = None
    head: str | None = None

    def prefixes(self, role: Role) -> tuple[str, ...]:
        """The prefixes of one role."""
        return {"vision": self.vision, "connector": self.connector, "llm": self.llm}[role]

    def base_name(self, name: str) -> str:
        """The name that a parameter or module of a peft-wrapped model has in the bare model.

        >>> layout = Layout(("model.vision_tower",), (), ("model.language_model",), "model.language_model.layers")
        >>> layout.base_name("base_model.model.model.language_model.layers.0.mlp.up_proj.base_layer.weight")
        'model.language_model.layers.0.mlp.up_proj.weight'
        """
        for wrapper in WRAPPERS:
            bare = name.removeprefix(wrapper)
            if bare != name and self._match(bare) is not None:
                return bare.replace(".base_layer.", ".")
        return name

    def role_of(self, name: str) -> Role:
        """The role of a parameter or module, named as in the bare or in a peft-wrapped model.

        Virtual tokens of prefix and prompt tuning count as part of the LLM, which they are fed to.

        Raises:
            LayoutError: No role covers the name.
        """
        if name.startswith(PROMPT):
            return "llm"
        role = self._match(self.base_name(name))
        if role is None:
            raise LayoutError(f"No role covers {name!r}; the layout knows {self}.")
        return role

    def block_of(self, name: str) -> int | None:
        """The index of the decoder block that a parameter or module lies in, or ``None`` outside the blocks."""
        rest = self.base_name(name).removeprefix(f"{self.blocks}.")
        index = rest.partition(".")[0]
        return int(index) if rest != name and index.isdigit() else None

    def _match(self, name: str) -> Role | None:
        best: Role | None = None
        length = -1
        for role in ROLES:
            for prefix in self.prefixes(role):
                if (name == prefix or name.startswith(f"{prefix}.")) and len(prefix) > length:
                    best, length = role, len(prefix)
        return best


def bare_model(net: "nn.Module") -> Any:
    """The Hugging Face model under peft's wrapper, if there is one."""
    return net.get_base_model() if hasattr(net, "get_base_model") else net  # type: ignore[operator]


def find_layout(model: "nn.Module", given: Mapping[str, str | list[str]] | None = None) -> Layout:
    """Tell the parts of a model apart by the names that transformers uses, or take the user's word.

    Args:
        model: A Hugging Face image-text-to-text model, not wrapped by peft.
        given: Any of the fields of :class:`Layout`, for an architecture that is laid out otherwise.

    Raises:
        LayoutError: Some parameter has no role, a role is empty, or the decoder blocks are not found.
    """
    children = _children(model)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    head = None if output is None else _path_of(model, output)
    vision = [path for path, name in children if name in VISION]
    nested = [f"{path}.{name}" for path in vision for name in CONNECTOR_IN_VISION if _has(model, f"{path}.{name}")]
    llm = [path for path, name in children if name in LLM]
    if head is not None and not any(head.startswith(f"{path}.") for path in llm):
        llm.append(head)
    found: dict[str, str | list[str] | None] = {
        "vision": vision,
        "connector": [path for path, name in children if name in CONNECTOR] + nested,
        "llm": llm,
        "blocks": None,
        "norm": None,
        "head": head,
        **(given or {}),
    }
    unknown = found.keys() - Layout.__dataclass_fields__.keys()
    if unknown:
        raise LayoutError(f"Unknown layout keys {sorted(unknown)}; there are {list(Layout.__dataclass_fields__)}.")
    blocks = str(found["blocks"] or _blocks(model, _several(found["llm"])))
    norm = found["norm"] or _norm(model, blocks)
    layout = Layout(
        vision=_several(found["vision"]),
        connector=_several(found["connector"]),
        llm=_several(found["llm"]),
        blocks=blocks,
        norm=None if norm is None else str(norm),
        head=None if found["head"] is None else str(found["head"]),
    )
    _check(model, layout)
    return layout


def _several(paths: str | list[str] | None) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths or ())


def _children(model: "nn.Module") -> list[tuple[str, str]]:
    """(path, own name) of every child and bare parameter of the model and of its ``model``."""
    paths = [("", model)]
    if _has(model, "model"):
        paths.append(("model.", model.get_submodule("model")))
    pairs = []
    for prefix, module in paths:
        pairs += [(f"{prefix}{name}", name) for name, _ in module.named_children()]
        pairs += [(f"{prefix}{name}", name) for name, _ in module.named_parameters(recurse=False)]
    return pairs


def _has(model: "nn.Module", path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _path_of(model: "nn.Module", wanted: "nn.Module") -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _blocks(model: "nn.Module", llm: Iterable[str]) -> str:
    """The shallowest list of blocks under the LLM."""
    inside = [
        name
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in BLOCKS and any(name.startswith(f"{prefix}.") for prefix in llm)
    ]
    depth = min((name.count(".") for name in inside), default=0)
    shallowest = [name for name in inside if name.count(".") == depth]
    if len(shallowest) != 1:
        raise LayoutError(_report(model, f"one list of decoder blocks was expected, found {shallowest or 'none'}"))
    return shallowest[0]


def _norm(model: "nn.Module", blocks: str) -> str | None:
    parent = blocks.rpartition(".")[0]
    return next((path for name in NORM if _has(model, path := f"{parent}.{name}")), None)


def _check(model: "nn.Module", layout: Layout) -> None:
    absent = [path for path in (layout.blocks, layout.norm, layout.head) if path is not None and not _has(model, path)]
    if absent:
        raise LayoutError(_report(model, f"{absent} are not there"))
    twice = [p for role in ROLES for p in layout.prefixes(role) if sum(p in layout.prefixes(r) for r in ROLES) > 1]
    if twice:
        raise LayoutError(_report(model, f"{sorted(set(twice))} have two roles"))
    roles = {name: layout._match(name) for name, _ in model.named_parameters()}
    orphans = [name for name, role in roles.items() if role is None]
    if orphans:
        raise LayoutError(_report(model, f"{len(orphans)} parameters have no role, such as {orphans[:3]}"))
    empty = [role for role in ("vision", "llm") if role not in roles.values()]
    if empty:
        raise LayoutError(_report(model, f"no parameter has the role {empty}"))


def _report(model: "nn.Module", problem: str) -> str:
    lines = [f"  {path} ({sum(p.numel() for p in _parameters(model, path)):,})" for path, _ in _children(model)]
    return (
        f"The parts of {type(model).__name__} could not be told apart: {problem}.\n"
        f"Its modules and their parameter counts:\n" + "\n".join(lines) + "\n"
        "Set the four keys yourself, as lists of such paths and the path of the decoder blocks:\n"
        "  layout: {vision: [...], connector: [...], llm: [...], blocks: ...}"
    )


def _parameters(model: "nn.Module", path: str) -> list["nn.Parameter"]:
    return [p for name, p in model.named_parameters() if name == path or name.startswith(f"{path}.")]

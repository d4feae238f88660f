"""Models: how a model, its tokenizer and its adapters are saved and loaded.

A full model is a plain transformers folder. A round with a patch or an adapter stores that alone
and `parent.json`, which names the folder beside it that it belongs on; `load` walks that chain and
checks every link's hash.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from tnt.core.artifacts import MAKE_AGAIN, read_json
from tnt.core.hashes import sha256_of
from tnt.core.params import STRICT

PARENT_FILE = "parent.json"
PATCH_FILE = "patch.safetensors"


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class RuntimeParams:
    """What the bytes of a result depend on besides its inputs."""

    threads: PositiveInt | Literal["auto"] = 1
    """CPU threads of torch; `auto` is the machine's cores, written out by `resolve`."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    autocast: Literal["none", "bf16"] = "none"
    """Precision of the passes in training; weights stay float32, generation runs in float32."""


def load(path: Path, *, device: str = "cpu") -> Any:
    """Return the model of a folder, in float32 and evaluation mode.

    Adapters are merged into it, patches stand beside its last MLP.

    Raises:
        ValueError: The folder is missing or damaged, or an adapter's or a patch's parent is not the
            one it was trained on.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a model folder. Run `dvc repro`, which makes it.")
    parent_file = path / PARENT_FILE
    if not parent_file.exists():
        with readable(str(path), MAKE_AGAIN):
            return from_pretrained(str(path)).eval().to(device)

    patch_file = path / PATCH_FILE
    link = read_json(parent_file, "parent", "sha256")
    parent = path.parent / link["parent"]
    if (found := sha256_of(parent)) != link["sha256"]:
        kind = "a patch" if patch_file.exists() else "an adapter"
        raise ValueError(
            f"{path} is {kind} for {parent} with hash {link['sha256'][:12]}, but that folder "
            f"now has {found[:12]}. Run `dvc checkout` or train the round again."
        )
    original = load(parent, device=device)
    if patch_file.exists():
        from tnt.patches import artifact, neurons

        neurons.attach(original, artifact.read(patch_file))
        return original

    from peft import PeftModel

    with readable(str(path), MAKE_AGAIN):
        adapted = PeftModel.from_pretrained(original, str(path))
    return adapted.merge_and_unload().eval()


def patches_between(ancestor: Path, path: Path) -> list[Any] | None:
    """Return the patches that make one model out of another, in order; None if other updates do.

    Args:
        ancestor: The folder of the one.
        path: Of the other, beside it.
    """
    from tnt.patches import artifact

    found: list[Any] = []
    while path.name != ancestor.name:
        if not (path / PATCH_FILE).exists():
            return None
        found.insert(0, artifact.read(path / PATCH_FILE))
        path = path.parent / read_json(path / PARENT_FILE, "parent")["parent"]
    return found


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a model folder; a patch has its parent's."""
    from transformers import AutoTokenizer

    if not path.is_dir():
        raise ValueError(f"{path} is not a model folder. Run `dvc repro`, which makes it.")
    if (path / PATCH_FILE).exists():
        return load_tokenizer(path.parent / read_json(path / PARENT_FILE, "parent")["parent"])
    with readable(f"The tokenizer of {path}", MAKE_AGAIN):
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)


def save(model: Any, tokenizer: Any, path: Path) -> None:
    """Save a model and its tokenizer as a folder that plain `from_pretrained` loads."""
    _fresh(path)
    model.save_pretrained(path)
    save_tokenizer(tokenizer, path)


def save_adapter(adapted: Any, tokenizer: Any, path: Path, *, parent: str, sha256: str) -> None:
    """Save only a LoRA adapter, with the name and hash of the parent it belongs on."""
    _fresh(path)
    adapted.peft_config["default"].base_model_name_or_path = parent
    adapted.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)  # peft's empty model card
    save_tokenizer(tokenizer, path)
    _save_link(path, parent, sha256)


def save_patch(neurons: Any, path: Path, *, parent: str, sha256: str) -> None:
    """Save only a patch, with the name and hash of the parent it belongs on."""
    from tnt.patches import artifact

    _fresh(path)
    artifact.write(neurons, path / PATCH_FILE)
    _save_link(path, parent, sha256)


def _save_link(path: Path, parent: str, sha256: str) -> None:
    link = {"parent": parent, "sha256": sha256}
    (path / PARENT_FILE).write_text(json.dumps(link, indent=1) + "\n")


def save_tokenizer(tokenizer: Any, path: Path) -> None:
    """Save a tokenizer, but not how it was loaded: offline or not, its bytes are the same."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(path)


def copy_parent(parent: Path, path: Path) -> None:
    """Copy the parent's folder bytewise: the model of a round without a single flag."""
    _fresh(path)
    shutil.copytree(parent, path, dirs_exist_ok=True)


def in_weights(model: Any) -> Any:
    """Return a model with the patches beside it written into its weights, for training those."""
    from tnt.patches.neurons import patches_of

    if not patches_of(model):
        return model
    from tnt.patches.written import written

    return written(model)


def is_encoder_decoder(model: Any) -> bool:
    """Whether the prompt goes to an encoder (T5) rather than before the completion (causal)."""
    return bool(model.config.is_encoder_decoder)


def decoder_start(config: Any) -> int | None:
    """Return the token that an encoder-decoder model's decoder starts from; None for a causal."""
    return config.decoder_start_token_id if config.is_encoder_decoder else None


SHORTEST = 8
"""Tokens of a beginning that is worth reading once for all."""


def shared_beginning(model: Any, rows: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """Return how many tokens all rows begin with, and a cache that holds them for so many rows.

    A chat template and a prompt set's own text are half of many a prompt. Where a model keeps more
    of the past than keys and values of every token, nothing is shared: 0, and no cache.

    Args:
        model: That is to read the rows.
        rows: Ids of at least a token each; of every row at least one is left to be read.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    columns = itertools.takewhile(lambda ids: len({*ids}) == 1, zip(*rows, strict=False))
    length = min(sum(1 for _ in columns), min(map(len, rows)) - 1)
    if is_encoder_decoder(model) or len(rows) < 2 or length < SHORTEST:
        return 0, None
    begun = torch.tensor([rows[0][:length]], device=model.device)
    with torch.no_grad():
        cache = model(input_ids=begun, use_cache=True, logits_to_keep=1).past_key_values
    if type(cache) is not DynamicCache or any(type(x) is not DynamicLayer for x in cache.layers):
        return 0, None
    cache.batch_repeat_interleave(len(rows))
    return length, cache


def end_ids(model: Any) -> list[int]:
    """Return the tokens that end a completion.

    Raises:
        ValueError: One is no number.
    """
    end = model.generation_config.eos_token_id
    if end is None:
        end = getattr(model.config.get_text_config(), "eos_token_id", None)
    ends = end if isinstance(end, list) else [] if end is None else [end]
    if not all(isinstance(token, int) for token in ends):
        raise ValueError(f"eos_token_id is {end!r}. Give the token's number in config.json.")
    return ends


def context_length(config: Any) -> int | None:
    """Return how many tokens the model can attend to, or None if it sets no bound (T5)."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if length is None or length > 0 else None  # XLNet says -1


def refuse_unknown(model: Any, rows: Iterable[tuple[str, Sequence[int]]]) -> None:
    """Raise if a row has no token, or one that the model has no embedding for.

    Args:
        model: Which is to read them.
        rows: What each is called, and its token ids.
    """
    size = model.get_input_embeddings().num_embeddings
    for name, ids in rows:
        if not ids:
            raise ValueError(f"{name!r} has no token. Check the prompt set's template.")
        if not 0 <= min(ids) <= max(ids) < size:
            raise ValueError(
                f"{name!r} has the token {max(ids) if max(ids) >= size else min(ids)}, but the "
                f"model knows {size} tokens: its tokenizer is another model's. Correct `base`."
            )


def use(runtime: RuntimeParams) -> str:
    """Set torch up as the runtime params say and return the device, `cpu` or `cuda`.

    Raises:
        ValueError: CUDA is asked for and absent.
    """
    import torch

    if runtime.threads != "auto":
        torch.set_num_threads(runtime.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device is 'cuda', but torch finds no GPU. Set it to cpu or auto.")
    return available_device() if runtime.device == "auto" else runtime.device


def available_device() -> str:
    """Return `cuda` where there is a GPU, `cpu` elsewhere: what `auto` is."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Foreign(ValueError):
    """Weights that belong to another class of models."""


@contextlib.contextmanager
def readable(what: str, remedy: str) -> Iterator[None]:
    """Say in one sentence why something cannot be loaded; transformers raises whatever it likes."""
    try:
        yield
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        if "trust_remote_code" in said:
            said = "it needs code of its own, which is never run here."
            remedy = "Take a model that transformers itself has the code of."
        if isinstance(error, Foreign):
            remedy = "Take a whole language model, saved by transformers, or mend the file."
        said = " ".join(said.split()).rstrip(".")
        raise ValueError(f"{what} cannot be loaded: {said}. {remedy}") from error


def from_pretrained(folder: str, **source: Any) -> Any:
    """Return a model in float32, without code of its own and without anything pickled."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    generation = Path(folder, "generation_config.json")
    if generation.is_file():  # transformers goes on without one that it cannot read
        json.loads(generation.read_text(encoding="utf-8"))
    source["trust_remote_code"] = False
    config = AutoConfig.from_pretrained(folder, **source)
    auto: Any = AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = AutoModelForSeq2SeqLM
        # T5's fused attention takes another kernel where a gradient is wanted, and an unchanged
        # model would then differ from itself by round-off.
        source["attn_implementation"] = "eager"
    source |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # to say it ourselves
    model, loaded = auto.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, **source
    )
    _refuse_foreign(model, loaded)
    for name, value in PLAIN_OUTPUTS.items():
        if hasattr(model.config, name):
            setattr(model.config, name, value)
    return model


PLAIN_OUTPUTS = {
    "output_router_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}
"""What a config may ask a model to return, and a pass of it here does not."""


def _refuse_foreign(model: Any, loaded: Mapping[str, Any]) -> None:
    """Raise if weights of a model are random, or weights of its checkpoint are left out."""
    ways = {
        "missing_keys": "are not in the checkpoint and would be random",
        "mismatched_keys": "have other shapes in the checkpoint and would be random",
        "unexpected_keys": "of the checkpoint have no place in it",
    }
    for key, what in ways.items():
        names = sorted(name if isinstance(name, str) else name[0] for name in loaded[key])
        if names:
            raise Foreign(
                f"its weights are not those of a {type(model).__name__}: {len(names)} {what}, "
                f"{names[0]!r} for one"
            )


def _fresh(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def decode(tokenizer: Any, ids: Sequence[int], *, skip_special: bool = True) -> str:
    """Return the text of generated ids, as every completion has it."""
    return tokenizer.decode(
        ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
    )


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length, longest first; ties keep their order."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]

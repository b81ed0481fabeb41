"""Language encoders: a prompt -> its full sequence of token embeddings.

In evaluation every prompt is encoded by itself and without padding, so an embedding depends on no other prompt.
Embeddings are cached per prompt while the weights cannot change.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from boltzformer.errors import InputError

from .definition import remember_definition

logger = logging.getLogger(__name__)

CACHED_PROMPTS = 4096
REFERENCE_PROMPTS = (
    "left kidney in abdominal CT",
    "right kidney",
    "tumor in the liver",
    "spleen",
    "pancreas in abdominal MR",
    "lung nodule in chest CT",
    "left lung, upper lobe",
    "right main bronchus",
    "aorta",
    "heart, left ventricle",
    "brain tumor in head MR",
    "multiple sclerosis lesion",
    "brainstem",
    "optic nerve, right",
    "left parotid gland in head and neck CT",
    "R parotid",
    "L submandibular gland",
    "mandible",
    "thyroid",
    "larynx, voice box",
    "spinal cord",
    "cervical vertebra",
    "lymph node on the left side of the neck",
    "esophagus",
    "stomach",
    "colon cancer",
    "urinary bladder",
    "prostate in pelvic MR",
    "outline the femur on the right side",
    "small bright spot in the bone",
    "metastasis",
    "a cyst in the left ovary",
)
"""By whose tokens a standardised tower is centred and scaled; changing them changes every network trained so."""


@dataclass
class TextFeatures:
    """Token embeddings of P prompts.

    Attributes:
        tokens: (P, N_T, width), zero at padding.
        mask: True at real tokens, (P, N_T).
        lengths: number of real tokens of each prompt, known on the host without asking the device.
    """

    tokens: Tensor
    mask: Tensor
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: slice) -> TextFeatures:
        lengths = self.lengths[index]
        longest = max(lengths)
        return TextFeatures(self.tokens[index, :longest], self.mask[index, :longest], lengths)


class TextEncoder(nn.Module, ABC):
    """Base of the language encoders: caching, padding, freezing.

    Args:
        width: features of a token embedding.
        frozen: keep the weights as they are and cache every prompt's embedding.
    """

    standardised = False
    """Whether the features of the tokens have mean 0 and variance 1."""

    def __init__(self, width: int, frozen: bool) -> None:
        super().__init__()
        self.width = width
        self.frozen = frozen
        self._cache: dict[str, Tensor] = {}
        self._cached_version = -1

    @abstractmethod
    def tokenise(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> token ids (P, context) and a mask that is True at real tokens, on the CPU."""

    @abstractmethod
    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (P, context) -> embeddings (P, context, width)."""

    def forward(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts.

        Args:
            prompts: non-empty strings.

        Returns:
            Embeddings of the real tokens, padded with zeros to the longest prompt.

        Raises:
            InputError: a prompt is empty or not text.
        """
        check_prompts(prompts)
        if torch.is_grad_enabled() and not self.frozen:
            return self._encode_as_batch(prompts)
        with torch.no_grad():
            return _pad({prompt: self._cached(prompt) for prompt in dict.fromkeys(prompts)}, prompts)

    @torch.no_grad()
    def together(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts in one batch, many times as fast as one by one.

        A prompt's last bits depend on the others then: good for distances between prompts, not for masks.

        Args:
            prompts: see `forward`.
        """
        check_prompts(prompts)
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self._encode_as_batch(prompts)

    def train(self, mode: bool = True) -> TextEncoder:
        """As in torch, but a frozen encoder stays in evaluation."""
        return super().train(mode and not self.frozen)

    def freeze_if_asked(self) -> None:
        """Stop gradients of a frozen encoder; called at the end of a subclass's constructor."""
        if self.frozen:
            self.requires_grad_(False)
            self.eval()

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._cache.clear()  # a move to another device or type
        return super()._apply(fn, recurse)

    def _cached(self, prompt: str) -> Tensor:
        version = sum(parameter._version for parameter in self.parameters())  # rises with every change in place
        if version != self._cached_version or len(self._cache) >= CACHED_PROMPTS:
            self._cache.clear()
            self._cached_version = version
        if prompt not in self._cache:
            with torch.autocast(next(self.parameters()).device.type, enabled=False):
                self._cache[prompt] = self._embed_cut([prompt])[0]
        return self._cache[prompt]

    def _encode_as_batch(self, prompts: Sequence[str]) -> TextFeatures:
        unique = list(dict.fromkeys(prompts))
        return _pad(dict(zip(unique, self._embed_cut(unique), strict=True)), prompts)

    def _embed_cut(self, prompts: Sequence[str]) -> list[Tensor]:
        """Each prompt's own tokens, (N, width), encoded together at the length of the longest."""
        ids, mask = self.tokenise(prompts)
        device = next(self.parameters()).device
        lengths = mask.sum(1).tolist()
        longest = max(lengths)
        on_device = [x[:, :longest].to(device, non_blocking=True) for x in (ids, mask)]  # without waiting for it
        return [tokens[:n] for tokens, n in zip(self.embed(*on_device), lengths, strict=True)]


@remember_definition
class ClipTextEncoder(TextEncoder):
    """CLIP-like text tower: byte-pair vocabulary of 49408, causal transformer (the paper's UniCL has this form).

    The tower and the tokenizer are open_clip's; the vocabulary is part of that package, so nothing is downloaded.

    Args:
        layers: transformer layers.
        width: features; a multiple of `heads`.
        heads: attention heads.
        context_length: tokens of a prompt at most, start and end included; longer prompts are cut with a warning.
        weights: local file with a CLIP checkpoint or its text tower (open_clip's keys, with or without a prefix such
            as "text."); None starts at random.
        frozen: see `TextEncoder`.
    """

    def __init__(
        self,
        layers: int = 12,
        width: int = 512,
        heads: int = 8,
        context_length: int = 77,
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        # here, as the sentence encoder does without
        from open_clip.tokenizer import SimpleTokenizer
        from open_clip.transformer import TextTransformer

        super().__init__(width, frozen)
        self.tokenizer = SimpleTokenizer(context_length=context_length)
        self.tower = TextTransformer(
            context_length=context_length,
            vocab_size=self.tokenizer.vocab_size,
            width=width,
            heads=heads,
            layers=layers,
            output_dim=None,
            pool_type="none",
        )
        if weights:
            self._load(Path(weights))
        self.freeze_if_asked()

    def tokenise(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder`; ids end with the end-of-text token."""
        ids = self.tokenizer(list(prompts))
        for prompt in prompts:
            if len(self.tokenizer.encode(prompt)) > self.tokenizer.context_length - 2:
                logger.warning("Prompt %r is cut to %d tokens.", prompt, self.tokenizer.context_length - 2)
        lengths = (ids == self.tokenizer.eot_token_id).int().argmax(1) + 1
        return ids, torch.arange(ids.shape[1])[None] < lengths[:, None]

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `TextEncoder`. Attention is causal, so what follows a prompt cannot reach it."""
        length = ids.shape[1]  # the tower's own forward pass takes its full context only
        tokens = self.tower.token_embedding(ids) + self.tower.positional_embedding[:length]
        tokens = self.tower.transformer(tokens, attn_mask=self.tower.attn_mask[:length, :length])
        return self.tower.ln_final(tokens)

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"Text encoder weights {path} not found; correct `weights` or leave it out.")
        loaded = load_state_dict(str(path))
        for prefix in ("", "text.", "tower.", "text_encoder.tower."):
            part = {key: loaded[prefix + key] for key in self.tower.state_dict() if prefix + key in loaded}
            if len(part) == len(self.tower.state_dict()):
                self.tower.load_state_dict(part)
                return
        raise InputError(
            f"{path} holds no CLIP text tower of {len(self.tower.transformer.resblocks)} layers; "
            "set `layers` and `width` as in the file, or give another file."
        )


@remember_definition
class HuggingFaceTextEncoder(TextEncoder):
    """Any Hugging Face text encoder, from a local folder or by name.

    Args:
        name: a folder with config, tokenizer and weights, or a model's name on the hub.
        context_length: tokens at most.
        pretrained: False takes the architecture and tokenizer alone and starts at random.
        frozen: see `TextEncoder`. A pretrained, frozen tower stays in its folder: its weights are no part of the
            network's state, so that a checkpoint holds what was trained and no more.
        standardised: give the sum of the first and the last layer's tokens, each centred and scaled by its mean and
            standard deviation over `REFERENCE_PROMPTS`. A sentence encoder's tokens share most of their length, and the
            last layer's of "left" and "right" are alike (cosine 0.83): without this a decoder learns sides late or
            never. Needs a frozen tower.

    Raises:
        InputError: the folder or name cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        context_length: int = 77,
        pretrained: bool = True,
        frozen: bool = True,
        standardised: bool = False,
    ) -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer  # slow to import, and only needed here

        try:
            config = AutoConfig.from_pretrained(name)
            tokenizer = AutoTokenizer.from_pretrained(name)
            with _quiet_transformers():
                if pretrained:
                    model = AutoModel.from_pretrained(name, dtype=torch.float32)
                else:
                    model = AutoModel.from_config(config)
        except Exception as error:  # transformers raises OSError, ValueError and more for the same user mistake
            raise InputError(
                f"Text encoder {name!r} cannot be loaded ({str(error).splitlines()[0]}); "
                "give a folder that holds config.json, the tokenizer's files and the weights."
            ) from error
        model = getattr(model, "text_model", model)  # CLIP and its like
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # unused here: its weights would never get a gradient
        super().__init__(width=model.config.hidden_size, frozen=frozen)
        self.tokenizer = tokenizer
        if standardised and not frozen:
            raise InputError("a text encoder that learns cannot be standardised: set frozen, or leave standardised out")
        self.context_length = context_length
        self.standardised = standardised
        self.tower = model
        self.freeze_if_asked()
        self._statistics = self._measure() if standardised else None
        if frozen and pretrained:
            self.register_state_dict_post_hook(_leave_tower_out)
            self.register_load_state_dict_pre_hook(_tower_is_there)

    def tokenise(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `TextEncoder`; padded on the right whatever the tokenizer's own side."""
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        for prompt in prompts:
            if len(self.tokenizer(prompt)["input_ids"]) > self.context_length:
                logger.warning("Prompt %r is cut to %d tokens.", prompt, self.context_length)
        batch = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.context_length,
            truncation=True,
            padding_side="right",
            return_tensors="pt",
        )
        return batch["input_ids"], batch["attention_mask"].bool()

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `TextEncoder`."""
        if self._statistics is None:
            return self.tower(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        layers = zip(self._first_and_last(ids, mask), self._statistics, strict=True)
        first, last = ((tokens - mean.to(tokens)) / std.to(tokens) for tokens, (mean, std) in layers)
        return (first + last) / 2**0.5

    def _first_and_last(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        found = self.tower(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        return found.hidden_states[0], found.last_hidden_state

    @torch.no_grad()
    def _measure(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation of either layer's features over the tokens of the reference prompts."""
        ids, mask = self.tokenise(REFERENCE_PROMPTS)
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        real = [tokens[mask] for tokens in self._first_and_last(ids, mask)]
        return [(tokens.mean(0), tokens.std(0).clamp(min=1e-3)) for tokens in real]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without a bar, and without the report on the pooler's weights, which are thrown away here."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _leave_tower_out(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}tower.")]:
        del state[key]


def _tower_is_there(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """What the state leaves out is taken as it is, so that loading can be strict about the rest."""
    tower = cast(HuggingFaceTextEncoder, module).tower
    for key, value in tower.state_dict().items():
        state.setdefault(f"{prefix}tower.{key}", value)


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise `InputError` unless `prompts` is a non-empty sequence of non-empty strings."""
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"Prompts must be a non-empty list of strings, not {prompts!r}.")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"A prompt must be text, not {type(prompt).__name__} ({prompt!r}).")
        if not prompt.strip():
            raise InputError("A prompt is empty; say what to segment, such as 'lung nodule in chest CT'.")


def _pad(rows: Mapping[str, Tensor], prompts: Sequence[str]) -> TextFeatures:
    """The rows of prompts, of which one may come several times: a batch repeats its prompts."""
    tokens = pad_sequence(list(rows.values()), batch_first=True)
    lengths = tuple(len(rows[prompt]) for prompt in prompts)
    place = {prompt: number for number, prompt in enumerate(rows)}
    order = [place[prompt] for prompt in prompts]
    # from pinned memory a copy does not make the host wait for the device
    numbers = torch.tensor([order, lengths])
    numbers = (numbers.pin_memory() if tokens.is_cuda else numbers).to(tokens.device, non_blocking=True)
    mask = torch.arange(tokens.shape[1], device=tokens.device) < numbers[1][:, None]
    return TextFeatures(tokens[numbers[0]], mask, lengths)

"""What a LoRA run needs before it starts: memory by part and arithmetic per step, found without weights.

A step of training (forward, backward, optimizer) is run on a model without values, see
:mod:`genkit.training.lora.footprint`. Blocks that repeat are run twice and thrice, and the rest is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from genkit.attention.method import Density
from genkit.errors import UnsupportedError, escaped, shortened
from genkit.families.training.base import AUDIO, IMAGE, Media, Tensors, Training
from genkit.pipelines.memory import free, most_resident, resident
from genkit.training.data.batch import Batch
from genkit.training.data.folder.buckets import Bucket
from genkit.training.lora.footprint import Footprint, counting
from genkit.training.lora.task import LoraTask

#: Blocks of a list that are run; more of the same are counted.
_RUN = 2
#: What an accelerator's driver and libraries hold, and what lies between tensors, in bytes.
_ACCELERATOR = 1.5e9
#: Bytes per number of quantised layers, with their scales.
QUANTIZED = {"bitsandbytes_8bit": 1.03, "bitsandbytes_4bit": 0.56, "quanto": 1.03, "torchao": 1.03}
_SOUND_RATE = 16_000
_LEVEL = 0.5
#: In main memory, what lies between the tensors of a step and is not given back: measured on toy-video, glibc.
_GAPS = 2.3


@dataclass(frozen=True)
class Memory:
    """Bytes of a run by part.

    Args:
        weights: of the denoiser that is trained, frozen.
        encoders: weights of all other parts: autoencoders, text encoders, a second denoiser.
        adapter: of the adapter, its gradients, its average and the optimizer's state.
        activations: the most that a step needs beside them.
        encoding: the most that encoding a sample or a caption needs beside the weights.
        overhead: program and libraries: on the CPU what the process has now, on an accelerator a usual amount.
        encoders_stay: whether encoders are there in training too, for validation samples.
    """

    weights: float
    encoders: float
    adapter: float
    activations: float
    encoding: float
    overhead: float
    encoders_stay: bool = False

    @property
    def caching(self) -> float:
        """The most while media and captions are encoded."""
        return self.weights + self.encoders + self.encoding + self.overhead

    @property
    def training(self) -> float:
        """The most in a step."""
        stay = self.encoders if self.encoders_stay else 0.0
        return self.weights + stay + self.adapter + self.activations + self.overhead

    @property
    def peak(self) -> float:
        """The most in all."""
        return max(self.caching, self.training)


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Args:
        memory: by part.
        saved: the activations' bytes with gradient checkpointing, whether it is asked for or not; None for a model
            without it.
        plain: the same without.
        flops: floating-point operations of a micro-batch of the largest size, forward and backward.
        tokens: latent positions of its main stream, all samples together.
        densities: of attention methods' calls, by site.
        size: what was estimated: the largest bucket.
    """

    memory: Memory
    saved: float | None
    plain: float
    flops: float
    tokens: int
    size: Bucket
    densities: Mapping[str, Density | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Step:
    """One run of a step: see :class:`Estimate`."""

    activations: float
    state: float
    flops: float
    tokens: int
    densities: Mapping[str, Density | None]


@dataclass(frozen=True)
class Subject:
    """What is estimated.

    Args:
        pipeline: without values, the adapter on its denoiser, see :func:`genkit.pipelines.skeleton.skeleton`.
        training: the record of its family.
        task: the loss, on the same denoiser.
        size: of the samples.
        count: samples of a micro-batch.
        fps: of clips.
        slots: text tokens.
        precision: of the products: "no", "bf16" or "fp16".
        methods: attention methods that are patched in.
        optimizer: makes the optimizer of named parameters.
        device: type of the device that is trained on.
        quantization: of the denoiser.
        encoders_stay: see :class:`Memory`.
        checkpointing: whether gradients are checkpointed.
    """

    pipeline: Any
    training: Training
    task: LoraTask
    size: Bucket
    count: int
    fps: float | None
    slots: int
    precision: str
    methods: Sequence[Any]
    optimizer: Any
    device: str = "cpu"
    quantization: str | None = None
    encoders_stay: bool = False
    checkpointing: bool = False

    @property
    def adapter(self) -> Any:
        """What is trained, on its denoiser."""
        return self.task.adapter


def estimate(subject: Subject) -> Estimate:
    """Memory and arithmetic of a run; changes nothing that lasts.

    Raises:
        UnsupportedError: a model that cannot be run without values.
    """
    try:
        return _estimated(subject)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        said = shortened(escaped(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__))
        raise UnsupportedError(
            f"the memory of {type(subject.pipeline).__name__} cannot be estimated: without values it does not run "
            f"({said})"
        ) from error


def call_bytes(subject: Subject, rows: int) -> float:
    """The most that a call of the denoiser with ``rows`` samples needs beside its weights, without a gradient."""
    asked = replace(subject, count=rows)
    _, batch = encoded(asked)
    with counting(subject.methods) as (footprint, _), torch.no_grad():
        footprint.hold((*subject.task.network.parameters(), *subject.task.network.buffers()))
        begin = footprint.mark()
        generators = [torch.Generator().manual_seed(0) for _ in range(rows)]
        subject.task.errors(batch, torch.full((rows,), _LEVEL), generators)
        needed = float(footprint.peak - begin)
    return (_GAPS if subject.device == "cpu" else 1.0) * needed


def _estimated(subject: Subject) -> Estimate:
    encoding, batch = encoded(subject)
    subject.task.check_shift(batch)
    with _as_computed(subject):
        plain = _whole(subject, batch, False)
        offered = getattr(subject.adapter.model, "_supports_gradient_checkpointing", False)
        saved = _whole(subject, batch, True) if offered else None
    chosen = saved if subject.checkpointing and saved is not None else plain
    trained = sum(value.numel() for value in subject.task.parameters() if value.requires_grad)
    weights, encoders = _weights(subject)
    gaps = _GAPS if subject.device == "cpu" else 1.0
    memory = Memory(
        weights=weights,
        encoders=encoders,
        adapter=12.0 * trained + chosen.state,  # weights, gradients, average
        activations=gaps * chosen.activations + _copies(subject),
        encoding=gaps * encoding,
        overhead=resident() if subject.device == "cpu" else _ACCELERATOR,
        encoders_stay=subject.encoders_stay,
    )
    return Estimate(
        memory, None if saved is None else saved.activations, plain.activations, chosen.flops, chosen.tokens,
        subject.size, chosen.densities,
    )  # fmt: skip


def most_used(device: torch.device) -> float:
    """The most memory that this process has had, in bytes: of the accelerator, or of main memory."""
    return float(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else most_resident()


def there_is(device: torch.device) -> float | None:
    """Bytes of memory that a run on a device may have: what is free and what this process has already; None where
    the system does not tell."""
    left = free(str(device))
    if left is None:
        return None
    return left + (float(torch.cuda.memory_reserved(device)) if device.type == "cuda" else resident())


def _weights(subject: Subject) -> tuple[float, float]:
    """Bytes of the denoiser that is trained and of everything else."""
    own, other = 0.0, 0.0
    for part in subject.pipeline.components.values():
        if not isinstance(part, nn.Module):
            continue
        trained = {id(value) for value in part.parameters() if value.requires_grad}
        size = sum(_bytes(value) for value in (*part.parameters(), *part.buffers()) if id(value) not in trained)
        if part is subject.adapter.model:
            if subject.quantization is not None:
                linear = [each.weight for each in part.modules() if isinstance(each, nn.Linear)]
                linear = [value for value in linear if id(value) not in trained]
                size += sum(QUANTIZED[subject.quantization] * value.numel() - _bytes(value) for value in linear)
            own += size
        else:
            other += size
    return own, other


def _bytes(value: torch.Tensor) -> float:
    return float(value.numel() * value.element_size())


def encoded(subject: Subject) -> tuple[float, Batch]:
    """The most that encoding one sample and one caption needs, and a batch without values."""
    pipeline, training = subject.pipeline, subject.training
    with counting() as (footprint, _), torch.no_grad():
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                footprint.hold((*part.parameters(), *part.buffers()))
        before = footprint.mark()
        media: Tensors = training.encode(pipeline, _media(subject), None)
        latents = {name: media.pop(name) for name in training.streams if name in media}
        text = training.text(pipeline, ["a"], subject.slots)[0]
        needed = footprint.peak - before

        def stacked(values: Tensors) -> Tensors:
            return {
                name: torch.empty((subject.count, *value.shape), dtype=value.dtype, device="meta")
                for name, value in values.items()
            }

        clean = {name: value.float() for name, value in stacked(latents).items()}
        batch = Batch(clean, stacked(media), stacked(text), {}, subject.fps)
    return needed, batch


def _media(subject: Subject) -> Media:
    """A sample of the size without values, with everything that the family needs."""
    size, training = subject.size, subject.training
    pixels = torch.empty(3, size.frames, size.height, size.width, device="meta")
    given = {name: pixels[:, :1] for name in training.needs if name != AUDIO}
    picture = training.streams[0] == IMAGE
    sound = None
    if AUDIO in training.streams and subject.fps:
        sound = torch.zeros(2, round(size.frames / subject.fps * _SOUND_RATE))
    return Media(
        pixels, None if picture else subject.fps, sound, None if sound is None else _SOUND_RATE, given,
        (size.height, size.width),
    )  # fmt: skip


def _whole(subject: Subject, batch: Batch, checkpointing: bool) -> _Step:
    """A step of the whole denoiser: blocks that repeat are run :data:`_RUN` times and once more."""
    network = subject.adapter.model
    lists = _repeated(network)
    counts = dict.fromkeys(lists, _RUN)
    base = _run(subject, batch, checkpointing, counts)
    more = [
        (len(blocks) - _RUN, _run(subject, batch, checkpointing, {**counts, name: _RUN + 1}))
        for name, blocks in lists.items()
    ]

    def total(name: str) -> float:
        begin = getattr(base, name)
        return begin + sum(times * (getattr(each, name) - begin) for times, each in more)

    densities = {name: value for _, each in [(0, base), *more] for name, value in each.densities.items()}
    return _Step(total("activations"), total("state"), total("flops"), base.tokens, densities)


def _repeated(network: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of more than three blocks of one kind."""
    found = {}
    for name, module in network.named_children():
        if isinstance(module, nn.ModuleList) and len(module) > _RUN + 1:
            kinds = {(type(block), tuple(value.shape for value in block.parameters())) for block in module}
            if len(kinds) == 1:
                found[name] = module
    return found


def _run(subject: Subject, batch: Batch, checkpointing: bool, counts: Mapping[str, int]) -> _Step:
    network, task = subject.adapter.model, subject.task
    kept = {name: getattr(network, name) for name in counts}
    before = getattr(network, "gradient_checkpointing", False)
    modes = {part: part.training for part in network.modules()}
    try:
        for name, count in counts.items():
            setattr(network, name, kept[name][:count])
        if checkpointing:
            network.enable_gradient_checkpointing()
            network.train()
        with counting(subject.methods) as (footprint, densities):
            return _step(subject, batch, footprint, densities, task)
    finally:
        if checkpointing and not before:
            network.disable_gradient_checkpointing()
        for name, blocks in kept.items():
            setattr(network, name, blocks)
        for part, mode in modes.items():
            part.training = mode


def _step(subject: Subject, batch: Batch, footprint: Footprint, densities: dict, task: LoraTask) -> _Step:
    """Forward, backward and the optimizer once."""
    named = [(name, value) for name, value in task.named_parameters() if value.requires_grad]
    footprint.hold((*task.network.parameters(), *task.network.buffers(), *(value for _, value in named)))
    for tensors in (batch.latents, batch.media, batch.text):
        footprint.hold(tensors.values())
    optimizer = subject.optimizer(named)
    begin = footprint.mark()
    level = torch.full((subject.count,), _LEVEL)
    errors = task.errors(batch, level, [torch.Generator().manual_seed(0) for _ in range(subject.count)])
    torch.autograd.backward([torch.stack([error.mean() for error in errors.values()]).sum()])
    peak = footprint.peak
    gradients = sum(_bytes(value.grad) for _, value in named if value.grad is not None)
    after = footprint.mark()
    optimizer.step()
    state = footprint.live - after
    for _, value in named:
        value.grad = None
    main = next(iter(batch.latents.values()))
    tokens = main[:, 0].numel()
    return _Step(
        max(peak - begin - gradients, footprint.peak - after - state), state, footprint.flops, tokens, densities
    )


@contextmanager
def _as_computed(subject: Subject) -> Iterator[None]:
    """Make the denoiser hold what mixed precision would make it hold: products in the smaller type.

    Under autocast a frozen layer computes in the smaller type, and every adapter casts its own copy of the inputs.
    """
    network = subject.adapter.model
    small = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(subject.precision)
    if small is None:
        yield
        return
    kept = [(value, value.data) for value in subject.task.parameters() if value.dtype == torch.float32]
    layers = [part for part in network.modules() if hasattr(part, "_cast_input_dtype")]
    for value, data in kept:
        value.data = data.to(small)
    for layer in layers:
        layer._cast_input_dtype = lambda x, dtype: x.clone()
    try:
        yield
    finally:
        for value, data in kept:
            value.data = data
        for layer in layers:
            del layer._cast_input_dtype


def _copies(subject: Subject) -> float:
    """Bytes of frozen weights in the smaller type, which autocast keeps for the backward pass of a float32 model."""
    if subject.precision == "no":
        return 0.0
    layers = [part for part in subject.adapter.model.modules() if isinstance(part, nn.Linear)]
    wide = [layer.weight for layer in layers if not layer.weight.requires_grad and layer.weight.dtype == torch.float32]
    return 2.0 * sum(value.numel() for value in wide)

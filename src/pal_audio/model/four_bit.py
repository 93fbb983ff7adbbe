"""Linear modules whose weights are kept in 4 bits: NormalFloat in blocks of 64, the blocks' scales quantised once more.

All that such a module holds are parameters of integer type that never train, so they are saved, loaded, moved and counted as any
other, and no cast of the model's dtype reaches them. The arithmetic is that of bitsandbytes.

Source: QLoRA, arXiv 2305.14314, sections 2 and 3; block sizes 64 and 256 are the paper's. That the float constants are kept as
bits is our choice.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from pal_audio.errors import PalError
from pal_audio.integration.key_values import find_layers

_BLOCK = 64  # weights that share a scale
_NESTED_BLOCK = 256  # scales that share a scale
_NUM_CODES = 256  # of an 8-bit scale


def bitsandbytes_found() -> bool:
    """Whether bitsandbytes can be imported."""
    return importlib.util.find_spec("bitsandbytes") is not None


def import_bitsandbytes() -> Any:
    """bitsandbytes, imported without a word and without its fetching a kernel, which it would do where `kernels` is installed.

    Raises:
        PalError: it is not installed.
    """
    if not bitsandbytes_found():
        raise PalError("adapter: type qlora needs bitsandbytes: pip install 'pal-audio[qlora]', or use lora")
    if "bitsandbytes" not in sys.modules:
        with _no_kernels():
            import bitsandbytes
    else:
        import bitsandbytes
    return bitsandbytes


@contextmanager
def _no_kernels() -> Iterator[None]:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")  # it warns where AVX512-BF16 is there and `kernels` is not
    level, kernels = logger.level, sys.modules.get("kernels")
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # import's own mark for "there is none"
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


class FourBitLinear(nn.Linear):
    """A linear module with 4-bit weights; it computes as `nn.Linear` does, in its inputs' dtype or that of autocast.

    Raises:
        PalError: the number of inputs is no multiple of 64: a block would lie in two rows, and bitsandbytes 0.50 reads those
            wrongly on a CPU.

    Attributes:
        weight: (out * in / 2, 1) uint8, two weights a byte.
        absmax: (blocks,) uint8, the scale of each block.
        constants: int32, the bits of float32 numbers: mean of the scales, what each of their 256 codes means, and the
            scale of each 256 scales.
        bias: as it was.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        import_bitsandbytes()
        if in_features % _BLOCK:
            raise PalError(
                f"adapter: type qlora needs linear modules of a multiple of {_BLOCK} inputs, one has {in_features}; use lora"
            )
        nn.Module.__init__(self)  # nn.Linear's would make the weight in full
        self.in_features, self.out_features = in_features, out_features
        num_blocks = in_features * out_features // _BLOCK
        num_constants = 1 + _NUM_CODES - (-num_blocks // _NESTED_BLOCK)
        self.weight = _frozen(torch.empty(in_features * out_features // 2, 1, dtype=torch.uint8, device=device))
        self.absmax = _frozen(torch.empty(num_blocks, dtype=torch.uint8, device=device))
        self.constants = _frozen(torch.empty(num_constants, dtype=torch.int32, device=device))
        self.bias = _frozen(torch.empty(out_features, dtype=dtype, device=device)) if bias else None  # type: ignore[assignment]
        self._is_hf_initialized = True  # transformers would fill a weight that a folder lacks with random floats

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear) -> "FourBitLinear":
        """Quantise a linear module; one without memory gives one without memory, one that bitsandbytes made is taken over."""
        bnb = import_bitsandbytes()
        weight: Any = linear.weight
        made = cls(linear.in_features, linear.out_features, False, "meta")
        made.training = linear.training
        if linear.bias is not None:
            made.bias = _frozen(linear.bias.detach())
        if isinstance(linear, bnb.nn.Linear4bit):
            packed, state = weight.data, weight.quant_state
        elif weight.is_meta:
            return made
        else:
            packed, state = bnb.functional.quantize_4bit(
                weight.detach(), blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
            )
        assert (state.blocksize, state.quant_type, state.state2.blocksize) == (_BLOCK, "nf4", _NESTED_BLOCK)
        constants = torch.cat([state.offset.reshape(1), state.state2.code, state.state2.absmax]).float()
        for name, tensor in (("weight", packed), ("absmax", state.absmax), ("constants", constants.view(torch.int32))):
            assert tensor.shape == getattr(made, name).shape, name
            setattr(made, name, _frozen(tensor))
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        device = inputs.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        import bitsandbytes as bnb

        return bnb.matmul_4bit(inputs.to(dtype), self.weight.t(), self._state(dtype), bias=bias)  # type: ignore[no-any-return]

    @torch.no_grad()
    def dequantised(self) -> nn.Linear:
        """A module of the weights that this one computes with, in float32."""
        import bitsandbytes as bnb

        weight = bnb.functional.dequantize_4bit(self.weight.data, self._state(torch.float32))
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        linear.weight = nn.Parameter(weight.reshape(self.out_features, self.in_features))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().float())
        linear.training = self.training
        return linear

    def _state(self, dtype: torch.dtype) -> Any:
        """What bitsandbytes wants beside the packed weights; they are dequantised to `dtype`."""
        if self.weight.dtype != torch.uint8:
            raise RuntimeError(f"4-bit weights were cast to {self.weight.dtype}; a sharding that casts integers cannot be used")
        from bitsandbytes.functional import QuantState as State

        offset, codes, scales = self.constants.view(torch.float32).split([1, _NUM_CODES, len(self.constants) - 1 - _NUM_CODES])
        nested = State(scales, code=codes, blocksize=_NESTED_BLOCK, dtype=torch.float32)
        shape = torch.Size((self.out_features, self.in_features))
        return State(self.absmax, shape, None, _BLOCK, "nf4", dtype, offset[0], nested)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, 4 bits"


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def quantise(llm: nn.Module) -> None:
    """Quantise every linear module of an LLM's decoder layers, in place, one at a time; those that are stay as they are.

    It comes before an adapter, whose own linear modules it would take too.

    Embeddings, norms, the head, and experts that are no linear modules keep their type.

    Raises:
        PalError: the layers have no linear modules.
    """
    for parent, name, linear in _linears(llm):
        if not isinstance(linear, FourBitLinear):
            setattr(parent, name, FourBitLinear.of(linear))
    if not any(True for _ in _linears(llm)):
        raise PalError(f"adapter: type qlora: the layers of {type(llm).__name__} have no linear modules")


def dequantise(llm: nn.Module) -> list[nn.Linear]:
    """Put float32 modules in place of 4-bit ones, and list them; see `FourBitLinear.dequantised`."""
    made = []
    for parent, name, linear in _linears(llm):
        if isinstance(linear, FourBitLinear):
            made.append(linear.dequantised())
            setattr(parent, name, made[-1])
    return made


def load_four_bit(name: str, revision: str | None) -> Any:
    """The LLM of a hub id or folder with its layers in 4 bits, quantised as it is read: no copy in float32 is ever whole.

    Raises:
        OSError, ValueError: as transformers' `from_pretrained`.
    """
    import_bitsandbytes()
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("it is quantised already; qlora starts from the model in full precision")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    quantise(empty)  # refuses what cannot be before anything is read
    outside = [name for name, module in empty.named_modules() if type(module) is nn.Linear]
    options = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=outside,
    )
    # A GPU takes seconds where two cores take minutes.
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    llm = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
        quantization_config=options, device_map={"": place},
    )  # fmt: skip
    quantise(llm)
    # From here on the weights are plain parameters: transformers must neither guard them nor write of them in the configuration.
    for owner, attributes in (
        (llm, ("hf_quantizer", "is_quantized", "is_loaded_in_4bit", "quantization_method", "hf_device_map")),
        (llm.config, ("quantization_config", "_pre_quantization_dtype")),
    ):
        for attribute in attributes:
            if attribute in vars(owner):
                delattr(owner, attribute)
    return llm.to("cpu")


def unseen_weights(module: nn.Module) -> int:
    """Weights of 4-bit modules beyond the elements that hold them: what a count of elements misses."""
    return sum(
        part.in_features * part.out_features - part.weight.numel() - part.absmax.numel() - part.constants.numel()
        for part in module.modules()
        if isinstance(part, FourBitLinear)
    )


def _linears(llm: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Linear modules of the decoder layers, with the place of each."""
    parents = [module for layer in find_layers(llm) for module in layer.modules()]
    return [
        (parent, name, child) for parent in parents for name, child in parent.named_children() if isinstance(child, nn.Linear)
    ]

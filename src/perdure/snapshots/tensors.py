"""torch tensors as arrays of numpy, and what more torch knows of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, Final

from ..errors import CodecError, ComponentError, IntegrityError
from .arrays import size_of
from .plain import Reducer, update_attributes

__all__ = ["HARMLESS", "TensorWriter", "array_types", "live_objects", "tensors_of"]

_REQUIRES_GRAD: Final = 1
_PARAMETER: Final = 2

# Types of torch that numpy has too. All others are stored as unsigned integers of the same width.
_SHARED: Final = frozenset([
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64", "complex64", "complex128",
])  # fmt: skip


class TensorWriter:
    """Reduces the tensors of one value to arrays.

    Args:
        owners: Gets, by the ids of the arrays, the tensors that they belong to.
    """

    def __init__(self, owners: dict[int, Any]) -> None:
        self._owners = owners
        self._storages: dict[Any, tuple[Any, Any]] = {}  # where a whole tensor is -> its array, and what keeps it there

    def reducers(self) -> dict[type, Reducer]:
        """How things of torch are reduced, if it is loaded, and numpy too."""
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(sys.modules.get("numpy"), "ndarray"):
            return {}
        if not hasattr(getattr(torch, "nn", None), "Parameter"):  # it is half way through its import
            return {}
        return {
            torch.Tensor: self._reduce_tensor,
            torch.nn.Parameter: self._reduce_tensor,
            torch.dtype: lambda value: (torch_constant, ("dtype", str(value).removeprefix("torch."))),
            torch.device: lambda value: (torch_constant, ("device", str(value))),
            torch.Size: lambda value: (torch_constant, ("Size", tuple(value))),
        }

    def _reduce_tensor(self, tensor: Any) -> Any:
        torch = sys.modules["torch"]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (
            tensor.layout is not torch.strided
            or tensor.device.type == "meta"
            or tensor.is_quantized
            or tensor.is_nested
            or (dtype not in _SHARED and tensor.element_size() not in (1, 2, 4))
        ):
            return tensor.__reduce_ex__(5)
        if tensor._backward_hooks:  # noqa: SLF001
            torch.utils.hooks.warn_if_has_hooks(tensor)  # that they are left out, as torch does when it pickles by itself
        plain = tensor.detach().resolve_conj().resolve_neg()
        # Tied weights: other tensors over the very same memory, which all of it belongs to, will be so again.
        whole = plain.nbytes and plain.is_contiguous() and plain.untyped_storage().nbytes() == plain.nbytes
        memory = (plain.device, plain.untyped_storage().data_ptr(), dtype) if whole else None
        array, _ = self._storages.get(memory, (None, None))
        if array is None:
            array = _as_array(plain.cpu(), dtype)
            self._owners[id(array)] = tensor  # an id that nothing else gets, as pickle's memo keeps the array
            if memory is not None:
                self._storages[memory] = array, plain
        flags = _REQUIRES_GRAD * tensor.requires_grad + _PARAMETER * (type(tensor) is torch.nn.Parameter)
        shape = None if array.shape == tuple(tensor.shape) else tuple(tensor.shape)
        call = build_tensor, (array, None if dtype in _SHARED else dtype, shape, flags)
        more = vars(tensor)
        return (*call, more, None, None, tensor_attributes) if more else call


def array_types() -> frozenset[type]:
    """The types of what may get a part of its own."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    return frozenset(
        kind
        for kind in (
            getattr(numpy, "ndarray", None),
            getattr(torch, "Tensor", None),
            getattr(getattr(torch, "nn", None), "Parameter", None),
        )
        if kind is not None
    )


def live_objects(targets: Mapping[str, object]) -> dict[str, object]:
    """What is not copied into the pickles of others: registered objects by name, and the tensors of those that are modules.

    A tensor is called `<component>/<its name in the module>`; names of components have no slash. What others hold of a module
    are its parameters as often as itself: an optimizer that went on with copies of them would train nothing.

    Raises:
        ComponentError: A module does not tell what its tensors are.
    """
    live = dict(targets)
    for name, target in targets.items():
        try:
            live |= {f"{name}/{path}": tensor for path, tensor in tensors_of(target).items()}
        except Exception as error:  # of its own code; or its class never called that of torch
            problem = f"component {name!r} could not tell what its parameters are: {type(error).__name__}: {error}"
            raise ComponentError(problem, component=name, hint="Nothing was done.") from error
    return live


def tensors_of(target: object) -> dict[str, object]:
    """The parameters of a module of torch, by all their names; of anything else none.

    Not its buffers: some of them no state dict has, so what else holds one is to save it.
    """
    module: Any = getattr(getattr(sys.modules.get("torch"), "nn", None), "Module", None)
    if module is None or not issubclass(type(target), module):
        return {}
    # All names, as a snapshot may have either of tied weights; and by the class, as wrappers change names in their own methods.
    return dict(module.named_parameters(target, remove_duplicate=False))


def _as_array(plain: Any, dtype: str) -> Any:
    if dtype in _SHARED:
        return plain.numpy()
    torch = sys.modules["torch"]
    width = plain.element_size()
    signed = plain.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32}[width]).numpy()
    return signed.view(f"u{width}")


# What stands in pickles, by name.


def build_tensor(array: Any, dtype: Any, shape: Any, flags: Any) -> Any:
    """A tensor over the memory of an array, on the CPU."""
    import numpy as np

    torch = _torch()
    if type(array) is not np.ndarray or type(flags) is not int or (shape is not None and size_of(shape) != array.size):
        raise IntegrityError("a tensor is not made of an array")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        if dtype is None:
            tensor = torch.from_numpy(array)
        else:
            tensor = torch.from_numpy(array.view(f"i{array.itemsize}")).view(_constant("dtype", dtype))
        if shape is not None:
            tensor = tensor.view(shape)
        if tensor.numel() != array.size:
            raise ValueError("the widths differ")
        grad = bool(flags & _REQUIRES_GRAD)
        return torch.nn.Parameter(tensor, grad) if flags & _PARAMETER else tensor.requires_grad_(grad)
    except (RuntimeError, TypeError, ValueError) as error:
        raise IntegrityError(f"a tensor does not fit its array: {str(error)[:200]}") from error


def tensor_attributes(tensor: Any, state: Any) -> None:
    """Give a tensor the attributes it had, such as those which make it a buffer."""
    if type(tensor) not in array_types():
        raise IntegrityError(f"a {type(tensor).__qualname__} does not get the attributes of a tensor")
    update_attributes(tensor, state)


def torch_constant(kind: Any, value: Any) -> Any:
    """A dtype, device or size of torch."""
    return _constant(kind, value)


def _constant(kind: str, value: Any) -> Any:
    torch = _torch()
    if kind == "dtype" and isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype):
        return getattr(torch, value)
    if kind == "device" and isinstance(value, str):
        try:
            return torch.device(value)
        except RuntimeError as error:
            raise CodecError(f"torch does not know the device {value!r:.80}", hint="Upgrade torch.") from error
    if kind == "Size":
        size_of(value)
        return torch.Size(value)
    raise IntegrityError(f"{value!r:.80} is no {kind!r:.20} of torch")


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise CodecError("this holds a tensor, and torch is not installed", hint="Type: pip install torch") from error


HARMLESS: Final[dict[tuple[str, str], Any]] = {
    (made.__module__, made.__qualname__): made for made in (build_tensor, tensor_attributes, torch_constant)
}
"""What an untrusted reader may call to build tensors."""

"""A GPU that is none: tensors that compute on the CPU, and a record of every time that a real one would be waited for.

torch calls its device ``meta``. A tensor there holds one on the CPU, and every operation goes by here: what reads its
values, and what copies between it and main memory without ``non_blocking``, is what CUDA would wait for.
"""

import sys
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from vidlit.diffusion import noising
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step import posterior

aten = torch.ops.aten
DEVICE, HOST = torch.device("meta"), torch.device("cpu")
READS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}
OWN = ("vidlit", "diffusers")
LATE = "which arrives later"
"""Of what is copied to main memory with ``non_blocking``: nobody waits, but who reads it too soon reads anything."""


class OnDevice(torch.Tensor):
    """A tensor of the pretended GPU: ``inner`` is where its values are."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @property
    def is_cuda(self):
        """For who asks, it is a GPU's."""
        return True

    def __reduce_ex__(self, protocol):
        """A file holds the values."""
        return self.inner.__reduce_ex__(protocol)

    def __repr__(self, **_):
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs, waits=lambda what: None):
    """An operation on the CPU; what comes of it is where a real one would leave it."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    ours = [each for each in tensors if isinstance(each, OnDevice)]
    asked = kwargs.get("device")
    target = asked and torch.device(asked)
    if func in READS and ours:
        waits(f"{func} reads a value")
    if func is aten._to_copy.default and target is not None and (target == DEVICE) != bool(ours):
        if not kwargs.get("non_blocking") or ours:
            size = "a number" if tensors[0].numel() == 1 else "numbers"
            late = f", {LATE}" if kwargs.get("non_blocking") else ""
            waits(f"a copy of {size} to {'main memory' if ours else 'the device'}{late}")
    if func is aten.copy_.default and len({isinstance(each, OnDevice) for each in args[:2]}) == 2:
        if isinstance(args[1], OnDevice) or not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
            waits("a copy between device and main memory")
    if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and ours:
        places = [each for each in args[1] if each is not None]
        if any(isinstance(each, OnDevice) and each.dtype == torch.bool for each in places):
            waits("an index by a mask")
        if any(not isinstance(each, OnDevice) for each in places):
            waits("an index that is in main memory")
    elif ours and func not in (aten.copy_.default, aten._to_copy.default):
        strays = [each for each in tensors if not isinstance(each, OnDevice) and each.dim()]
        assert not strays, f"{func} of tensors on two devices: {[tuple(each.shape) for each in strays]}"
    is_ours = target == DEVICE if target is not None else bool(ours)
    inner_args, inner_kwargs = tree_map(lambda each: each.inner if isinstance(each, OnDevice) else each, (args, kwargs))
    if target == DEVICE:
        inner_kwargs["device"] = HOST
    if inner_kwargs.get("pin_memory"):
        inner_kwargs["pin_memory"] = False
    with torch._C.DisableTorchFunctionSubclass():
        made = func(*inner_args, **inner_kwargs)
    if not is_ours:
        return made
    made = tree_map(lambda each: OnDevice(each) if isinstance(each, torch.Tensor) else each, made)
    return return_and_correct_aliasing(func, args, kwargs, made)


class Event:
    """Of the pretended GPU: who waits for one finds that it has happened if another step was begun since."""

    def __init__(self, log):
        self.log = log

    def record(self):
        self.step = self.log.begun

    def synchronize(self):
        if self.step == self.log.begun:
            self.log.waits.append((where(), "the step that was begun last"))


class Watch(TorchDispatchMode):
    """Sees each operation."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {}, self.waits)


class Constants(TorchFunctionMode):
    """Tensors of numbers: torch makes them on ``meta`` without any, and on a GPU copies them there."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == DEVICE:
            self.waits("numbers that become a tensor on the device")
            return func(*args, **{**kwargs, "device": HOST}).to(DEVICE, non_blocking=True)
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnDevice) and device is None:
            self.waits("numbers that become a tensor on the device")
            dtype = kwargs.pop("dtype", args[0].dtype)
            return torch.tensor(*args[1:], dtype=dtype, **kwargs).to(DEVICE, non_blocking=True)
        if func in (torch.Tensor.tolist, torch.Tensor.numpy) and isinstance(args[0], OnDevice):
            self.waits("values that are read")
            return func(args[0].inner)
        return func(*args, **kwargs)


def where():
    """The innermost line of this package or of diffusers, else of whatever called torch."""
    frame, found = sys._getframe(1), None
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        if "tests" not in parts:
            name = "/".join(parts[-2:])
            if "torch" not in parts:
                found = found or f"{name}:{frame.f_lineno}"
            if any(own in parts[-6:-1] for own in OWN):
                return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return found


@contextmanager
def pretended(monkeypatch, record):
    """While it is open, ``meta`` is a GPU; the record takes what that was waited for."""

    def waits(what):
        record.waits.append((where(), what))

    autocast, keyed_generator = torch.autocast, noising.keyed_generator
    for module in (noising, posterior):  # drawn on the CPU, and no copy: a GPU draws by itself
        monkeypatch.setattr(module, "keyed_generator", lambda *key, device="cpu": keyed_generator(*key))

    def lowered(kind, *args, **kwargs):
        return nullcontext() if kind == "meta" else autocast(kind, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", lowered)
    monkeypatch.setattr(torch.cuda, "Event", partial(Event, record))
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda parameter: None)  # which asks for CUDA by name
    with Watch(waits), Constants(waits):
        yield


@contextmanager
def fits_there(monkeypatch):
    """While it is open, fits train on it.

    Gives the record of what they wait for: (line, what) each in ``waits``. ``begun`` counts steps if who opens it does.
    """
    record = SimpleNamespace(waits=[], begun=0)
    with ExitStack() as stack:

        def on_fit_start(self):
            move_there(self)
            self._device = self.trainer.strategy._root_device = DEVICE
            stack.enter_context(pretended(monkeypatch, record))

        monkeypatch.setattr(VideoDiffusionModule, "on_fit_start", on_fit_start)
        yield record


def move_there(module):
    """A module's weights and buffers, in place: an optimizer may hold them."""
    for parameter in module.parameters():
        there = torch.nn.Parameter(OnDevice(parameter.data), requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, there)
    for each in module.modules():
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = OnDevice(buffer)

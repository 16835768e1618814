"""The dense Hessian of a batch by the fastest backend that applies, checked by one product.

The sweep and the compression read the layers of a module; what a module does besides is seen by the check:
every result is compared with a Hessian-vector product of the module itself for a random vector.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chaos.o2grad.batches import copied
from chaos.o2grad.budget import check_budget
from chaos.o2grad.compression import input_frame
from chaos.o2grad.evaluation import DisagreementError, LossEvaluation
from chaos.o2grad.frames import IdentityFrame, InputFrame
from chaos.o2grad.generic import Linearisation, Progress, dense_hessian, random_normal
from chaos.o2grad.hessian import Hessian
from chaos.o2grad.layers import UnsupportedError
from chaos.o2grad.observation import untouched
from chaos.o2grad.parameters import LossFunction, ParameterLayout, check_finite
from chaos.o2grad.parts import Parts
from chaos.o2grad.sweep import Sweep
from chaos.o2grad.tree import build_tree

BACKENDS = ("auto", "generic", "compression", "sweep")


@dataclass(frozen=True)
class ExactHessian:
    """One Hessian to be computed.

    Attributes:
        of: The loss.
        backend: One of :data:`BACKENDS`.
        point: Flat parameters.
        function: The loss of a batch that is cast and checked.
    """

    of: LossEvaluation
    backend: str
    point: Tensor
    function: LossFunction

    def compute(self, progress: Progress | None = None) -> Hessian:
        """Return the Hessian by the first backend whose result agrees with the module.

        Raises:
            ValueError: As :meth:`LossSurface.hessian`.
        """
        frame = self._frame()
        self._check_budget(frame)
        if self.backend != "generic":
            try:
                H = self._wrap(self.by_sweep(frame), frame, "sweep")
            except Exception as reason:
                # Also of shapes that it was not made for; an error of the model itself comes again below.
                if isinstance(reason, torch.OutOfMemoryError):
                    raise
                if self.backend == "sweep":
                    raise ValueError(f"backend='sweep' does not apply: {reason}.") from reason
            else:
                if self._agrees(H):
                    return H
                self._distrust(H)
                frame = IdentityFrame(self.of.n)
        H = self.by_products(frame, progress)
        if isinstance(frame, InputFrame) and not self._agrees(H):
            self._distrust(H)
            H = self.by_products(IdentityFrame(self.of.n), progress)
        if not self._agrees(H):
            raise DisagreementError
        return H

    def by_products(self, frame: IdentityFrame | InputFrame, progress: Progress | None = None) -> Hessian:
        """Return the Hessian by Hessian-vector products with all columns of a frame."""
        self._check_budget(frame)
        function = self.function
        budget = self.of.memory_budget
        if isinstance(frame, IdentityFrame):
            core = dense_hessian(function, self.point, budget, progress)
        else:
            core = dense_hessian(
                lambda core: function(self.point + frame.expand(core[:, None])[:, 0]),
                self.point.new_zeros(frame.rank),
                budget,
                progress,
            )
        return self._wrap(core, frame, "generic")

    def by_sweep(self, frame: IdentityFrame | InputFrame) -> Tensor:
        """Return the core of the Hessian by the layer-wise sweep.

        Raises:
            UnsupportedError: If a layer or the loss is not one that the sweep knows.
        """
        of = self.of
        x, y = copied((self.function.x, self.function.y))
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise UnsupportedError("inputs and targets are not single tensors")
        values = self.function.constants() | of.layout.unflatten(self.point)
        inputs = frame if isinstance(frame, InputFrame) else None
        sweep = Sweep(build_tree(of.model, of.layout, values), x, y, of.loss, inputs)
        return _in_layout_order(sweep.hessian(of.memory_budget), sweep.columns, of.layout)

    def _frame(self) -> IdentityFrame | InputFrame:
        of = self.of
        if self.backend in ("auto", "compression"):
            x = copied(self.function.x)  # a layer before the first linear one may work in place
            plain = isinstance(x, Tensor) and x.layout is torch.strided
            frame = input_frame(of.model, of.layout, x) if plain else None
            if frame is not None:
                return frame
            if self.backend == "compression":
                raise ValueError(
                    "backend='compression' does not apply: the first parametric layer is not a linear layer "
                    "that sees fewer inputs than it has columns."
                )
        return IdentityFrame(of.n)

    def _check_budget(self, frame: IdentityFrame | InputFrame) -> None:
        check_budget(frame.rank, frame.rank, self.of.dtype, self.of.memory_budget)

    def _wrap(self, core: Tensor, frame: IdentityFrame | InputFrame, backend: str) -> Hessian:
        name = f"compression+{backend}" if isinstance(frame, InputFrame) else backend
        return Hessian(core, frame, self.of.layout, name, self.of.memory_budget)

    def _agrees(self, H: Hessian) -> bool:
        """Compare ``H v`` with a product of the module itself, for one random v.

        The product is ``H' v`` where H was made of products, so that a wrong derivative shows as asymmetry.
        Half of the digits must agree: these are sums of the same terms, rounded in different orders.
        """
        v = random_normal(self.of.n, self.of.n).to(self.point)
        with untouched(Parts()) as watch:
            lines = Linearisation(self.function, self.point)
            check_finite(lines.value)
            expected = lines.product(v, last=True)
        if watch.random_moved:
            raise DisagreementError(is_random=True)
        found = H.matvec(v)
        info = torch.finfo(self.of.dtype)
        scale = max(float(expected.abs().max()), float(found.abs().max()), 1e3 * info.tiny)
        if not math.isfinite(scale):
            return bool((expected.isfinite() == found.isfinite()).all())
        eps = max(info.eps, lines.eps)  # a model of float64 may compute in float32 inside
        return bool((expected - found).abs().max() <= 10 * eps**0.5 * scale)

    def _distrust(self, H: Hessian) -> None:
        if self.backend in ("sweep", "compression"):
            raise ValueError(
                f"backend={self.backend!r} does not apply: its result disagrees with a Hessian-vector "
                "product of the module, so it does something its layers do not say. Use backend='generic'."
            )
        warnings.warn(
            f"The backend {H.backend} disagrees with a Hessian-vector product of this module and was not "
            "used; the generic backend was, which is slower. Something in it is not what its class says.",
            stacklevel=4,
        )


def _in_layout_order(M: Tensor, columns: list[tuple[str, int]], layout: ParameterLayout) -> Tensor:
    """Put the groups of coordinates that a sweep produced into layout order (the frame's group first)."""
    wanted = ["", *layout.names]
    order = sorted(range(len(columns)), key=lambda i: wanted.index(columns[i][0]))
    if order == list(range(len(columns))):
        return M
    starts = np.cumsum([0, *(size for _, size in columns)])
    index = torch.cat([torch.arange(starts[i], starts[i + 1], device=M.device) for i in order])
    return M[index][:, index]

"""Exact second-order derivatives of any ``torch.nn.Module``, fast enough for every training step."""

from chaos.o2grad.eigenpairs import Eigenpairs, zero_tolerance
from chaos.o2grad.exact import BACKENDS
from chaos.o2grad.hessian import Blocks, Hessian
from chaos.o2grad.operators import CurvatureOperator
from chaos.o2grad.original import O2Model, get_hessian
from chaos.o2grad.parameters import ParameterLayout
from chaos.o2grad.storage import load_eigenpairs, load_hessian, save_eigenpairs, save_hessian
from chaos.o2grad.surface import LossSurface
from chaos.o2grad.tree import Residual

__all__ = [  # noqa: RUF022  (grouped by meaning)
    # the surface and what it returns
    "LossSurface",
    "Hessian",
    "CurvatureOperator",
    "Eigenpairs",
    "Blocks",
    "ParameterLayout",
    "BACKENDS",
    "zero_tolerance",
    # building blocks of models
    "Residual",
    # storage
    "save_hessian",
    "load_hessian",
    "save_eigenpairs",
    "load_eigenpairs",
    # names of the original library
    "O2Model",
    "get_hessian",
]

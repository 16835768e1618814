"""Models, losses and batches that people bring, as data: every tool of o2grad is tried on each of them.

A case either agrees with plain reverse-mode autograd or is refused with a sentence that matches `refused`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

CE = nn.CrossEntropyLoss()
CASES: dict[str, Case] = {}


@dataclass
class Case:
    """One model with its loss and batch."""

    model: nn.Module
    loss: Callable[..., torch.Tensor]
    x: Any
    y: Any
    refused: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)
    by_differences: bool = False  # autograd's own second derivative is wrong


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Register a case under its function's name."""
    CASES[make.__name__] = make  # type: ignore[assignment]
    return make


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def classes(batch: int, count: int = 3) -> torch.Tensor:
    return torch.arange(batch) % count


def mlp(inputs: int = 5, *, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 4), activation(), nn.Linear(4, 3)).double()


def shift(module, args):
    return (args[0] * torch.linspace(-1, 2, args[0].shape[-1], dtype=args[0].dtype) + 1.0,)


# hooks and modules that are not what their class says --------------------------------------------


@case
def pre_hook_on_the_first_linear():
    model = mlp(12)
    model[0].register_forward_pre_hook(shift)
    return Case(model, CE, draw(4, 12), classes(4))


@case
def pre_hook_on_the_whole():
    model = mlp(12)
    model.register_forward_pre_hook(shift)
    return Case(model, CE, draw(4, 12), classes(4))


@case
def hook_on_an_activation():
    model = mlp(12)
    model[1].register_forward_hook(lambda module, args, out: out**2)
    return Case(model, CE, draw(4, 12), classes(4))


@case
def forward_of_the_instance():
    model = mlp(12)
    model[1].forward = lambda z: z.sin()
    return Case(model, CE, draw(4, 12), classes(4))


@case
def forward_of_the_whole_instance():
    model = mlp(12)
    inner = model.forward
    model.forward = lambda x: 2 * inner(x) ** 2
    return Case(model, CE, draw(4, 12), classes(4))


@case
def subclass_of_linear():
    class Squared(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 2

    return Case(nn.Sequential(Squared(5, 4), nn.Tanh(), nn.Linear(4, 3)).double(), CE, draw(4, 5), classes(4))


@case
def sequential_with_a_call_of_its_own():
    class Doubled(nn.Sequential):
        def __call__(self, x):
            return super().__call__(x) * 2

    model = nn.Sequential(Doubled(nn.Linear(12, 4), nn.Tanh()), nn.Linear(4, 3)).double()
    return Case(model, CE, draw(4, 12), classes(4))


@case
def weight_norm():
    model = mlp()
    model[0] = nn.utils.parametrizations.weight_norm(model[0])
    return Case(model, CE, draw(4, 5), classes(4), by_differences=True)


@case
def orthogonal_parametrization():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    nn.utils.parametrizations.orthogonal(model[0])
    return Case(model, CE, draw(4, 4), classes(4))


@case
def a_module_used_twice():
    shared = nn.Linear(5, 5)
    return Case(
        nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(5, 3)).double(), CE, draw(4, 5), classes(4)
    )


@case
def an_activation_used_twice():
    act = nn.Tanh()
    model = nn.Sequential(nn.Linear(5, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 3)).double()
    return Case(model, CE, draw(4, 5), classes(4))


@case
def an_activation_used_before_and_after():
    act = nn.Tanh()
    model = nn.Sequential(act, act, nn.Linear(12, 4), act, nn.Linear(4, 3)).double()
    return Case(model, CE, draw(4, 12), classes(4))


@case
def compiled():
    return Case(torch.compile(mlp(), backend="eager"), CE, draw(4, 5), classes(4))


@case
def compiled_in_place():
    model = mlp(12)
    model.compile(backend="eager")
    return Case(model, CE, draw(4, 12), classes(4))


@case
def checkpointed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            body = lambda z: torch.tanh(self.body(z))  # noqa: E731
            return self.head(torch.utils.checkpoint.checkpoint(body, x, use_reentrant=False))

    return Case(Net().double(), CE, draw(4, 5), classes(4))


@case
def hidden_from_autograd():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = torch.tanh(self.inner(x))
            with torch.no_grad():
                scale = self.inner(x).mean()
            return self.outer(h * h.detach()) * scale

    return Case(Hidden().double(), CE, draw(4, 5), classes(4))


@case
def a_hook_on_a_gradient():
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = torch.tanh(self.inner(x))
            if h.requires_grad:
                h.register_hook(lambda g: 2 * g)
            return self.outer(h)

    return Case(Hooked().double(), CE, draw(4, 5), classes(4))


@case
def fused_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    return Case(model, CE, draw(4, 5), classes(4), refused="fused weight norm has a wrong second derivative")


@case
def a_wrong_derivative_of_an_operation():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            return g * b.detach(), g * a

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return Product.apply(self.a(x), self.b(x))

    return Case(Net().double(), CE, draw(4, 5), classes(4), refused="it is not symmetric")


@case
def torch_script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(mlp())
    return Case(model, CE, draw(4, 5), classes(4), refused="is a RecursiveScriptModule")


@case
def data_parallel():
    return Case(nn.DataParallel(mlp()), CE, draw(4, 5), classes(4), refused="is a DataParallel")


# losses ------------------------------------------------------------------------------------------


@case
def subclass_of_mse():
    class Weighted(nn.MSELoss):
        def forward(self, output, target):
            return 3 * super().forward(output**2, target)

    return Case(mlp(), Weighted(), draw(4, 5), draw(4, 3))


@case
def hook_on_the_loss():
    loss = nn.MSELoss()
    loss.register_forward_hook(lambda module, args, out: out**2)
    return Case(mlp(), loss, draw(4, 5), draw(4, 3))


@case
def broadcasting_target():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return Case(model, nn.MSELoss(reduction="sum"), draw(4, 5), draw(4))


@case
def broadcasting_target_mean():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return Case(model, nn.MSELoss(), draw(4, 5), draw(4))


@case
def class_weights():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 25.0], dtype=torch.float64))
    return Case(mlp(), loss, draw(6, 5), classes(6))


@case
def ignored_targets():
    return Case(mlp(), nn.CrossEntropyLoss(ignore_index=0), draw(6, 5), classes(6))


@case
def label_smoothing():
    return Case(mlp(), nn.CrossEntropyLoss(label_smoothing=0.1), draw(6, 5), classes(6))


@case
def soft_targets():
    return Case(mlp(), CE, draw(4, 5), torch.rand(4, 3, dtype=torch.float64) * 2)


@case
def summed_cross_entropy():
    return Case(mlp(), nn.CrossEntropyLoss(reduction="sum"), draw(6, 5), classes(6))


@case
def nll():
    model = nn.Sequential(nn.Linear(5, 3), nn.LogSoftmax(1)).double()
    return Case(model, nn.NLLLoss(), draw(4, 5), classes(4))


@case
def huber():
    return Case(mlp(), nn.HuberLoss(delta=0.5), draw(4, 5), draw(4, 3))


@case
def coupled_loss():
    return Case(mlp(), lambda o, t: (o.std(0) * t.mean(0)).sum() ** 2, draw(4, 5), draw(4, 3))


@case
def penalty_inside_the_model():
    class Penalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return self.linear(x), self.linear.weight.square().sum()

    def loss(output, y):
        return F.cross_entropy(output[0], y) + 0.1 * output[1] ** 2

    return Case(Penalised().double(), loss, draw(4, 5), classes(4))


@case
def penalty_of_the_loss_on_the_live_model():
    model = mlp()

    def loss(output, y):
        return CE(output, y) + sum(p.pow(4).sum() for p in model.parameters())

    return Case(model, loss, draw(4, 5), classes(4))


@case
def penalty_on_a_captured_parameter():
    model = mlp()
    weight = model[0].weight

    def loss(output, y):
        return CE(output, y) + weight.square().sum() ** 2

    return Case(model, loss, draw(4, 5), classes(4), refused="reaches parameter '0.weight' by a reference")


@case
def a_cache_of_an_earlier_call():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.cache = nn.Linear(5, 3), {}

        def forward(self, x):
            if "square" not in self.cache:
                self.cache["square"] = self.linear.weight @ self.linear.weight.T
            return self.linear(x) @ self.cache["square"]

    model = Caching().double()
    model(draw(2, 5))
    return Case(model, CE, draw(4, 5), classes(4), refused="reaches parameter 'linear.weight' by a reference")


# normalisation, modes, randomness ----------------------------------------------------------------


@case
def batch_norm_first_in_training_mode():
    model = nn.Sequential(nn.BatchNorm1d(12, affine=False), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 12) + 3, classes(4))


@case
def batch_norm_in_training_mode():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(6, 5), classes(6))


@case
def batch_norm_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    model(draw(9, 5))
    return Case(model.eval(), CE, draw(6, 5), classes(6))


@case
def instance_norm_that_tracks():
    model = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 3)
    )
    return Case(model.double(), CE, draw(4, 1, 5), classes(4))


@case
def group_and_layer_norm():
    model = nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.SiLU(), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4))


@case
def rms_norm():
    model = nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4), nn.GELU(), nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4))


@case
def dropout_in_training_mode():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return Case(model, CE, draw(4, 12), classes(4), refused="Dropout is active in layer '0'")


@case
def dropout_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3)).double()
    return Case(model.eval(), CE, draw(4, 5), classes(4))


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(F.dropout(torch.tanh(self.inner(x)), 0.5, self.training))


@case
def functional_dropout():
    model = nn.Sequential(FunctionalDropout()).double()
    return Case(model, CE, draw(4, 5), classes(4), refused="loss is random .layer '0'")


@case
def functional_dropout_on_a_small_budget():
    kwargs = {"memory_budget": 60_000}
    return Case(FunctionalDropout().double(), CE, draw(4, 5), classes(4), "loss is random", kwargs=kwargs)


@case
def random_activation():
    model = nn.Sequential(nn.Linear(5, 4), nn.RReLU(), nn.Linear(4, 3)).double()
    return Case(model, CE, draw(4, 5), classes(4), refused="loss is random .layer '1'")


@case
def stochastic_depth_by_numpy():
    import numpy as np

    class Depth(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, 5)

        def forward(self, x):
            return x + self.body(x) if np.random.random() < 0.5 else x  # noqa: NPY002

    model = nn.Sequential(nn.Linear(5, 5), Depth(), nn.Linear(5, 3)).double()
    return Case(model, CE, draw(4, 5), classes(4), refused="loss is random .layer '1'")


@case
def a_random_stream_of_its_own():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.stream = nn.Linear(5, 3), torch.Generator().manual_seed(0)

        def forward(self, x):
            return self.linear(x) + torch.randn(3, generator=self.stream, dtype=x.dtype)

    return Case(Noisy().double(), CE, draw(4, 5), classes(4), refused="disagree|no second derivative")


@case
def random_loss():
    def loss(output, y):
        return F.cross_entropy(output * torch.rand(3, dtype=output.dtype), y)

    return Case(mlp(), loss, draw(4, 5), classes(4), refused="loss is random .the loss")


# kinds of parameters -----------------------------------------------------------------------------


@case
def frozen_layer():
    model = mlp()
    model[0].requires_grad_(False)
    return Case(model, CE, draw(4, 5), classes(4))


@case
def scalar_parameter():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(5, 3), nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            return self.linear(x) * self.scale.exp()

    return Case(Scaled().double(), CE, draw(4, 5), classes(4))


@case
def tied_and_used_functionally():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.body = nn.Embedding(7, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = torch.tanh(self.body(self.embedding(x)))
            return F.linear(h, self.embedding.weight).transpose(1, 2)

    return Case(Tied().double(), CE, torch.randint(7, (3, 4)), torch.randint(7, (3, 4)))


@case
def a_weight_transposed():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(5, 4), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.linear(x)) @ self.linear.weight)

    return Case(Twice().double(), CE, draw(4, 5), classes(4))


@case
def embedding_with_padding():
    model = nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 3)).double()
    return Case(model, CE, torch.tensor([[0, 1], [2, 3], [0, 0]]), classes(3))


@case
def embedding_with_padding_by_function():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(7, 3)), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(F.embedding(x, self.table, padding_idx=0).mean(1).tanh())

    return Case(Padded().double(), CE, torch.tensor([[0, 1], [2, 3], [0, 0]]), classes(3))


@case
def embedding_with_gradients_by_frequency():
    model = nn.Sequential(nn.Embedding(7, 3, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(6, 3))
    x = torch.tensor([[0, 1], [2, 3], [0, 0]])
    return Case(model.double(), CE, x, classes(3), refused="scale_grad_by_freq")


@case
def embedding_bag():
    model = nn.Sequential(nn.EmbeddingBag(7, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x = torch.tensor([[0, 1], [2, 3], [0, 0]])
    return Case(model, CE, x, classes(3), refused="no second derivative that PyTorch can compute")


@case
def sparse_embedding():
    model = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 3)).double()
    return Case(model, CE, torch.tensor([[0, 1], [2, 3], [0, 0]]), classes(3))


@case
def embedding_with_a_largest_norm():
    model = nn.Sequential(nn.Embedding(7, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 3)).double()
    x = torch.tensor([[0, 1], [2, 3], [0, 0]])
    return Case(model, CE, x, classes(3), refused="Embedding '0' has max_norm")


# architectures -----------------------------------------------------------------------------------


@case
def causal_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x):
            q, k, v = self.qkv(x)[:, None].chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].mean(1))

    return Case(Attention().double(), CE, draw(3, 4, 4), classes(3))


@case
def transformer_layer_with_a_mask():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x, padding):
            return self.head(self.layer(x, src_key_padding_mask=padding).mean(1))

    padding = torch.zeros(3, 4, dtype=torch.bool)
    padding[0, 3] = True
    return Case(Encoder().double(), CE, (draw(3, 4, 4), padding), classes(3))


@case
def lstm():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    return Case(Recurrent().double(), CE, draw(3, 3, 3), classes(3))


@case
def gru_with_time_first():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][-1])

    return Case(Recurrent().double(), CE, draw(3, 3, 3), classes(3))


@case
def tokens_with_time_first():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0]).permute(1, 2, 0)

    return Case(Tagger().double(), CE, draw(5, 2, 3), torch.randint(3, (2, 5)))


@case
def keyword_calls():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.form = nn.Bilinear(3, 2, 3)

        def forward(self, x):
            return self.form(input1=x[:, :3], input2=x[:, 3:])

    return Case(Bilinear().double(), CE, draw(4, 5), classes(4))


@case
def a_counter_in_the_module():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(5, 3), 0
            self.register_buffer("mean", torch.zeros(5))

        def forward(self, x):
            self.calls += 1
            if self.training:
                self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            return self.linear(x - self.mean)

    return Case(Counting().double(), CE, draw(4, 5), classes(4))


# batches -----------------------------------------------------------------------------------------


@case
def one_sample():
    return Case(mlp(), CE, draw(1, 5), classes(1))


@case
def two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 3), nn.Linear(2, 3)

        def forward(self, x, z):
            return torch.tanh(self.a(x)) * self.b(z)

    return Case(Two().double(), CE, (draw(4, 5), draw(4, 2)), classes(4))


class Answer(dict):
    @property
    def loss(self):
        return self["loss"]


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(torch.tanh(self.embedding(input_ids) * attention_mask[..., None]))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return Answer(loss=loss, logits=logits)


@case
def a_model_that_returns_its_loss():
    ids = torch.randint(7, (3, 4))
    batch = {"input_ids": ids, "attention_mask": torch.ones(3, 4, dtype=torch.float64), "labels": ids.clone()}
    batch["labels"][0, 2:] = -100
    return Case(LanguageModel().double(), lambda output: output.loss, batch, None)


@case
def dictionary_of_targets():
    def loss(output, y):
        return F.cross_entropy(output, y["class"]) + F.mse_loss(output[:, 0], y["value"])

    return Case(mlp(), loss, draw(4, 5), {"class": classes(4), "value": draw(4)})

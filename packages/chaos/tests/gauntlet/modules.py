"""Hooks, and modules that are not what their class says."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from gauntlet.case import CE, Case, Net, case, classes, draw, mlp, shift


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
    def forward(net, x):
        body = lambda z: torch.tanh(net.body(z))  # noqa: E731
        return net.head(torch.utils.checkpoint.checkpoint(body, x, use_reentrant=False))

    model = Net(forward, body=nn.Linear(5, 4), head=nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4))


@case
def a_reentrant_checkpoint():
    refused = "A reentrant checkpoint hides"
    model = Net(
        lambda net, x: net.head(torch.utils.checkpoint.checkpoint(net.body, x, use_reentrant=True).tanh()),
        body=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
    )
    return Case(model.double(), CE, draw(4, 5).requires_grad_(), classes(4), refused=refused)


@case
def hidden_from_autograd():
    def forward(net, x):
        h = torch.tanh(net.inner(x))
        with torch.no_grad():
            scale = net.inner(x).mean()
        return net.outer(h * h.detach()) * scale

    model = Net(forward, inner=nn.Linear(5, 4), outer=nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4), refused="cut off from the graph")


@case
def a_hook_on_a_gradient():
    def forward(net, x):
        h = torch.tanh(net.inner(x))
        if h.requires_grad:
            h.register_hook(lambda g: 2 * g)
        return net.outer(h)

    model = Net(forward, inner=nn.Linear(5, 4), outer=nn.Linear(4, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4), refused="hooks on tensors")


@case
def a_hook_on_a_parameter():
    model = mlp()
    model[0].weight.register_hook(lambda g: 3 * g)
    return Case(model, CE, draw(4, 5), classes(4))


@case
def hooks_of_the_backward_pass():
    model = mlp()
    model[0].register_full_backward_hook(lambda module, g, _: g and (2 * g[0],))
    model[1].register_full_backward_pre_hook(lambda module, g: (g[0].clamp(-0.01, 0.01),))
    return Case(model, CE, draw(4, 5).requires_grad_(), classes(4))


class Tanh(nn.Module):
    """A network whose hidden layer is what `hidden` makes of it and its input."""

    def __init__(self, hidden):
        super().__init__()
        self.inner, self.outer, self.hidden = nn.Linear(5, 4), nn.Linear(4, 3), hidden

    def forward(self, x):
        return self.outer(self.hidden(self, x))


@case
def a_value_kept_from_before():
    def hidden(net, x):
        if not hasattr(net, "kept"):
            net.kept = torch.tanh(net.inner(x))
        return net.kept

    return Case(Tanh(hidden).double(), CE, draw(4, 5), classes(4))


@case
def a_counter_that_counts():
    def hidden(net, x):
        net.calls = getattr(net, "calls", 0) + 1
        return net.calls * torch.tanh(net.inner(x))

    return Case(Tanh(hidden).double(), CE, draw(4, 5), classes(4))


@case
def weights_that_are_rewritten():
    def hidden(net, x):
        with torch.no_grad():
            net.inner.weight.clamp_(-0.1, 0.1)
        return torch.tanh(net.inner(x))

    return Case(Tanh(hidden).double(), CE, draw(4, 5), classes(4), refused="rewrites the model's own")


@case
def computed_without_gradients():
    def hidden(net, x):
        return torch.tanh(net.inner(x))

    def loss(output, y):
        return torch.nn.functional.cross_entropy(output.detach(), y)

    return Case(Tanh(hidden).double(), loss, draw(4, 5), classes(4), refused="Autograd finds no parameter")


@case
def buffers_that_share_memory():
    def hidden(net, x):
        net.whole.mul_(2)
        return torch.tanh(net.inner(x)) * net.part

    model = Tanh(hidden).double()
    model.register_buffer("whole", torch.ones(8, dtype=torch.float64))
    model.register_buffer("part", model.whole[:4])
    return Case(model, CE, draw(4, 5), classes(4))


@case
def once_differentiable_after_a_padded_embedding():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 3 * ctx.saved_tensors[0] ** 2 * g

        @staticmethod
        def jvp(ctx, tangent):
            return 3 * ctx.saved_tensors[0] ** 2 * tangent

    x = torch.tensor([[0, 1], [2, 3], [0, 0]])
    model = Net(
        lambda net, x: Cube.apply(net.head(net.table(x).mean(1))),
        table=nn.Embedding(7, 3, padding_idx=0),
        head=nn.Linear(3, 3),
    )
    return Case(model.double(), CE, x, classes(3), refused="no second derivative that PyTorch can compute")


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

    model = Net(lambda net, x: Product.apply(net.a(x), net.b(x)), a=nn.Linear(5, 3), b=nn.Linear(5, 3))
    return Case(model.double(), CE, draw(4, 5), classes(4), refused=r"autograd.Function .*\(here Product\)")


@case
def torch_script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(mlp())
    return Case(model, CE, draw(4, 5), classes(4), refused="is a RecursiveScriptModule")


@case
def data_parallel():
    return Case(nn.DataParallel(mlp()), CE, draw(4, 5), classes(4), refused="is a DataParallel")

from dataclasses import dataclass, field

from gdyn_reproduce.runs import RunOptions


@dataclass
class DecayConfig(RunOptions):
    """Exponential decay by Euler steps.

    Attributes:
        rates: Decay rates per unit time.
        num_steps: Number of Euler steps.
        seeds: Seeds of the starting points.
        fail: Raise inside the computation: ``bug`` or ``input``.
        delay_s: Seconds to wait in every piece.
    """

    rates: list[float] = field(default_factory=lambda: [0.5, 1.0])
    num_steps: int = 100
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    fail: str | None = None
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; it must be at least 1.")


@dataclass
class GreetConfig(RunOptions):
    """Greeting.

    Attributes:
        names: Whom to greet.
        data: A key with the name of a folder of the core, which is not a config group.
        model: Free-form settings.
    """

    names: list[str] = field(default_factory=list)
    data: str = ""
    model: dict[str, int] = field(default_factory=lambda: {"width": 1})

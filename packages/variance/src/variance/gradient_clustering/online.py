"""Gradient clustering of a stream: exponentially forgotten sizes, centres and distortions.

n_k <- beta n_k + (1 - beta) cnt_k and C_k <- (beta n_k_old C_k + (1 - beta) sum of new members) / n_k, factor
by factor.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variance.errors import ConfigError, NotReady, require_count, require_number, require_word
from variance.gradient_clustering.centres import Centres, ClusteringOptions, RunningSums, squared_distances
from variance.losses import require_finite
from variance.per_example.capturing import Capture
from variance.randomness import Seed, generator_of
from variance.state import Stateful

Reinitialise = Literal["largest", "data"]


class OnlineClustering(Stateful):
    """K rank-1 centres that follow a stream of mini-batches; needs no indices and no finite data set.

    Args:
        num_clusters: K.
        options: What is clustered; centres must be products.
        decay: beta.
        min_size: Clusters with n_k below this fraction of the batch are re-initialised.
        initial_size: A new cluster counts as min_size * initial_size * B examples.
        reinit_every: Batches between two re-initialisations.
        reinit: `largest`: copy the centre of the largest distortion, both keep half its size. `data`: take
            examples of the current batch.
        seed: Seed or generator.
    """

    STATE = ("generator", "num_batches", "num_reinits", "centres", "sizes", "distortions")
    KINDS = (("centres", Centres),)

    def __init__(
        self,
        num_clusters: int,
        options: ClusteringOptions | None = None,
        *,
        decay: float = 0.99,
        min_size: float = 0.001,
        initial_size: float = 2.0,
        reinit_every: int = 10,
        reinit: Reinitialise = "largest",
        seed: Seed = 0,
    ) -> None:
        require_count("num_clusters", num_clusters)
        require_number("decay", decay, 0, below=1)
        require_number("min_size", min_size, 0)
        require_number("initial_size", initial_size, 0)
        require_count("reinit_every", reinit_every)
        require_word("reinit", reinit, get_args(Reinitialise))
        self.options = options or ClusteringOptions()
        if self.options.form != "product" or self.options.whiten or self.options.global_mean:
            raise ConfigError(
                "online clustering keeps product centres only (form='product', whiten=False, global_mean=0)."
            )
        self.num_clusters, self.decay, self.min_size, self.initial_size = (
            num_clusters,
            decay,
            min_size,
            initial_size,
        )
        self.reinit_every, self.reinit = reinit_every, reinit
        self.generator = generator_of(seed)
        self.num_batches = self.num_reinits = 0
        self.centres: Centres | None = None
        self.sizes: Float[Tensor, "k"] = torch.zeros(num_clusters, dtype=torch.float64)
        self.distortions: Float[Tensor, "k"] = torch.zeros(num_clusters, dtype=torch.float64)

    def update(self, batch: Capture) -> Int[Tensor, "n"]:
        """Assign a mini-batch, move the centres, and return the assignment.

        Raises:
            ConfigError: The first batch holds fewer examples than there are clusters.
            NonFiniteGradient: A distance is not finite.
        """
        if self.centres is None:
            self._start(batch)
        assert self.centres is not None
        distances = squared_distances(batch, self.centres, self.options).cpu()
        require_finite(distances, "the distance to the centres")
        ids = distances.argmin(1)
        counts = torch.bincount(ids, minlength=self.num_clusters).double()
        spread = torch.zeros_like(self.distortions).index_add_(
            0, ids, distances.gather(1, ids.unsqueeze(1)).squeeze(1).double()
        )
        sums = RunningSums(self.num_clusters, self.options)
        sums.add(batch, ids.to(batch.losses.device))
        totals = sums.means(torch.ones(self.num_clusters, dtype=torch.long))
        old = self.decay * self.sizes
        self.sizes = old + (1 - self.decay) * counts
        self.distortions = self.decay * self.distortions + (1 - self.decay) * spread
        for current, new in ((self.centres.inputs, totals.inputs), (self.centres.outputs, totals.outputs)):
            for name, value in current.items():
                keep = (old / self.sizes.clamp_min(1e-300)).to(value).unsqueeze(1)
                gain = ((1 - self.decay) / self.sizes.clamp_min(1e-300)).to(value).unsqueeze(1)
                moved = keep * value + gain * new[name]
                current[name] = torch.where((counts > 0).to(value.device).unsqueeze(1), moved, value)
        self.num_batches += 1
        if self.num_batches % self.reinit_every == 0:
            self._reinitialise(batch)
        return ids

    def assign(self, batch: Capture) -> Int[Tensor, "n"]:
        """Return the nearest centre of every example, without moving anything.

        Raises:
            NotReady: No batch has been seen.
        """
        if self.centres is None:
            raise NotReady("online clustering has seen no batch yet; call update first.")
        return squared_distances(batch, self.centres, self.options).cpu().argmin(1)

    def _start(self, batch: Capture) -> None:
        if len(batch) < self.num_clusters:
            raise ConfigError(
                f"the first batch holds {len(batch)} examples for {self.num_clusters} clusters; use a "
                "larger batch."
            )
        rows = self.generator.choice(len(batch), self.num_clusters, replace=False)
        self.centres = self._from_rows(batch, torch.from_numpy(rows))
        self.sizes += self.min_size * self.initial_size * len(batch)

    def _from_rows(self, batch: Capture, rows: Int[Tensor, "k"]) -> Centres:
        """Return centres equal to the factors of some examples of the batch."""
        sums = RunningSums(len(batch), self.options)
        sums.add(batch, torch.arange(len(batch), device=batch.losses.device))
        every = sums.means(torch.ones(len(batch), dtype=torch.long))
        return Centres(
            {name: value[rows].clone() for name, value in every.inputs.items()},
            {name: value[rows].clone() for name, value in every.outputs.items()},
        )

    def _reinitialise(self, batch: Capture) -> None:
        assert self.centres is not None
        small = (self.sizes / len(batch) < self.min_size).nonzero().flatten()
        if len(small) == 0 or len(small) == self.num_clusters:
            return
        if self.reinit == "largest":
            target, source = int(small[self.sizes[small].argmin()]), int(self.distortions.argmax())
            if source == target:
                return
            for part in (self.centres.inputs, self.centres.outputs):
                for value in part.values():
                    value[target] = value[source]
            for total in (self.sizes, self.distortions):
                total[target] = total[source] = total[source] / 2
            self.num_reinits += 1
            return
        small = small[: len(batch)]
        fresh = self._from_rows(
            batch, torch.from_numpy(self.generator.choice(len(batch), len(small), replace=False))
        )
        for part, new in ((self.centres.inputs, fresh.inputs), (self.centres.outputs, fresh.outputs)):
            for name, value in part.items():
                value[small] = new[name]
        self.sizes[small] = self.min_size * self.initial_size * len(batch)
        self.distortions[small] = 0.0
        self.num_reinits += len(small)

"""Every experiment of the three papers, with its presets."""

from __future__ import annotations

from gdyn_reproduce.registry import Figure, Preset

THREE = {"seeds": [0, 1, 2]}
FIVE = {"seeds": [0, 1, 2, 3, 4]}  # the fewest that give a median an interval
QUICK_IMAGES = FIVE | {
    "dataset": "digits",
    "batch_sizes": [1024, 256, 32],
    "num_samples": 384_000,
    "num_steps": 1500,
    "num_points": 30,
}
SMOKE_IMAGES = QUICK_IMAGES | {"seeds": [0], "num_components": 4, "num_steps": 20, "num_points": 2}

FIGURES = (
    Figure(
        id="synthetic",
        source="mu paper, Sec. 5.1 (synthetic spectra)",
        shows="All methods find a linear spectrum; of an exponential one GHA and projected mu find half.",
        module="eigengame.paper.experiments.synthetic_spectra",
        config="eigengame.paper.experiments.synthetic_spectra:SyntheticConfig",
        presets={
            "quick": Preset("15 s, 1 core", "scaled down", FIVE | {"held_out": 2}),
            "paper": Preset("1 min, 1 core", "paper"),
            "smoke": Preset(
                "3 s", "smoke", {"seeds": [0], "held_out": 1, "dim": 8, "num_steps": 20, "num_points": 2}
            ),
        },
    ),
    Figure(
        id="images",
        source="mu paper, Sec. 5.2 (MNIST, batch sizes 1024, 256, 32)",
        shows="The smaller the batch, the further alpha and GHA stay from the truth; mu and Oja stay close.",
        module="eigengame.paper.experiments.image_minibatches",
        config="eigengame.paper.experiments.image_minibatches:ImagesConfig",
        presets={
            "quick": Preset("30 s, 1 core", "scaled down", QUICK_IMAGES),
            "paper": Preset("13 min, 1 core, needs MNIST", "paper"),
            "smoke": Preset("5 s", "smoke", SMOKE_IMAGES),
        },
    ),
    Figure(
        id="images-fashion-mnist",
        source="mu paper, Sec. 5.2, on Fashion-MNIST",
        shows="The same on clothes instead of digits.",
        module="eigengame.paper.experiments.image_minibatches",
        config="eigengame.paper.experiments.image_minibatches:ImagesConfig",
        presets={
            "paper": Preset(
                "13 min, 1 core, needs Fashion-MNIST", "scaled down", {"dataset": "fashion_mnist"}
            ),
            "smoke": Preset("5 s", "smoke", SMOKE_IMAGES),
        },
        in_default=False,
    ),
    Figure(
        id="bias",
        source="mu paper, Sec. 3 and Fig. 1 (bias of alpha under minibatching)",
        shows="Averaging mu directions over parts of a batch is exact; alpha's error grows as parts shrink.",
        module="eigengame.paper.experiments.bias",
        config="eigengame.paper.experiments.bias:BiasConfig",
        presets={
            "quick": Preset("5 s, 1 core", "scaled down", {"seeds": list(range(20))}),
            "paper": Preset("2 min, 1 core", "paper"),
            "smoke": Preset("3 s", "smoke", {"seeds": [0], "parts": [1, 4]}),
        },
    ),
    Figure(
        id="landscape",
        source="mu paper, Sec. 3 (utility landscapes around an imperfect parent)",
        shows="Sampling leaves the best angle under the mu utility where it is and shifts alpha's.",
        module="eigengame.paper.experiments.utility_landscape",
        config="eigengame.paper.experiments.utility_landscape:LandscapeConfig",
        presets={
            "quick": Preset("30 s, 1 core", "scaled down", FIVE | {"num_batches": 10_000, "num_angles": 361}),
            "paper": Preset("9 min, 1 core", "paper"),
            "smoke": Preset(
                "3 s", "smoke", {"seeds": [0], "num_batches": 20, "num_angles": 19, "parent_degrees": [20.0]}
            ),
        },
    ),
    Figure(
        id="data-parallel",
        source="mu paper, Sec. 5.3 (large-scale embeddings, 1x, 4x, 8x copies)",
        shows="More copies lower mu's final distance; alpha with locally formed penalties gains nothing.",
        module="eigengame.paper.experiments.data_parallel",
        config="eigengame.paper.experiments.data_parallel:DataParallelConfig",
        presets={
            "quick": Preset(
                "30 s, 1 core",
                "scaled down",
                THREE | {"dim": 64, "copies": [1, 8], "num_steps": 2000},
            ),
            "paper": Preset("3 min, 1 core", "scaled down"),
            "smoke": Preset(
                "3 s",
                "smoke",
                {"seeds": [0], "dim": 16, "num_components": 2, "copies": [1, 2], "num_steps": 50},
            ),
        },
        not_run="the paper's 14e9 embeddings are private; this preset is synthetic",
    ),
    Figure(
        id="activations",
        source="mu paper, Sec. 5.4 (principal components of network activations)",
        shows="The variances along jointly found components of all layers lie on the exact eigenvalues.",
        module="eigengame.paper.experiments.network_activations",
        config="eigengame.paper.experiments.network_activations:ActivationsConfig",
        presets={
            "quick": Preset(
                "20 s, 1 core",
                "scaled down",
                THREE | {"num_images": 500, "width": 24, "batch_size": 64, "num_steps": 500},
            ),
            "paper": Preset("5 min, 1 core, 1 GB", "scaled down"),
            "smoke": Preset(
                "3 s",
                "smoke",
                {
                    "seeds": [0],
                    "num_images": 40,
                    "width": 2,
                    "image_size": 8,
                    "num_steps": 5,
                    "batch_size": 8,
                },
            ),
        },
        not_run="ResNet-200 on ImageNet is out of reach; this preset is a random network of d = 19 456",
    ),
    Figure(
        id="clustering",
        source="mu paper, Sec. 5.5 (spectral clustering of a social graph)",
        shows="k-means on vectors found from minibatches of edges recovers the blocks of a graph.",
        module="eigengame.paper.experiments.spectral_clustering",
        config="eigengame.paper.experiments.spectral_clustering:ClusteringConfig",
        presets={
            "quick": Preset("15 s, 1 core", "scaled down", FIVE),
            "paper": Preset(
                "30 min, 1 core",
                "scaled down",
                {"nodes": 16_854, "batches_per_pass": 1000, "num_steps": 10_000},
            ),
            "smoke": Preset(
                "3 s", "smoke", {"seeds": [0], "blocks": 3, "nodes": 10, "num_steps": 20, "num_points": 1}
            ),
        },
        not_run="the social graph is not ours to ship; `embed EDGES` takes it",
    ),
    Figure(
        id="cca",
        source="gamma paper, Sec. 5 (canonical correlations)",
        shows="Full batches find the exact vectors; two independent minibatches capture the correlation.",
        module="eigengame.paper.experiments.cca",
        config="eigengame.paper.experiments.cca:CCAConfig",
        presets={
            "quick": Preset("30 s, 1 core", "scaled down", THREE),
            "paper": Preset(
                "30 min, 1 core, needs MNIST",
                "scaled down",
                {"dataset": "mnist", "image_components": 8, "full_steps": 5000},
            ),
            "smoke": Preset(
                "5 s",
                "smoke",
                {"seeds": [0], "full_steps": 10, "batch_steps": 4, "num_samples": 128, "image_components": 2},
            ),
        },
        not_run="one of its three data sets is MNIST halves; the other two are not",
    ),
    Figure(
        id="pls-ica",
        source="gamma paper, Table 1 (partial least squares, independent components)",
        shows="PLS vectors coincide with the exact ones; ICA separates a sine, a square wave and a sawtooth.",
        module="eigengame.paper.experiments.pls_ica",
        config="eigengame.paper.experiments.pls_ica:PlsIcaConfig",
        presets={
            "quick": Preset("10 s, 1 core", "scaled down", FIVE),
            "paper": Preset("1 min, 1 core", "scaled down", {"seeds": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}),
            "smoke": Preset("3 s", "smoke", {"seeds": [0], "pls_steps": 10, "ica_steps": 10}),
        },
    ),
    Figure(
        id="passes",
        source="our own: passes over the data to a stated accuracy",
        shows="Passes over the data until cosines, span and streak are right: EigenGame and five others.",
        module="eigengame.paper.experiments.passes",
        config="eigengame.paper.experiments.passes:PassesConfig",
        presets={
            "quick": Preset("40 s, 1 core", "scaled down"),
            "paper": Preset(
                "15 min, 1 core, needs Fashion-MNIST",
                "scaled down",
                {
                    "datasets": ["digits", "fashion_mnist", "gap5", "geometric"],
                    "num_components": 16,
                    "num_samples": 20_000,
                },
            ),
            "smoke": Preset("5 s", "smoke", {"seeds": [0], "datasets": ["geometric"], "num_samples": 500}),
        },
    ),
)

"""Every experiment of the three papers, with its presets."""

from __future__ import annotations

from functools import partial

from gdyn_reproduce.registry import figure
from gdyn_reproduce.unread import OF_FILES, Unread, on_disk

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
SIMULATED = {"gap5", "geometric"}
PASSES = (
    Unread(
        OF_FILES.keys,
        "on datasets that are always there",
        lambda config: on_disk(*set(config.datasets) - SIMULATED),
    ),
    Unread(
        ("num_samples",), "without gap5 or geometric among datasets", lambda c: SIMULATED & set(c.datasets)
    ),
)

_figure = partial(figure, "eigengame.paper.experiments")

FIGURES = (
    _figure(
        "synthetic",
        source="mu paper, Sec. 5.1 (synthetic spectra)",
        shows="All methods find a linear spectrum; of an exponential one GHA and projected mu find half.",
        experiment="synthetic_spectra",
        config="SyntheticConfig",
        quick=("15 s, 1 core", FIVE | {"held_out": 2}),
        paper=("1 min, 1 core", {}),
        smoke=("3 s", {"seeds": [0], "held_out": 1, "dim": 8, "num_steps": 20, "num_points": 2}),
    ),
    _figure(
        "images",
        source="mu paper, Sec. 5.2 (MNIST, batch sizes 1024, 256, 32)",
        shows="The smaller the batch, the further alpha and GHA stay from the truth; mu and Oja stay close.",
        experiment="image_minibatches",
        config="ImagesConfig",
        unread=(OF_FILES,),
        quick=("40 s, 1 core", QUICK_IMAGES),
        paper=("13 min, 1 core, needs MNIST", {}),
        smoke=("5 s", SMOKE_IMAGES),
    ),
    _figure(
        "images-fashion-mnist",
        source="mu paper, Sec. 5.2, on Fashion-MNIST",
        shows="On clothes, as on digits, small batches leave alpha and GHA further from the truth than mu.",
        experiment="image_minibatches",
        config="ImagesConfig",
        unread=(OF_FILES,),
        in_default=False,
        scales={"paper": "scaled"},
        paper=("13 min, 1 core, needs Fashion-MNIST", {"dataset": "fashion_mnist"}),
        smoke=("5 s", SMOKE_IMAGES),
    ),
    _figure(
        "bias",
        source="mu paper, Sec. 3 and Fig. 1 (bias of alpha under minibatching)",
        shows="Averaging mu directions over parts of a batch is exact; alpha's error grows as parts shrink.",
        experiment="bias",
        config="BiasConfig",
        quick=("5 s, 1 core", {"seeds": list(range(20))}),
        paper=("2 min, 1 core", {}),
        smoke=("3 s", {"seeds": [0], "parts": [1, 4]}),
    ),
    _figure(
        "landscape",
        source="mu paper, Sec. 3 (utility landscapes around an imperfect parent)",
        shows="Sampling leaves the best angle under the mu utility where it is and shifts alpha's.",
        experiment="utility_landscape",
        config="LandscapeConfig",
        quick=("40 s, 1 core", FIVE | {"num_batches": 10_000, "num_angles": 361}),
        paper=("9 min, 1 core", {}),
        smoke=("3 s", {"seeds": [0], "num_batches": 20, "num_angles": 19, "parent_degrees": [20.0]}),
    ),
    _figure(
        "data-parallel",
        source="mu paper, Sec. 5.3 (large-scale embeddings, 1x, 4x, 8x copies)",
        shows="More copies lower mu's final distance; alpha with locally formed penalties gains nothing.",
        experiment="data_parallel",
        config="DataParallelConfig",
        not_run="the paper's 14e9 embeddings are private; this preset is synthetic",
        scales={"paper": "scaled"},
        quick=("30 s, 1 core", THREE | {"dim": 64, "copies": [1, 8], "num_steps": 2000}),
        paper=("3 min, 1 core", {}),
        smoke=("3 s", {"seeds": [0], "dim": 16, "num_components": 2, "copies": [1, 2], "num_steps": 50}),
    ),
    _figure(
        "activations",
        source="mu paper, Sec. 5.4 (principal components of network activations)",
        shows="The variances along jointly found components of all layers lie on the exact eigenvalues.",
        experiment="network_activations",
        config="ActivationsConfig",
        not_run="ResNet-200 on ImageNet is out of reach; this preset is a random network of d = 19 456",
        scales={"paper": "scaled"},
        quick=("20 s, 1 core", THREE | {"num_images": 500, "width": 24, "batch_size": 64, "num_steps": 500}),
        paper=("5 min, 1 core, 1 GB", {}),
        smoke=(
            "3 s",
            {"seeds": [0], "num_images": 40, "width": 2, "image_size": 8, "num_steps": 5, "batch_size": 8},
        ),
    ),
    _figure(
        "clustering",
        source="mu paper, Sec. 5.5 (spectral clustering of a social graph)",
        shows="k-means on vectors found from minibatches of edges recovers the blocks of a graph.",
        experiment="spectral_clustering",
        config="ClusteringConfig",
        not_run="the social graph is not ours to ship; `embed EDGES` takes it",
        scales={"paper": "scaled"},
        quick=("15 s, 1 core", FIVE),
        paper=(
            "5 min, 1 core",
            FIVE | {"nodes": 16_854, "batches_per_pass": 1000, "num_steps": 10_000, "rate_factor": 0.03},
        ),
        smoke=("3 s", {"seeds": [0], "blocks": 3, "nodes": 10, "num_steps": 20, "num_points": 1}),
    ),
    _figure(
        "cca",
        source="gamma paper, Sec. 5 (canonical correlations)",
        shows="Full batches find the exact vectors; two independent minibatches capture the correlation.",
        experiment="cca",
        config="CCAConfig",
        unread=(OF_FILES,),
        not_run="one of its three data sets is MNIST halves; the other two are not",
        scales={"paper": "scaled"},
        quick=("30 s, 1 core", THREE),
        paper=(
            "30 min, 1 core, needs MNIST",
            {"dataset": "mnist", "image_components": 8, "full_steps": 5000},
        ),
        smoke=(
            "5 s",
            {"seeds": [0], "full_steps": 10, "batch_steps": 4, "num_samples": 128, "image_components": 2},
        ),
    ),
    _figure(
        "pls-ica",
        source="gamma paper, Table 1 (partial least squares, independent components)",
        shows="PLS vectors coincide with the exact ones; ICA separates a sine, a square wave and a sawtooth.",
        experiment="pls_ica",
        config="PlsIcaConfig",
        scales={"paper": "scaled"},
        quick=("10 s, 1 core", FIVE),
        paper=("1 min, 1 core", {"seeds": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}),
        smoke=("3 s", {"seeds": [0], "pls_steps": 10, "ica_steps": 10}),
    ),
    _figure(
        "passes",
        source="our own: passes over the data to a stated accuracy",
        shows="EigenGame reaches cosines of .99 in as few passes over the data as the best of five others.",
        experiment="passes",
        config="PassesConfig",
        unread=PASSES,
        scales={"paper": "scaled"},
        quick=("40 s, 1 core", {}),
        paper=(
            "15 min, 1 core, needs Fashion-MNIST",
            {
                "datasets": ["digits", "fashion_mnist", "gap5", "geometric"],
                "num_components": 16,
                "num_samples": 20_000,
            },
        ),
        smoke=("5 s", {"seeds": [0], "datasets": ["geometric"], "num_samples": 500}),
    ),
)

"""Discretization drift in two-player games: drift terms, modified flows, GANs, principal flow.

* a game and its drift: `Game`, `Drift`, `drift_coefficients`, `Regularization`
* how large the drift of a game is: `measure_drift`, `DriftMicroscope`
* flows and steps as maps: `modified_flow`, `step_map`, `integrate`, `discrete_path`, `jacobian`, ...
* GANs as games with state: `gans`; models of gradient descent on one loss: `principal_flow`

Names are imported on first use. `dd_two_player.paper` holds the figures and is not needed for them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

"""The paper's one-layer network and its PDEs, with the exact map hidden in them, and the heat equation."""

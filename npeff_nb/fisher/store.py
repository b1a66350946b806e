"""Factor rows on their way into the result: held while their coordinates are being found, reduced as they come from then on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from npeff_nb.fisher.features import FeatureMap, principal_basis

PILOT_BYTES = 384 * 2**20
"""Unreduced sketches held at once while the principal directions are found; memory does not grow with n beyond it."""
PILOT_SEED = 0


class Store:
    """Factor rows as they are kept: on the basis, where there is one.

    A sketch's basis is not known at first.  A random first part of the examples is then held whole, the principal directions are found on
    it, and everything after is reduced as it comes; memory beyond the result does not grow with n.
    """

    def __init__(self, n: int, k: int, feature_map: FeatureMap) -> None:
        self.n, self.k, self.map = n, k, feature_map
        self._factors: np.ndarray | None = None
        self._kept, self._all = 0.0, 0.0
        self._basis = None if feature_map.basis is None else torch.from_numpy(feature_map.basis)
        self._pilot: np.ndarray | None = None
        self.parts = [np.arange(n)]
        if feature_map.kind == "sketch" and feature_map.basis is None:
            size = min(n, max(64, PILOT_BYTES // (4 * k * feature_map.width)))
            self._pilot = np.sort(np.random.default_rng(PILOT_SEED).permutation(n)[:size])
            self._held, self._held_norms = torch.empty(size, k, feature_map.width), np.zeros(size)
            self.parts = [self._pilot, np.setdiff1d(np.arange(n), self._pilot)]

    @property
    def factors(self) -> np.ndarray:
        """(n, k, d) float32, once all parts have ended."""
        if self._factors is None:
            raise RuntimeError("no example was added yet")
        return self._factors

    @property
    def energy_kept(self) -> float:
        """Share of the unit-norm Fishers' traces that lies within the basis."""
        return self._kept / self._all if self._all else 1.0

    def add(self, batch: np.ndarray, features: Tensor, norms: np.ndarray) -> None:
        """Rows (b, k, width) and norms (b,) of the examples ``batch``."""
        if self._pilot is not None:
            at = np.searchsorted(self._pilot, batch)
            self._held[at], self._held_norms[at] = features, norms
        else:
            self._keep(batch, features, norms)

    def end_of_part(self) -> None:
        """To be called when all examples of one of :attr:`parts` were added."""
        if self._pilot is None:
            return
        # Each example's Fisher counts as one of unit norm. Scaled in place and back: a copy would double the peak.
        unit = torch.from_numpy(np.sqrt(np.where(self._held_norms > 0, self._held_norms, 1.0))).float()[:, None, None]
        self._basis = principal_basis(self._held.div_(unit).flatten(0, 1))
        self._held.mul_(unit)
        self.map.basis = self._basis.numpy()
        for at in range(0, len(self._pilot), 32):
            self._keep(self._pilot[at : at + 32], self._held[at : at + 32], self._held_norms[at : at + 32])
        self._pilot = None
        del self._held

    def _keep(self, where: np.ndarray, features: Tensor, norms: np.ndarray) -> None:
        weight = torch.from_numpy(np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0))
        self._all += float((features.double().square().sum((1, 2)) * weight).sum())
        features = features if self._basis is None else features @ self._basis
        self._kept += float((features.double().square().sum((1, 2)) * weight).sum())
        if self._factors is None:
            self._factors = np.zeros((self.n, self.k, features.shape[-1]), dtype=np.float32)
        self._factors[where] = features.numpy()

"""The weights of a synthetic model, each tensor made when it is asked for, from the seed and its name alone.

Residual dimension 0 is held constant in models with RMS norms: the same in every embedding row, never written by a
layer. So the normalised state carries a constant, and each neuron's firing threshold stands in column 0 of its gate, or
of its up projection where there is no gate. Models with layer norms get the constant from the norm before the FFN
(weight 0, bias 1 there), and thresholds are FFN biases.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from hybrid.checkpoint.names import tensor_shapes
from hybrid.spec import ModelSpec
from placement.skewed import solve
from synthetic.firing import firing_probabilities
from synthetic.shape import Shape

CPU = torch.device("cpu")
CONSTANT = 1.0  # share of the state's power that the constant dimension holds, over that of all others
ROWS_AT_ONCE = 1024  # drawn in blocks of this size: what is drawn depends on it


@dataclass(frozen=True)
class PlantedWeights:
    """All tensors of a model by this project's names (`hybrid.checkpoint.names`), bf16, made on demand.

    device: where values are drawn; each kind of device draws others, the CPU always the same. Tensors are in host
    memory whatever it is. hottest_first: neurons are in the order of how often they fire, as no real checkpoint's are,
    so that no row has to be moved once the model is packed.
    """

    shape: Shape
    device: torch.device = CPU
    hottest_first: bool = False

    @cached_property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.shape.spec

    @cached_property
    def names(self) -> dict[str, tuple[int, ...]]:
        """Every tensor and its shape, in the order of the computation."""
        return tensor_shapes(self.spec)

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """fp64 `[neurons]`, falling: how often neurons fire, in every layer."""
        return firing_probabilities(self.shape.ffn, 1 - self.shape.sparsity, self.shape.hot_share)

    def firing(self, layer: int) -> torch.Tensor:
        """fp64 `[neurons]`: how often each neuron of a layer fires, by neuron id."""
        if self.hottest_first:
            return self.probabilities
        order = torch.randperm(self.shape.ffn, generator=self._generator(f"layers.{layer}.order", CPU))
        return self.probabilities[order]

    def thresholds(self, layer: int) -> torch.Tensor:
        """fp32 `[neurons]`: what a gate's share of a standard normal has to exceed for the neuron to fire."""
        return torch.special.ndtri(1 - self.firing(layer)).float()

    @cached_property
    def overshoot_shift(self) -> float:
        """Standard deviations by which all thresholds are lowered, so that `overshoot` times the rows are named."""
        wanted = self.shape.overshoot * float(self.probabilities.mean())
        if self.shape.overshoot == 1:
            return 0.0
        return solve(lambda shift: float(self.named_share(shift).mean()), wanted, 1e-6, 10)

    def named_share(self, shift: float) -> torch.Tensor:
        """fp64 `[neurons]`, falling: how often each is above its threshold lowered by `shift`."""
        return torch.special.ndtr(shift - torch.special.ndtri(1 - self.probabilities))

    @lru_cache(maxsize=2)  # noqa: B019 - as long as the weights live
    def factors(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit rows `G [neurons, rank]` and a basis `B [rank, hidden]` that avoids dimension 0: the first matrix of the
        layer's FFN is `G B`, and the constant's column where the state holds it. On the device.
        """
        rank, hidden = self.shape.rank, self.shape.hidden
        basis = self._drawn(f"layers.{layer}.basis", (rank, hidden))
        basis[:, 0] = 0
        mixture = self._drawn(f"layers.{layer}.mixture", (self.shape.ffn, rank))
        return mixture / mixture.norm(dim=1, keepdim=True), torch.linalg.qr(basis.T).Q.T.contiguous()

    def tensor(self, name: str) -> torch.Tensor:
        """bf16, of the shape in `names`."""
        shape = self.names[name]
        module, _, kind = name.rpartition(".")
        part = module.rpartition(".")[2]
        if part.endswith("norm"):
            return self._norm(part, kind, shape)
        if part == ("gate" if self.shape.gated else "up"):
            return self._firing_matrix(int(module.split(".")[1]), kind)
        if kind == "bias":
            return torch.zeros(shape, dtype=torch.bfloat16)
        small = 0.1 if part in ("down", "o") else 1.0
        drawn = self._normal(name, shape, small * (1.0 if part in ("embed", "positions") else shape[1] ** -0.5))
        if self.shape.holds_constant:
            if part == "embed":
                drawn[:, 0] = (self.shape.hidden * CONSTANT) ** 0.5
            if part in ("down", "o"):
                drawn[0] = 0
            if part == "head":
                drawn[:, 0] = 0  # or the same few tokens would be the likeliest after every text
        return drawn

    def _firing_matrix(self, layer: int, kind: str) -> torch.Tensor:
        thresholds = self.thresholds(layer)
        if kind == "bias":
            return -thresholds.bfloat16()
        mixture, basis = self.factors(layer)
        made = torch.empty(self.shape.ffn, self.shape.hidden, dtype=torch.bfloat16, device=self.device)
        for rows in range(0, self.shape.ffn, ROWS_AT_ONCE):
            made[rows : rows + ROWS_AT_ONCE] = mixture[rows : rows + ROWS_AT_ONCE] @ basis
        if self.shape.holds_constant:
            # The normalised state is sqrt(hidden * C / (1 + C)) in dimension 0 and has variance 1 / (1 + C) elsewhere.
            made[:, 0] = (-thresholds / (self.shape.hidden * CONSTANT) ** 0.5).to(self.device)
        return made.cpu()

    def _norm(self, part: str, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        made = torch.full(shape, float(kind == "weight"), dtype=torch.bfloat16)
        if part == "ffn_norm" and not self.shape.holds_constant:
            made[0] = float(kind == "bias")
        if part == "final_norm" and kind == "weight" and self.spec.tied_embeddings:
            # Random signs, or a head that is the embeddings would answer every token with itself.
            made *= torch.randint(0, 2, shape, generator=self._generator("final_norm.signs", CPU)) * 2 - 1
        return made

    def _normal(self, name: str, shape: tuple[int, ...], std: float) -> torch.Tensor:
        generator = self._generator(name, self.device)
        drawn = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        for block in torch.split(drawn, ROWS_AT_ONCE):
            block.copy_(torch.randn(block.shape, generator=generator, device=self.device) * std)
        return drawn.cpu()

    def _drawn(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator(name, self.device), device=self.device)

    def _generator(self, name: str, device: torch.device) -> torch.Generator:
        digest = hashlib.sha256(f"{self.shape.seed}/{name}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little", signed=True))

"""Mixture of experts: many feed-forward networks, to a few of which each token is routed.

Letters: N tokens, E experts, K experts per token, M = N K routed (token, expert) assignments, D d_model, F width of an
expert.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.blocks.feed_forward import ACTIVATIONS, MLP, Gated, hidden_width
from isoflop.model.blocks.part import Init, Linear, Part, entry


class MoE(Part):
    """y = sum over the K likeliest experts e of p_e expert_e(x), p = softmax(W_router x) (Shazeer et al. 2017,
    1701.06538; Fedus et al. 2021, Switch, 2101.03961). Each token is routed by itself and no token is dropped.

    Training adds two auxiliary losses, means over the tokens of a pass:

        balance * E sum_e f_e P_e       f_e share of the assignments, P_e mean of p_e: 1 if balanced (GShard,
                                        Lepikhin et al. 2020, 2006.16668; Switch, equation 4)
        z * (ln sum_e exp(logit_e))^2   keeps the router's logits small (ST-MoE, Zoph et al. 2022, 2202.08906,
                                        equation 5)

    The router computes in float32 at least, as Switch's. N counts the weights that a token is multiplied by: its own K
    experts, the shared ones and the router.

    Options:
        experts, top_k: E and K.
        shared: experts that process every token in addition to its K, with weight 1 (DeepSeekMoE, Dai et al. 2024,
            2401.06066).
        gated: experts are W_down (f(W_gate x) * W_up x), else W_down f(W_up x). No biases.
        activation: f, as MLP's.
        ratio: the K experts of a token and the shared ones are ratio * d_model wide in total, so that the cost does not
            depend on K.
        d_ff: the width of one expert, if it is not 0.
        normalise: the K weights are divided by their sum (Mixtral, 2401.04088); else they are p_e (Switch).
        balance, z: coefficients of the auxiliary losses.

    Raises:
        UserError: for fewer than 2 experts, K outside 1 ... E, a negative number of shared experts or coefficient, and
            K = 1 with normalise (its weight is always 1, so the router gets no gradient).
    """

    def __init__(
        self,
        *,
        d_model: int,
        dropout: float,
        init: Init,
        experts: int = 8,
        top_k: int = 2,
        shared: int = 0,
        gated: bool = False,
        activation: str = "gelu",
        ratio: float = 4.0,
        d_ff: int = 0,
        normalise: bool = True,
        balance: float = 0.01,
        z: float = 0.001,
    ) -> None:
        super().__init__()
        check_routing(experts, top_k, shared, normalise)
        for name, value in (("balance", balance), ("z", z)):
            if value < 0:
                raise UserError(f"{name} = {value:g} is negative; 0 disables that loss")

        width = hidden_width(d_model, ratio / (top_k + shared), d_ff)
        self.top_k, self.normalise, self.balance, self.z = top_k, normalise, balance, z
        self.router = Linear(d_model, experts, bias=False, init=init, role="score")
        self.experts = Experts(
            d_model=d_model, width=width, experts=experts, top_k=top_k, gated=gated, activation=activation, init=init
        )

        self.shared: Part | None = None
        if shared:
            network = Gated if gated else MLP
            self.shared = network(
                d_model=d_model, dropout=0.0, init=init, activation=activation, d_ff=shared * width, bias=False
            )

        self.dropout = nn.Dropout(dropout)
        self.load_E: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.route(x_ND)
        p_NE = logits_NE.softmax(-1)
        p_NK, chosen_NK = p_NE.topk(self.top_k, dim=-1)

        self.load_E = load_E = chosen_NK.flatten().bincount(minlength=p_NE.shape[1])
        self.auxiliary = self.auxiliary_loss(logits_NE, p_NE, load_E) if self.training else None

        weights_NK = p_NK / p_NK.sum(-1, keepdim=True) if self.normalise else p_NK
        y_ND = self.dispatch(x_ND, chosen_NK, weights_NK, load_E)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        return self.dropout(y_ND.view(x_BTD.shape))

    def route(self, x_ND: Tensor) -> Tensor:
        """The router's logits_NE, in float32 or float64."""
        exact = torch.promote_types(self.router.weight.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.to(exact), self.router.weight.to(exact))

    def dispatch(self, x_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor, load_E: Tensor) -> Tensor:
        """Sort tokens by expert, so that each expert reads one slice; then restore the order and sum.

        The sort is a permutation of the M assignments and its inverse: no two rows are ever added in an order that the
        device chooses, so the result is deterministic.
        """
        N, K = chosen_NK.shape
        order_M = chosen_NK.flatten().argsort(stable=True)
        x_MD = x_ND.unsqueeze(1).expand(N, K, -1).reshape(N * K, -1).index_select(0, order_M)
        y_MD = self.experts(x_MD, load_E.tolist())  # on a GPU this waits for the router
        y_NKD = y_MD.index_select(0, order_M.argsort()).view(N, K, -1)
        return (y_NKD * weights_NK.unsqueeze(-1).to(y_NKD.dtype)).sum(1)

    def auxiliary_loss(self, logits_NE: Tensor, p_NE: Tensor, load_E: Tensor) -> Tensor:
        share_E = load_E.to(p_NE.dtype) / load_E.sum()
        balance = len(load_E) * (share_E * p_NE.mean(0)).sum()
        return self.balance * balance + self.z * logits_NE.logsumexp(-1).square().mean()

    def readings(self) -> dict[str, float]:
        """`load_entropy`: entropy of the last forward's assignments over the experts as a share of ln E: 1 if they are
        balanced, 0 if one expert gets every token."""
        if self.load_E is None:
            return {}
        share_E = self.load_E.double() / self.load_E.sum()
        return {"load_entropy": float(torch.special.entr(share_E).sum()) / math.log(len(share_E))}


class Experts(Part):
    """E networks of one shape, their matrices stacked: (E, F, D) is E matrices of F x D to the optimiser."""

    def __init__(
        self, *, d_model: int, width: int, experts: int, top_k: int, gated: bool, activation: str, init: Init
    ) -> None:
        super().__init__()
        self.init, self.top_k = init, top_k
        self.activation = entry(ACTIVATIONS, activation, "activation")
        self.gate_EFD = nn.Parameter(torch.empty(experts, width, d_model)) if gated else None
        self.up_EFD = nn.Parameter(torch.empty(experts, width, d_model))
        self.down_EDF = nn.Parameter(torch.empty(experts, d_model, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gate_EFD is not None:
            self.init(self.gate_EFD, "matrix")
        self.init(self.up_EFD, "matrix")
        self.init(self.down_EDF, "residual")

    def forward(self, x_MD: Tensor, counts: list[int]) -> Tensor:
        """y_MD for rows that are sorted by expert, `counts` of them per expert."""
        ups, downs = self.up_EFD.unbind(), self.down_EDF.unbind()
        gates = self.gate_EFD.unbind() if self.gate_EFD is not None else [None] * len(counts)
        y_MD = [
            self.one(x_SD, gate_FD, up_FD, down_DF)
            for x_SD, gate_FD, up_FD, down_DF in zip(x_MD.split(counts), gates, ups, downs, strict=True)
        ]
        return torch.cat(y_MD)

    def one(self, x_SD: Tensor, gate_FD: Tensor | None, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        h_SF = F.linear(x_SD, up_FD)
        h_SF = self.activation(h_SF) if gate_FD is None else self.activation(F.linear(x_SD, gate_FD)) * h_SF
        return F.linear(h_SF, down_DF)

    def matmul_weights(self) -> int:
        """The weights of K of the E experts."""
        stacks = [w for w in (self.gate_EFD, self.up_EFD, self.down_EDF) if w is not None]
        return self.top_k * sum(w[0].numel() for w in stacks)


def check_routing(experts: int, top_k: int, shared: int, normalise: bool) -> None:
    """Raises:
    UserError: for inconsistent numbers of experts.
    """
    if experts < 2:
        raise UserError(f"experts = {experts} leaves no choice to the router; make it at least 2, or use mlp")
    if not 1 <= top_k <= experts:
        raise UserError(f"top_k = {top_k} is not between 1 and experts = {experts}")
    if shared < 0:
        raise UserError(f"shared = {shared} is negative; 0 means no shared experts")
    if top_k == 1 and normalise:
        raise UserError(
            "top_k = 1 with normalise = true always has weight 1, so the router gets no gradient; set normalise=false"
        )

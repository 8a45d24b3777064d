"""Label-agnostic forgetting (Shen et al., 2024, arXiv 2404.00506): move hidden representations without reading labels.

    e = the output layer's input,  e_o = the same in the original model;  h, h_f = two autoencoders of e_o, over all
    data and over
    the forget set;  m(e; h) = ||h(e) - e||^2,  d = 1 - cos(e, e_o)
    L_UE = sum_retain exp(m(e; h) / (m(e; h) + 1)) - sum_forget exp(m(e; h_f) / (m(e; h_f) + 1))
    L_RA = sum_retain log( exp(d) / sum_forget exp(d / tau) )

A pair of batches gives one Adam step on L_UE and one on L_RA. Both are sums over rows, as published, so that of two
sets the one with the larger batch weighs more. The autoencoders are variational (squared error summed over an example,
plus 0.025 KL, as a mean over the batch; widths 256-128-32-latent-32-128-256, Adam at 1e-3) with a linear output, since
a sigmoid's cannot reach representations above 1; afterwards they use the mean and do not sample. The output layer gets
no gradient and does not change. Label-free is not data-free: the retain set's inputs are read. Of a language model each
answer token's last hidden state is a row; the token itself is not read, but those before it are.

Published: `extract_rate` 5e-5 and `align_rate` 1e-4 (MNIST, 20 epochs of the forget set) or 1e-5 and 4e-5 (ResNet-18,
40 epochs), tau 5 to forget examples at random and 20 for a class. On a small network, where an epoch of the forget set
is a handful of steps, these rates forget little or nothing (docs/log.md); the defaults are ten times as large, and
steps are given, or `Epochs`. Its repair (LAF+R) is a fine-tuning on a few labelled retain examples afterwards.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from expunge.adapters.full import Full
from expunge.core.method import WeightMethod
from expunge.core.model import Batch, Model, Network
from expunge.core.request import Request
from expunge.errors import DataRefused, RunFailed, UsageRefused
from expunge.events import Event, Note, OnEvent, ignore_event
from expunge.internals.changes import describe_change
from expunge.internals.representation import represent
from expunge.methods._lengths import as_steps, count_steps
from expunge.methods.epochs import Epochs
from expunge.notation.recipes import Recipe
from expunge.primitives.rehearsal import Rehearsal
from expunge.train.batches import Batches

KL = 0.025
MOVING = "Moving the forgotten representations"
WIDTHS = (256, 128, 32)


PUBLISHED = Recipe(
    "LAF",
    "vision",
    "LAF(steps=Epochs(count=40.0), batch=64, extract_rate=1e-05, align_rate=5e-05, tau=20.0, latent=16)",
    "Shen et al., 2024, for a class of CIFAR-10 and ResNet-18: 40 epochs, rates 1e-5 and 5e-5, tau "
    "20, latents of 16. `LAF()` has ten times these rates, which small networks need.",
)


@dataclass(frozen=True)
class LAF(WeightMethod):
    """Move forgotten representations off their manifold, and keep the others in place."""

    steps: int | Epochs = 140
    """Pairs of batches; each is one step on either loss. `Epochs(count=20.0)`: 20 passes through the forget set."""
    batch: int = 64
    """Forget examples, and retain examples, in a step."""
    extract_rate: float = 5e-4
    """Learning rate of L_UE, which forgets; 0 leaves it out."""
    align_rate: float = 1e-3
    """Learning rate of L_RA, which keeps the retained representations in place, but not the forgotten ones; 0 leaves it
    out.
    """
    tau: float = 20.0
    """How little a forgotten representation's distance counts against a retained one's; smaller is stronger."""
    latent: int = 8
    """Width of an autoencoder's latent (published: 8 for MNIST, else 16)."""
    autoencoder_steps: int = 400
    """Training steps of each of the two autoencoders; with more, less is forgotten and less is harmed."""
    seed: int = 0
    """Fixes the order of the examples and the autoencoders."""

    def __post_init__(self) -> None:
        wrong = [
            f"`{name}` must be {rule} (got {getattr(self, name)!r})"
            for name, rule, good in (
                ("steps", "at least 1", isinstance(self.steps, Epochs) or self.steps >= 1),
                ("batch", "at least 1", self.batch >= 1),
                ("extract_rate", "at least 0 and finite", 0 <= self.extract_rate < math.inf),
                ("align_rate", "at least 0 and finite", 0 <= self.align_rate < math.inf),
                ("tau", "positive", 0 < self.tau < math.inf),
                ("latent", "at least 1", self.latent >= 1),
                ("autoencoder_steps", "at least 1", self.autoencoder_steps >= 1),
                ("seed", "from 0 to 2**63 - 1", 0 <= self.seed < 2**63),
            )
            if not good
        ]
        if wrong:
            raise UsageRefused(f"LAF: {'; '.join(wrong)}.")

    def with_seed(self, seed: int) -> Self:
        return replace(self, seed=seed)

    def fit(self, model: Model, request: Request, on_event: OnEvent = ignore_event) -> Self:
        return replace(self, steps=count_steps(self.steps, request, (self.batch, self.batch), "steps", on_event))

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        if not request.retain:
            raise DataRefused("LAF reads the retain set's representations, and the request has none. Give --retain.")
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            on_event(Note("Fitting autoencoders to the representations"))
            forget = torch.cat(list(_representations(network, request.forget)))
            every = torch.cat([*_representations(network, request.retain), forget])
            common, own = (self._fit_autoencoder(states) for states in (every, forget))
        result = Full().insert(network, request)
        on_event(Note(MOVING))
        losses = self.fit(network, request, on_event)._move(result, network, common, own, request)
        result.module.requires_grad_(False)
        on_event(replace(describe_change(network, result), losses=losses))
        return result

    def rehearse(self, model: Model, request: Request, rehearsal: Rehearsal) -> Model:
        steps = as_steps(self.fit(model, request).steps)
        few = min(steps, rehearsal.most)
        rehearsal.steps = steps

        def on_event(event: Event) -> None:
            if isinstance(event, Note) and event.what == MOVING:
                rehearsal.times = rehearsal.before = steps / few

        trial = replace(self, steps=few, autoencoder_steps=1, extract_rate=1e-12, align_rate=1e-12)
        try:
            return trial(model, request, on_event)
        finally:
            rehearsal.times = rehearsal.before = 1.0

    def _fit_autoencoder(self, states: Tensor) -> "_Autoencoder":
        made = _Autoencoder(states.shape[1], self.latent).to(states.device)
        optimizer = torch.optim.Adam(made.parameters(), lr=1e-3)
        for _ in range(self.autoencoder_steps):
            some = states[torch.randint(len(states), (min(self.batch, len(states)),)).to(states.device)]
            loss = made.loss(some)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return made.requires_grad_(False)

    def _move(
        self, now: Network, before: Network, common: "_Autoencoder", own: "_Autoencoder", request: Request
    ) -> dict[str, float]:
        """Take the steps. Returns the last value of both losses."""
        draw = Batches(request, self.batch, self.batch, self.seed)
        rates = {"extract": self.extract_rate, "align": self.align_rate}
        optimizers = {name: torch.optim.Adam(now.module.parameters(), lr=rate) for name, rate in rates.items()}
        last: dict[str, float] = {}
        for step in range(1, as_steps(self.steps) + 1):
            sets = draw.sets()
            with torch.no_grad():
                was = [represent(before, sets[name]).float() for name in ("retain", "forget")]
            for name, optimizer in optimizers.items():
                retain, forget = (represent(now, sets[name]).float() for name in ("retain", "forget"))
                if name == "extract":
                    loss = common.off(retain).sum() - own.off(forget).sum()
                else:
                    far, near = (1 - cosine_similarity(e, o) for e, o in zip((retain, forget), was, strict=True))
                    loss = (far - (near / self.tau).logsumexp(0)).sum()
                last[name] = float(loss.detach())
                if not math.isfinite(last[name]):
                    raise RunFailed(f"step {step} of LAF: the {name} loss is NaN or infinite. Lower its rate.")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return last


class _Autoencoder(nn.Module):
    """A variational autoencoder of representations."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = _layers(width, *WIDTHS, 2 * latent)
        self.decoder = _layers(latent, *reversed(WIDTHS), width)

    def loss(self, states: Tensor) -> Tensor:
        mean, log_variance = self.encoder(states).chunk(2, dim=1)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        error = (self.decoder(drawn) - states).square().sum(1)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        loss: Tensor = (error + KL * kl).mean()
        return loss

    def off(self, states: Tensor) -> Tensor:
        """exp(m / (m + 1)) of each row: from 1, on the manifold, to e, far off."""
        mean, _ = self.encoder(states).chunk(2, dim=1)
        missed = (self.decoder(mean) - states).square().sum(1)
        distance: Tensor = (missed / (missed + 1)).exp()
        return distance


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers with a ReLU between any two."""
    made: list[nn.Module] = []
    for inner, outer in zip(widths, widths[1:], strict=False):
        made += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*made[:-1])


def _representations(network: Network, examples: Batch) -> Iterator[Tensor]:
    """The original network's representations, batch by batch."""
    for group in network.batches(examples):
        with torch.no_grad():
            yield represent(network, [examples[k] for k in group]).float()

"""How good generated images are: Fréchet distance (FID) and Inception score (IS), with any network that looks at them.

By name and by number FID and IS are those of Inception-v3; with another extractor they compare only with themselves.

Shape letters: B images, F features, P classes, S parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crocodil.errors import CrocodilError
from crocodil.images.data import ImagesConfig, digits, held_out_rows
from crocodil.metrics.bootstrap import Estimate, mean
from crocodil.text.rows import optional

CHUNK = 500  # images that are looked at together
HIDDEN = 64  # features of the classifier of digits
EPOCHS = 60


@dataclass(frozen=True)
class Seen:
    """What an extractor says of B images."""

    features_BF: Tensor
    probabilities_BP: Tensor
    """Of the classes; a row sums to 1."""


Extractor = Callable[[Tensor], Seen]
"""Images (B, C, H, W) in [0, 1] to what is seen in them."""


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution with the mean and covariance of some features, in float64."""

    mean_F: Tensor
    covariance_FF: Tensor
    n: int
    """Images that it was fitted to. FID falls with their number, so compare equal numbers."""


@dataclass(frozen=True)
class InceptionScore:
    """exp of the mean KL(p(y|x) ‖ p(y)), of each part of the images by itself."""

    mean: Estimate
    """Over parts; its interval is by bootstrap of the parts."""
    deviation: float
    """Standard deviation over parts, as it is usually printed."""


@torch.no_grad()
def extract(images: Tensor, extractor: Extractor) -> Seen:
    """What the extractor says of all images, CHUNK at a time; on the CPU, in float64."""
    parts = [extractor(part) for part in images.split(CHUNK)]
    return Seen(
        torch.cat([part.features_BF.double().cpu() for part in parts]),
        torch.cat([part.probabilities_BP.double().cpu() for part in parts]),
    )


def fit(features_BF: Tensor) -> Gaussian:
    """
    Raises:
        CrocodilError: fewer than two images, or features that are not finite.
    """
    if features_BF.ndim != 2 or len(features_BF) < 2:
        raise CrocodilError(
            f"FID wants features (B, F) of two images or more, not {tuple(features_BF.shape)}"
        )
    if not bool(features_BF.isfinite().all()):
        raise CrocodilError("FID: features are not all finite")
    features_BF = features_BF.double()
    # `cov` of one feature is a scalar
    covariance_FF = torch.cov(features_BF.T).reshape(features_BF.shape[1], features_BF.shape[1])
    return Gaussian(features_BF.mean(dim=0), covariance_FF, len(features_BF))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ (Dowson & Landau 1982): FID, where the features are Inception's.

    With roots Σ = R Rᵀ from eigenvalues, the last trace is the sum of the singular values of R₁ᵀR₂. Unlike the square
    root of a product, these are exact to rounding where Σ has eigenvalues of zero.

    Raises:
        CrocodilError: the two have different widths.
    """
    if one.mean_F.shape != other.mean_F.shape:
        raise CrocodilError(
            f"FID: features of width {len(one.mean_F)} do not compare with features of width {len(other.mean_F)}"
        )
    shared = torch.linalg.svdvals(_root(one.covariance_FF).T @ _root(other.covariance_FF)).sum()
    apart = (one.mean_F - other.mean_F).square().sum()
    return max(0.0, float(apart + one.covariance_FF.trace() + other.covariance_FF.trace() - 2 * shared))


def _root(covariance_FF: Tensor) -> Tensor:
    """R with R Rᵀ = Σ; eigenvalues that are zero but for rounding are zero."""
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    rounding = len(values_F) * torch.finfo(torch.float64).eps * values_F.abs().max()
    return vectors_FF * torch.where(values_F > rounding, values_F, 0.0).sqrt()


def inception_score(probabilities_BP: Tensor, parts: int = 10) -> InceptionScore:
    """IS of `parts` equal parts, in the order of the images (Salimans et al. 2016); a rest is left out.

    Raises:
        CrocodilError: fewer images than parts, or rows that are no probabilities.
    """
    p_BP = probabilities_BP.double()
    if parts < 1 or len(p_BP) < parts:
        raise CrocodilError(f"IS: {len(p_BP)} images cannot be dealt out into {parts} parts")
    if not bool((p_BP >= 0).all()) or not torch.allclose(p_BP.sum(1), torch.ones(1).double(), atol=1e-4):
        raise CrocodilError("IS: the rows of probabilities do not sum to 1")
    size = len(p_BP) // parts
    p_SBP = p_BP[: parts * size].unflatten(0, (parts, size))
    # Σ p log p − Σ p̄ log p̄: xlogy knows that 0 log 0 is 0
    information_S = torch.special.entr(p_SBP.mean(1)).sum(1) - torch.special.entr(p_SBP).sum(2).mean(1)
    scores_S = information_S.exp()
    return InceptionScore(mean(scores_S), float(scores_S.std(correction=0)))


def digits_extractor(config: ImagesConfig | None = None) -> Extractor:
    """A classifier of scikit-learn's digits with one hidden layer, trained here and now on those that are not held out.

    Features are its hidden activations. The same configuration gives the same classifier; it takes seconds.

    Args:
        config: what is held out (`held_out`, `split_seed`).
    """
    config = config or ImagesConfig()
    images, classes = digits()
    train = ~held_out_rows(images, config.held_out, config.split_seed)
    network = optional("sklearn.neural_network", "scikit-learn").MLPClassifier(
        (HIDDEN,), random_state=0, max_iter=EPOCHS, alpha=1e-3, learning_rate_init=5e-3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more epochs would still change it a little
        network.fit(images.pixels()[train].flatten(1).numpy(), classes[train].numpy())
    weights = [torch.from_numpy(matrix).double() for matrix in (*network.coefs_, *network.intercepts_)]
    space = images.space

    def look(images_BCHW: Tensor) -> Seen:
        if images_BCHW.shape[1:] != (space.C, space.H, space.W):
            raise CrocodilError(f"this extractor sees digits of 8 x 8 pixels, not {tuple(images_BCHW.shape)}")
        first, second, bias, last = (matrix.to(images_BCHW.device) for matrix in weights)
        features_BF = (images_BCHW.flatten(1).double() @ first + bias).relu()
        return Seen(features_BF, (features_BF @ second + last).softmax(dim=1))

    return look

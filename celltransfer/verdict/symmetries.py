"""Symmetries of a cloud of cells, and whether anchors break them.

Matching the law of the target leaves every measure-preserving automorphism of the source open: where h moves the
source cells onto themselves, f and f o h match equally well. An anchor tells them apart only if h moves it.

>>> found = find(x)  # doctest: +SKIP
>>> displacement(found[0], x[anchors])  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, pdist

from celltransfer.data.pair import dense
from celltransfer.errors import ConfigError, InputError
from celltransfer.verdict.symmetry_maps import (
    Axes,
    Candidate,
    ClusterSwap,
    Frame,
    Linear,
    Move,
    cluster_swaps,
    compose,
    flip,
    independent_axes,
    lengths,
    planar,
    turn,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celltransfer.data.pair import Matrix

# Leading components that symmetries are looked for in, and cells below which none is told from any other map.
N_COMPONENTS, MIN_CELLS = 8, 20
# Cells that axes and clusters are found on, and cells of which each half of the test is.
MAX_CELLS, HALF, SCREEN = 4000, 1000, 200
# Of the mean square by which h moves the cells, so much may show as a misfit of the laws.
TOLERANCE = 0.003
# Splits of so many cells that the misfit is compared with, and how many of them it may exceed.
N_SPLITS, SPLIT, LEVEL = 100, 300, 0.95
# An automorphism of smaller size changes little, and an anchor that moves less than this share says little.
RELEVANT_SIZE, MIN_DISPLACEMENT = 0.2, 0.2
# The warning is for larger ones: it should come rarely with three anchors drawn at random.
WARN_SIZE = 0.3
# Two-sided 90 %: a single anchor that h moves by as many standard deviations of the noise picks the right map in 95 %.
Z_BROKEN = 3.29
# Symmetries that leave the same cells in place are one; the cosine of their displacements from which on they are.
ALIKE = 0.98
MIN_SIZE, MAX_TESTED, MAX_FOUND = 0.05, 100, 24
# What is kept first where there are many: those that leave many cells in place are the hardest to break.
_SIMPLEST = ("point reflection", "flip", "swap", "reflection", "cluster swap", "rotation", "composition")
# Breaking symmetries counts so much more than lying where other cells are.
_BREAKING = 10.0


@dataclass(frozen=True, eq=False)
class Automorphism:
    """A map that leaves the law of the cells as it is, as far as the cells can tell.

    Attributes
    ----------
    kind
        ``"flip"``, ``"swap"``, ``"reflection"``, ``"rotation"``, ``"point reflection"``, ``"cluster swap"`` or
        ``"composition"``.
    label
        What it does, in words.
    size
        E||h(x) - x||^2 over the variance of the cells: 2 for a map to an unrelated cell, 4 for a point reflection.
    misfit
        Energy distance of moved cells to other cells over the largest that is accepted; at most 1.
    match
        Share of splits of the cells into two halves that differ as much as moved and unmoved cells do: 0 where the
        cells can tell the map from an exact symmetry, and it passes by the tolerance alone.
    scale
        Root of E||h(x) - x||^2.
    threshold
        Relative displacement from which on anchors break it, see `breaks`.
    frame, move
        The coordinates and the map in them.
    """

    kind: str
    label: str
    size: float
    misfit: float
    match: float
    scale: float
    threshold: float
    frame: Frame
    move: Move

    def __call__(self, x: Matrix) -> np.ndarray:
        """The moved cells, shape (n, d)."""
        u = self.frame.whiten(x)
        return dense(x) + ((self.move(u) - u) * self.frame.sd) @ self.frame.axes

    def distance(self, x: Matrix) -> np.ndarray:
        """How far each cell is moved, shape (n,), in the units of the features."""
        u = self.frame.whiten(x)
        return lengths((self.move(u) - u) * self.frame.sd)


def find(
    x: Matrix,
    *,
    n_components: int = N_COMPONENTS,
    axes: Axes = "components",
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> list[Automorphism]:
    r"""Find maps h that move the cells and leave their law as it is, :math:`h_\# p \approx p`.

    Searched are, in standardised principal components that carry at least 2 % of the variance: every rotation and
    reflection in the plane of two principal or two independent components, which has flips and swaps among them; the
    point reflection; swaps of two separated clusters; and compositions of what was found. h is accepted where the
    energy distance between moved cells of one half of the sample and cells of the other, in all coordinates and in
    those it acts on, is no larger than

    .. math:: q_{95} + D_E(\tau \; E||h(u) - u||^2)

    with :math:`q_{95}` the 95 % quantile between random halves of unmoved cells, and :math:`D_E(v)` the energy
    distance of a shift by :math:`\sqrt v`: of the movement, at most the share :math:`\tau` may show. Of symmetries
    that leave the same cells in place one is kept.

    Finding none does not prove that there is none: only these maps are searched.

    Parameters
    ----------
    x
        Source cells, shape (n, d).
    n_components
        Coordinates that are searched, at most.
    axes
        ``"components"``; or ``"features"``: only flips and swaps of standardised features (of those with most
        variance) and their compositions, which are what is left open where f is known to be sparse in the features
        (component-wise maps and permutations).
    tolerance
        The share tau.
    seed
        Seed of subsamples and starts.

    Returns
    -------
    list of Automorphism
        The largest first, at most 24.

    References
    ----------
    Moriakov et al. 2020, *Kernel of CycleGAN as a principal homogeneous space*, for the role of automorphisms.
    """
    if axes not in ("components", "features"):
        raise ConfigError(f"axes={axes!r}; expected 'components' or 'features'.")
    if x.ndim != 2 or x.shape[0] < MIN_CELLS:
        raise InputError(f"The cells have shape {x.shape}; symmetries are looked for among {MIN_CELLS} cells or more.")
    rng = np.random.default_rng([seed, 31])
    rows = rng.permutation(x.shape[0])[:MAX_CELLS]
    cells = dense(x[rows]).astype(np.float64)
    frame = Frame.fit(cells, n_components, axes, seed)
    if not len(frame.sd):
        return []
    search = _Search(frame, frame.whiten(cells), tolerance, rng)
    found = search.accept(_candidates(search, axes, seed))
    found = _distinct(found + search.accept(_compositions(found)), search.u)
    return sorted(found[:MAX_FOUND], key=lambda h: -h.size)


def displacement(h: Automorphism, points: Matrix) -> np.ndarray:
    """How far h moves each of `points`, shape (k, d), relative to the cells: 1 is the root mean square over cells."""
    return h.distance(points) / h.scale


def breaks(h: Automorphism, points: Matrix) -> bool:
    """Whether anchors at `points`, shape (k, d), tell f from f o h.

    They do where the root of the summed squares of their relative displacements reaches ``h.threshold``: with
    independent noise of standard deviation s in the anchors, the better fit to them is the right one with probability
    Phi(D / 2s), D being that sum in absolute units. The threshold is 95 %, with s the noise that the distance between
    nearest cells implies, and at least 0.2 (a tenth of a standard deviation of noise under a flip).
    """
    return bool(evidence(h, points) >= h.threshold)


def evidence(h: Automorphism, points: Matrix) -> float:
    """Root of the summed squares of the relative displacements of `points`, shape (k, d)."""
    return float(np.sqrt((displacement(h, points) ** 2).sum()))


def relevant(found: Sequence[Automorphism]) -> list[Automorphism]:
    """Those of size 0.2 and more."""
    return [h for h in found if h.size >= RELEVANT_SIZE]


def informativeness(found: Sequence[Automorphism], x: Matrix) -> np.ndarray:
    """Mean over the symmetries, weighted by size, of min(1, relative displacement) of each cell, shape (n,).

    0: an anchor there breaks none, 1: it breaks each at least as well as a typical cell does; NaN without symmetries.
    """
    if not found:
        return np.full(x.shape[0], np.nan)
    moved = np.minimum([displacement(h, x) for h in found], 1)
    return np.average(moved, axis=0, weights=[h.size for h in found])


def choose(
    x: Matrix,
    n: int,
    found: Sequence[Automorphism],
    *,
    given: np.ndarray | None = None,
    among: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Cells to co-assay: they break the symmetries, and lie where the cells are.

    Greedy maximisation of a submodular sum: over symmetries, weighted by size, min(1, sum of squared relative
    displacements); and, with a tenth of the weight, the share of the variance that the nearest chosen cell explains
    (which, unlike the distance to the furthest cell, is not drawn to outliers).

    Parameters
    ----------
    x
        Source cells, shape (n_cells, d).
    n
        Number of cells wanted.
    found
        Symmetries to break.
    given
        Rows that are anchors already.
    among
        Rows that may be chosen; ``None``: all. More than 4,000 are sampled.
    seed
        Seed of the samples.

    Returns
    -------
    numpy.ndarray
        Rows, the most informative first, shape (n,).
    """
    rng = np.random.default_rng([seed, 32])
    given = np.empty(0, dtype=np.int64) if given is None else np.asarray(given)
    rows = np.setdiff1d(np.arange(x.shape[0]) if among is None else among, given)
    if not 0 < n <= len(rows):
        raise ConfigError(f"n={n} cells are wanted, and {len(rows)} can be chosen.")
    rows = rng.permutation(rows)[: max(MAX_CELLS, n)]
    sample = dense(x[rng.permutation(x.shape[0])[:MAX_CELLS]]).astype(np.float64)
    frame = Frame.fit(sample, N_COMPONENTS, "components", seed)
    points, cells = frame.whiten(x[rows]) * frame.sd, frame.whiten(sample[:HALF]) * frame.sd
    nearest = np.square(cells).sum(axis=1)
    total = max(float(nearest.sum()), 1e-300)
    if len(given):
        nearest = cdist(cells, frame.whiten(x[given]) * frame.sd, "sqeuclidean").min(axis=1)
    weight = np.array([h.size for h in found])[:, None]
    moved = np.array([displacement(h, x[rows]) ** 2 for h in found]).reshape(len(found), len(rows))
    broken = np.array([evidence(h, x[given]) ** 2 for h in found])[:, None]
    apart = cdist(points, cells, "sqeuclidean")
    chosen: list[int] = []
    for _ in range(n):
        gain = np.maximum(nearest - apart, 0).sum(axis=1) / total
        if len(found):
            reached = np.minimum(broken + moved, 1) - np.minimum(broken, 1)
            gain += _BREAKING * (weight * reached).sum(axis=0) / weight.sum()
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        nearest = np.minimum(nearest, apart[best])
        broken = broken + moved[:, [best]]
    return rows[chosen]


def ambiguity(x: Matrix, anchor_rows: np.ndarray, seed: int = 0) -> str | None:
    """One sentence if anchors leave a linear symmetry of size 0.3 or more unbroken, ``None`` otherwise.

    Swaps of clusters are left to `celltransfer.anchors.assess`: few anchors meet every cluster, and few maps that
    are fitted can exchange two of them.

    Parameters
    ----------
    x
        Source cells, shape (n, d).
    anchor_rows
        Rows of the anchors, shape (k,).
    seed
        Seed of the search.
    """
    if x.shape[0] < MIN_CELLS or not len(anchor_rows):
        return None
    points = x[anchor_rows]
    large = [h for h in find(x, seed=seed) if h.size >= WARN_SIZE and isinstance(h.move, Linear)]
    left = [h for h in large if not breaks(h, points)]
    if not left:
        return None
    k, more = len(anchor_rows), f", and {len(left) - 1} more" if len(left) > 1 else ""
    return (
        f"The {f'{k} anchors lie' if k > 1 else 'anchor lies'} where a symmetry of the source cells moves little "
        f"({left[0].label}{more}): matching cannot tell the map from one that is turned by it. Co-assay cells such as "
        "celltransfer.anchors.suggest gives."
    )


class _View:
    """Two halves of the cells in some coordinates, and the energy distances that are ordinary there."""

    def __init__(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> None:
        self.b = b
        self._within = _mean_distance(a), _mean_distance(b)
        # Of halves of one law the distance falls as 1 / n, so that a few cells tell how large it is.
        n = min(len(a), len(b), SPLIT)
        self._null = _split_distances(np.concatenate([a[:n], b[:n]]), rng) * n / len(a)
        self._bound = float(np.quantile(self._null, LEVEL))
        self._curvature = _shift_curvature(a[:SPLIT], rng)

    def distance(self, moved: np.ndarray, *, isometric: bool) -> float:
        """Energy distance of moved cells of the first half to the second, unbiased."""
        within = self._within[0] if isometric else _mean_distance(moved)
        return 2 * float(cdist(moved, self.b).mean()) - within - self._within[1]

    def distances(self, moved: np.ndarray) -> np.ndarray:
        """`distance` for many isometric maps at once, `moved` of shape (g, n, r)."""
        flat, other = moved.reshape(-1, moved.shape[2]).astype(np.float32), self.b.astype(np.float32)
        square = (flat**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * flat @ other.T
        between = np.sqrt(np.maximum(square, 0, out=square), out=square).reshape(len(moved), -1)
        return 2 * between.mean(axis=1, dtype=np.float64) - sum(self._within)

    def limit(self, moved_by: np.ndarray, tolerance: float) -> np.ndarray:
        """Largest energy distance that is accepted for a map that moves cells by `moved_by` in mean square."""
        return self._bound + tolerance * self._curvature * moved_by

    def match(self, distance: float) -> float:
        """Share of splits whose halves differ as much."""
        return float(np.mean(self._null >= distance))


class _Search:
    """The cells in standardised coordinates, and the tests of candidates on them."""

    def __init__(self, frame: Frame, u: np.ndarray, tolerance: float, rng: np.random.Generator) -> None:
        self.frame, self.u, self.tolerance, self.rng = frame, u, tolerance, rng
        self.half = min(HALF, len(u) // 2)
        self.noise = _noise(u * frame.sd)
        self._views: dict[bytes, _View] = {}

    def accept(self, candidates: list[Candidate]) -> list[Automorphism]:
        """Those candidates that leave the law as it is, without those that act alike."""
        sized = [(self._size(candidate.move), candidate) for candidate in candidates]
        sized = [pair for pair in sized if pair[0] >= MIN_SIZE]
        sized.sort(key=lambda pair: _order(pair[1].kind, pair[0]))
        tested = (self._tested(candidate, size) for size, candidate in sized[:MAX_TESTED])
        return _distinct([h for h in tested if h is not None], self.u)

    def _size(self, move: Move) -> float:
        return float((((move(self.u) - self.u) * self.frame.sd) ** 2).sum(axis=1).mean()) / self.frame.total

    def _tested(self, candidate: Candidate, size: float) -> Automorphism | None:
        misfit, match, isometric = 0.0, 1.0, isinstance(candidate.move, Linear)
        for view, a, moved in self._seen(candidate):
            distance = view.distance(moved, isometric=isometric)
            limit = float(view.limit(((moved - a) ** 2).sum(axis=1).mean(), self.tolerance))
            misfit, match = max(misfit, distance / limit), min(match, view.match(distance))
            if misfit > 1:
                return None
        scale = float(np.sqrt(size * self.frame.total))
        threshold = max(MIN_DISPLACEMENT, Z_BROKEN * self.noise / scale)
        return Automorphism(
            candidate.kind, candidate.label, size, misfit, match, scale, threshold, self.frame, candidate.move
        )

    def _seen(self, candidate: Candidate) -> Iterator[tuple[_View, np.ndarray, np.ndarray]]:
        """View, first half and moved first half: in the coordinates the map acts on, then in all of them."""
        if isinstance(candidate.move, ClusterSwap):
            moved_cells = self.u[lengths(candidate.move(self.u) - self.u) > 0]
            half = min(HALF, len(moved_cells) // 2)
            a, b = moved_cells[:half], moved_cells[half : 2 * half]
            yield _View(a, b, self.rng), a, candidate.move(a)
            return
        a = self.u[: self.half]
        moved = candidate.move(a)
        if candidate.view is not None:
            yield self.view(candidate.view), a @ candidate.view.T, moved @ candidate.view.T
        yield self.view(np.eye(self.u.shape[1])), a, moved

    def view(self, axes: np.ndarray, half: int | None = None) -> _View:
        """Both halves along `axes`, shape (r, m); made once."""
        half = min(half or self.half, self.half)
        key = np.append(axes, half).tobytes()
        if key not in self._views:
            points = self.u[: 2 * half] @ axes.T
            self._views[key] = _View(points[:half], points[half:], self.rng)
        return self._views[key]


def _candidates(search: _Search, axes: Axes, seed: int) -> list[Candidate]:
    m, names = search.u.shape[1], search.frame.names
    identity = np.eye(m)
    whole = Candidate("point reflection", f"point reflection of {', '.join(names)}", Linear(-identity))
    flips = [flip(identity, names, i) for i in range(m)]
    if axes == "features":
        swaps = [planar(identity, names, pair, angle, -1) for pair in combinations(range(m), 2) for angle in (45, 135)]
        return [whole, *flips, *swaps]
    independent = independent_axes(search.u, seed)
    labels = tuple(f"IC{i + 1}" for i in range(m))
    found = [whole, *flips, *(flip(independent, labels, i) for i in range(m))]
    for basis, called in ((identity, names), (independent, labels)):
        for pair in combinations(range(m), 2):
            found += [planar(basis, called, pair, angle, det) for angle, det in _scan(search, basis[list(pair)])]
    return found + cluster_swaps(search.u, search.frame.sd, seed)


def _scan(search: _Search, plane: np.ndarray) -> list[tuple[float, int]]:
    """Angles and determinants of rotations and reflections in a plane that a few cells do not rule out.

    Local minima of the energy distance over all angles, and, for continuous families, every 45 degrees.
    """
    view = search.view(plane, SCREEN)
    points = search.u[: min(SCREEN, search.half)] @ plane.T
    kept: list[tuple[float, int]] = []
    for det, step in ((-1, 5), (1, 10)):
        angles = np.arange(0, 180 if det < 0 else 360, step)
        moved = np.stack([points @ turn(float(angle), det).T for angle in angles])
        distance = view.distances(moved)
        moved_by = ((moved - points) ** 2).sum(axis=2).mean(axis=1)
        fits = distance <= view.limit(moved_by, 3 * search.tolerance)
        # A rotation by -t is the inverse of that by t, and a small one is close to no rotation.
        fits &= (angles > 25) & (angles <= 180) if det > 0 else True
        before, after = np.roll(distance, 1), np.roll(distance, -1)
        lowest = (distance <= before) & (distance <= after)
        # The minimum of the parabola through three angles; a family has no minimum to speak of.
        bend = np.maximum(before + after - 2 * distance, 1e-12)
        finer = angles + step * np.clip((before - after) / (2 * bend), -0.5, 0.5)
        kept += [(round(float(angle), 1), det) for angle in finer[fits & lowest]]
        kept += [(float(angle), det) for angle in angles[fits & (angles % 45 == 0) & ((det > 0) | (angles % 90 != 0))]]
    return kept


def _compositions(found: list[Automorphism]) -> list[Candidate]:
    """Compositions of two of the largest: their fixed cells are others than those of either."""
    return [
        Candidate("composition", f"{h.label}, then {g.label}", compose(g.move, h.move))
        for h, g in permutations(found[:6], 2)
        if isinstance(h.move, Linear) == isinstance(g.move, Linear)
    ]


def _distinct(found: list[Automorphism], u: np.ndarray) -> list[Automorphism]:
    """Without those that leave the same cells in place as a simpler or larger one; the simplest come first."""
    u = u[:500]
    kept: list[Automorphism] = []
    profiles: list[np.ndarray] = []
    for h in sorted(found, key=lambda h: (*_order(h.kind, round(h.size, 2)), h.misfit)):
        profile = lengths((h.move(u) - u) * h.frame.sd)
        profile /= max(float(np.linalg.norm(profile)), 1e-12)
        if all(profile @ other < ALIKE for other in profiles):
            kept.append(h)
            profiles.append(profile)
    return kept


def _order(kind: str, size: float) -> tuple[bool, int, float]:
    return size < RELEVANT_SIZE, _SIMPLEST.index(kind), -size


def _noise(points: np.ndarray) -> float:
    """Standard deviation per coordinate of a cell about its state, if its nearest cell were in the same state."""
    nearest = np.asarray(cKDTree(points).query(points, k=2)[0])
    return float(np.median(nearest[:, 1])) / np.sqrt(2 * points.shape[1])


def _split_distances(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unbiased energy distances between random halves of 2n points, shape (N_SPLITS,)."""
    n = len(points) // 2
    distance = cdist(points, points)
    first = rng.permuted(np.tile(np.repeat([1.0, 0.0], n)[:, None], N_SPLITS), axis=0)
    toward = distance @ first
    within_a, cross = (first * toward).sum(axis=0), ((1 - first) * toward).sum(axis=0)
    within_b = distance.sum() - within_a - 2 * cross
    return 2 * cross / n**2 - (within_a + within_b) / (n * (n - 1))


def _shift_curvature(points: np.ndarray, rng: np.random.Generator, length: float = 0.3) -> float:
    """Energy distance of cells to cells shifted by sqrt(v), over v, for small v; mean over directions."""
    plain = cdist(points, points).mean()
    directions = rng.standard_normal((4, points.shape[1]))
    directions *= length / np.linalg.norm(directions, axis=1, keepdims=True)
    shifted = [2 * (cdist(points + step, points).mean() - plain) for step in directions]
    return float(np.mean(shifted)) / length**2


def _mean_distance(points: np.ndarray) -> float:
    """Mean distance between two of `points`."""
    return float(pdist(points).mean())

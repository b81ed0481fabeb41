"""The anatomy of a phantom: a chest of ellipsoids and tubes in Hounsfield units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from boltzformer.errors import InputError

LABELS = {0: "background", 1: "lung nodule", 2: "aorta", 3: "liver"}
DEFAULT_SIZE = (256, 256, 32)
Lengths = Sequence[float] | np.ndarray
_NODULE, _AORTA, _LIVER = 1, 2, 3
_FIELD_OF_VIEW = 360.0  # mm
_HEIGHT = 160.0  # mm
_SMALLEST_AREA = 0.00005  # share of the slice of the smallest nodule's central cut
_LARGEST_AREA = 0.05  # share of the slice of the largest liver's central cut


def make_phantom(
    size: Sequence[int] = DEFAULT_SIZE, seed: int | Sequence[int] = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate one phantom.

    Args:
        size: voxels along right, anterior and superior; at least 32 × 32 × 8.
        seed: the phantom is a function of size and seed.

    Returns:
        image (X, Y, Z) int16 in HU, label (X, Y, Z) uint8 (see `LABELS`), and the (4, 4) affine; axes LPS, as
        a scanner gives them.

    Raises:
        InputError: a size that is too small.
    """
    shape = check_size(size)
    painter = Painter(shape, np.random.default_rng(seed))
    painter.trunk()
    lungs, liver = painter.lungs_and_organs()
    painter.tubes()
    painter.lung_vessels(lungs)
    painter.nodules(lungs, liver)
    image = painter.finish()
    # from RAS, in which the anatomy is drawn, to a scanner's LPS
    affine = np.diag([-painter.spacing[0], -painter.spacing[1], painter.spacing[2], 1.0])
    affine[:3, 3] = painter.spacing * (np.array(shape) - 1) / 2 * [1, 1, -1]
    return image[::-1, ::-1].copy(), painter.label[::-1, ::-1].copy(), affine


def check_size(size: Sequence[int]) -> tuple[int, int, int]:
    """Check the size of a phantom (see `make_phantom`)."""
    shape = tuple(int(n) for n in size)
    if len(shape) != 3 or min(shape[:2]) < 32 or shape[2] < 8:
        raise InputError(f"phantoms: size must be three numbers of at least 32, 32 and 8, found {list(size)}.")
    return shape[0], shape[1], shape[2]


class Painter:
    """Draws one phantom on a RAS grid; lengths in mm, the origin at the centre of the volume."""

    def __init__(self, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
        self.rng = rng
        in_plane = _FIELD_OF_VIEW / max(shape[:2]) * rng.uniform(0.92, 1.08)
        self.spacing = np.round([in_plane, in_plane, _HEIGHT / shape[2] * rng.uniform(0.92, 1.08)], 4)
        self.grid = [
            ((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, self.spacing, strict=True)
        ]
        # lengths of the anatomy scale with the field of view, so that shares of the slice do not depend on
        # the size
        self.width = float(in_plane * np.sqrt(shape[0] * shape[1]))
        self.height = float(self.spacing[2] * shape[2])
        self.image = np.full(shape, -1000.0, dtype=np.float32)
        self.label = np.zeros(shape, dtype=np.uint8)

    def paint(self, distance: np.ndarray, value: float, where: tuple[slice, ...] = (), label: int = 0) -> None:
        """Blend a value in where a signed distance in mm is negative, over an edge one pixel wide."""
        share = np.clip(0.5 - distance / np.float32(self.spacing[0]), 0.0, 1.0)
        part = self.image[where]
        part += share * (np.float32(value) - part)
        self.label[where][distance < 0] = label

    def ellipsoid(self, centre: Lengths, radii: Lengths) -> np.ndarray:
        """Signed distance to an ellipsoid, exact at its surface to first order."""
        terms = [((axis - c) / r) ** 2 for axis, c, r in zip(self.grid, centre, radii, strict=True)]
        level = np.sqrt(terms[0][:, None, None] + terms[1][None, :, None] + terms[2][None, None, :])
        return (level - 1) * np.float32(min(radii[:2]))

    def trunk(self) -> None:
        """Body with a layer of fat, and the spine."""
        w, far = self.width, 100 * self.height
        fit = self.rng.uniform(0.94, 1.0)
        for scale, value in ((1.0, -100.0), (self.rng.uniform(0.88, 0.94), 45.0)):
            self.paint(self.ellipsoid((0, 0, 0), (0.46 * w * fit * scale, 0.37 * w * fit * scale, far)), value)
        for radius, value in ((0.05 * w, 450.0), (0.035 * w, 220.0)):
            self.paint(self.ellipsoid((0, -0.25 * w, 0), (radius, radius, far)), value)

    def lungs_and_organs(self) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
        """Lungs, the labelled liver at the right, and an unlabelled spleen of the same intensity at the left.

        Returns:
            centre and radii of each lung, and of the liver.
        """
        w, h, rng = self.width, self.height, self.rng
        lungs = []
        for side in (1, -1):
            centre = np.array([side * 0.22 * w, 0.02 * w, 0.12 * h]) + rng.uniform(-0.01, 0.01, 3) * w
            radii = np.array([0.145, 0.23, 0.0]) * w * rng.uniform(0.93, 1.03) + [0, 0, 0.5 * h]
            self.paint(self.ellipsoid(centre, radii), -860.0)
            lungs.append((centre, radii))
        intensity = rng.uniform(105, 125)
        # area of the central cut: π a b = share × w²
        share = _LARGEST_AREA * rng.uniform(0.85, 0.99)
        aspect = rng.uniform(1.1, 1.4)
        radius = w * np.sqrt(share / np.pi / aspect)
        centre = np.array([0.2 * w, 0.04 * w, -0.34 * h]) + rng.uniform(-0.02, 0.02, 3) * [w, w, h]
        liver = (centre, np.array([radius * aspect, radius, rng.uniform(0.24, 0.3) * h]))
        self.paint(self.ellipsoid(*liver), intensity, label=_LIVER)
        spleen = np.array([-0.24 * w, -0.06 * w, -0.36 * h]) + rng.uniform(-0.02, 0.02, 3) * [w, w, h]
        self.paint(self.ellipsoid(spleen, (0.07 * w, 0.1 * w, 0.2 * h)), intensity)
        return lungs, liver

    def tubes(self) -> None:
        """The labelled aorta left of the spine, and an unlabelled vena cava, less bright, at its right."""
        w, rng = self.width, self.rng
        z = self.grid[2] / self.height
        for side, value, label in ((-1, rng.uniform(180, 230), _AORTA), (1, rng.uniform(95, 125), 0)):
            phase, turns = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.6, 1.2)
            x = side * 0.055 * w + 0.012 * w * np.sin(2 * np.pi * turns * z + phase[0])
            y = -0.14 * w + 0.012 * w * np.cos(2 * np.pi * turns * z + phase[1])
            radius = w * rng.uniform(0.019, 0.026) * (1 + 0.25 * np.sin(2 * np.pi * z + phase[0]))
            distance = np.hypot(self.grid[0][:, None, None] - x, self.grid[1][None, :, None] - y) - radius
            self.paint(distance.astype(np.float32), value, label=label)

    def lung_vessels(self, lungs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Unlabelled short bright rods in the lungs, thin like the small nodules but long."""
        for number in range(24):
            centre, radii = lungs[number % 2]
            middle = self._inside(centre, radii, 0.15 * self.width)
            angle = self.rng.uniform(0, np.pi)
            half = self.rng.uniform(0.02, 0.05) * self.width * np.array([np.cos(angle), np.sin(angle)])
            thickness = self.rng.uniform(0.9, 1.6) * self.spacing[0]
            where, (x, y, z) = self._box(middle, 0.07 * self.width)
            along = np.clip(((x - middle[0]) * half[0] + (y - middle[1]) * half[1]) / (half @ half), -1, 1)
            distance = np.sqrt(
                (x - middle[0] - along * half[0]) ** 2
                + (y - middle[1] - along * half[1]) ** 2
                + (2 * thickness / self.spacing[2] * (z - middle[2])) ** 2
            )
            self.paint((distance - thickness).astype(np.float32), self.rng.uniform(-50, 60), where)

    def nodules(
        self,
        lungs: list[tuple[np.ndarray, np.ndarray]],
        liver: tuple[np.ndarray, np.ndarray],
        number: int = 8,
    ) -> None:
        """Labelled balls in the lungs, radii spread evenly in their logarithm, up to 4 % of the width."""
        # a disc of under 0.71 pixels may miss every pixel's centre
        smallest = max(self.width * np.sqrt(_SMALLEST_AREA / np.pi), 0.72 * self.spacing[0])
        steps = (np.arange(number) + self.rng.uniform(0, 1, number)) / number
        steps[0] = 0.0
        placed: list[tuple[np.ndarray, float]] = []
        for index, radius in enumerate(smallest * (0.04 * self.width / smallest) ** steps):
            centre = self._free_place(lungs[index % 2], liver, placed, float(radius))
            if centre is None:
                continue
            placed.append((centre, float(radius)))
            where, (x, y, z) = self._box(centre, radius + 2 * self.spacing[0])
            distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) - radius
            self.paint(distance.astype(np.float32), self.rng.uniform(20, 70), where, _NODULE)

    def finish(self) -> np.ndarray:
        """Add texture and noise and round to int16 HU."""
        coarse = ndimage.zoom(self.rng.normal(0, 6, (8, 8, 4)), np.array(self.image.shape) / (8, 8, 4), order=1)
        noise = self.rng.standard_normal(self.image.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, (0.6, 0.6, 0))
        image = self.image + coarse + noise * np.float32(18 / noise.std())
        return np.clip(np.rint(image), -1024, 3071).astype(np.int16)

    def _inside(self, centre: np.ndarray, radii: np.ndarray, margin: float) -> np.ndarray:
        """Draw a point of an ellipsoid at least `margin` (mm, in the plane) from its surface."""
        direction = self.rng.normal(size=3)
        direction *= self.rng.uniform() ** (1 / 3) / np.linalg.norm(direction)
        return centre + direction * radii * max(1 - margin / float(min(radii[:2])), 0.1)

    def _free_place(
        self,
        lung: tuple[np.ndarray, np.ndarray],
        liver: tuple[np.ndarray, np.ndarray],
        placed: list[tuple[np.ndarray, float]],
        radius: float,
    ) -> np.ndarray | None:
        """Find a place in a lung, in the middle of a slice, clear of the liver and earlier nodules."""
        for _ in range(200):
            point = self._inside(*lung, radius + 3 * self.spacing[0])
            # between two slices the smallest would be in none
            point[2] = self.grid[2][np.abs(self.grid[2] - point[2]).argmin()]
            clear = np.linalg.norm((point - liver[0]) / (liver[1] + radius + 4 * self.spacing)) > 1
            if clear and all(np.linalg.norm(point - c) > radius + r + 3 * self.spacing[0] for c, r in placed):
                return point
        return None

    def _box(self, centre: np.ndarray, reach: float) -> tuple[tuple[slice, ...], list[np.ndarray]]:
        """Index range within `reach` (mm) of a point, and the open grid of its coordinates."""
        reaches = (reach, reach, max(reach, float(self.spacing[2])))
        where, axes = [], []
        for axis, middle, r in zip(self.grid, centre, reaches, strict=True):
            first, last = np.searchsorted(axis, [middle - r, middle + r])
            where.append(slice(int(first), int(last)))
            axes.append(axis[first:last])
        return tuple(where), list(np.ix_(*axes))

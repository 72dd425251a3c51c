"""Where a label can stand without hiding anything: rectangles, points and segments in pixels.

Greedy: each label takes the first free place near its point. Left and below come first, because a
falling line leaves that side empty. Labels far away stand straight below their point and begin
there, so that a caller who asks from right to left gets a stair of labels whose leaders cross
nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1

_PAD = 2.0  # pixels kept free around a label
_DISTANCES = (9.0, *(22.0 + 4 * step for step in range(120)))
_NEAR = 60.0  # farther away only straight below: elsewhere a leader runs through the other marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """The lower left corner of a label, and the line to its point where it stands apart."""

    x: float
    y: float
    leader: tuple[Point, Point] | None


@dataclass(slots=True, kw_only=True)
class Placer:
    """Remembers what is taken."""

    frame: Box
    points: Sequence[Point]
    line: Sequence[Point]
    _boxes: list[Box] = field(default_factory=list)
    _leaders: list[tuple[Point, Point]] = field(default_factory=list)

    def place(
        self, anchor: Point, size: Point, *, is_stair: bool = False, reach: float = math.inf
    ) -> Spot | None:
        """The first free place for a label of this size within `reach`, which it then takes.

        In a stair, labels stand straight below their point or nowhere.
        """
        width, height = size
        for distance in itertools.takewhile(lambda distance: distance <= reach, _DISTANCES):
            for x, y in _corners(anchor, width, height, distance, is_stair):
                box = (x - _PAD, y - _PAD, x + width + _PAD, y + height + _PAD)
                leader = _leader(anchor, box) if distance > _DISTANCES[0] else None
                if self._is_free(box, leader):
                    self._boxes.append(box)
                    if leader:
                        self._leaders.append(leader)
                    return Spot(x=x, y=y, leader=leader)
        return None

    def _is_free(self, box: Box, leader: tuple[Point, Point] | None) -> bool:
        x0, y0, x1, y1 = self.frame
        if (
            box[0] < x0 or box[1] < y0 + 24 or box[2] > x1 or box[3] > y1
        ):  # 24: crosses on the lower edge
            return False
        if any(
            box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self._boxes
        ):
            return False
        if any(box[0] - 4 < x < box[2] + 4 and box[1] - 4 < y < box[3] + 4 for x, y in self.points):
            return False
        segments = [*zip(self.line, self.line[1:], strict=False), *self._leaders]
        if any(crosses_box(a, b, box) for a, b in segments):
            return False
        return leader is None or not (
            any(crosses_box(*leader, other) for other in self._boxes)
            or any(cross(*leader, *other) for other in segments)
            or any(corner != leader[0] and _distance(corner, *leader) < 3.5 for corner in self.line)
        )


def _corners(
    anchor: Point, width: float, height: float, distance: float, is_stair: bool
) -> Iterator[Point]:
    """Lower left corners of labels that stand `distance` away from `anchor`, best first."""
    x, y = anchor
    below, slant = y - distance - height, 0.8 * distance
    if distance < _NEAR and not is_stair:
        yield x - slant - width, y - 0.6 * distance - height  # left below
    yield x - 1, below  # straight below
    if distance < _NEAR and not is_stair:
        yield x + slant, y - 0.6 * distance - height  # right below
        yield x - width / 2, below
        yield x + slant, y + 0.6 * distance  # right above


def _leader(anchor: Point, box: Box) -> tuple[Point, Point]:
    """From the point to the nearest place on the label's border."""
    return anchor, (min(max(anchor[0], box[0]), box[2]), min(max(anchor[1], box[1]), box[3]))


def cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    """True when segments a-b and c-d cross."""

    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def _distance(p: Point, a: Point, b: Point) -> float:
    """From a point to a segment."""
    length = math.dist(a, b) ** 2
    t = ((p[0] - a[0]) * (b[0] - a[0]) + (p[1] - a[1]) * (b[1] - a[1])) / length if length else 0.0
    t = min(max(t, 0.0), 1.0)
    return math.dist(p, (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))


def crosses_box(a: Point, b: Point, box: Box) -> bool:
    """True when segment a-b touches `box`."""
    x0, y0, x1, y1 = box
    if any(x0 < x < x1 and y0 < y < y1 for x, y in (a, b)):
        return True
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return any(cross(a, b, corners[i], corners[(i + 1) % 4]) for i in range(4))

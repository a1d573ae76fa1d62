"""The order in which a forward visits the layers: encoder, decoder, skips, and the loop's extra passes."""

from typing import NamedTuple

from golf.model_config import ModelConfig


class Visit(NamedTuple):
    """One execution of one layer."""

    slot: int  # position in the plan
    layer: int  # whose weights
    pass_index: int  # how often this layer was visited before
    pushes: bool  # its output waits for a decoder visit
    skip_row: int | None  # row of the skip weights with which the newest waiting output is merged before the block
    splits: bool = False  # the stream becomes two lanes before anything else


class LayerPlan(NamedTuple):
    """All visits of one forward."""

    visits: tuple[Visit, ...]
    num_encoder: int

    @property
    def encoder(self) -> list[int]:
        """Layers visited before the middle."""
        return [visit.layer for visit in self.visits[: self.num_encoder]]

    @property
    def decoder(self) -> list[int]:
        """Layers visited after the middle."""
        return [visit.layer for visit in self.visits[self.num_encoder :]]


def plan_layers(config: ModelConfig, *, looping: bool) -> LayerPlan:
    """Lay out the visits with the loop on or off. Without a loop both plans are the same."""
    order = _order(config, looping=looping)
    num_encoder = len(order) // 2
    rows = _skip_rows(config, order)
    visits = []
    for slot, layer in enumerate(order):
        pushes = config.skips is not None and slot < num_encoder
        splits = config.lanes is not None and layer == config.lanes.start
        visits.append(Visit(slot, layer, order[:slot].count(layer), pushes, rows.get(slot), splits))
    return LayerPlan(tuple(visits), num_encoder)


def count_skip_rows(config: ModelConfig) -> int:
    """Rows of skip weights that the two plans need together."""
    plans = [plan_layers(config, looping=looping) for looping in (False, True)]
    used = [visit.skip_row for plan in plans for visit in plan.visits if visit.skip_row is not None]
    return max(used, default=-1) + 1


def _order(config: ModelConfig, *, looping: bool) -> list[int]:
    layers = list(range(config.num_layers))
    if config.share:
        return _repeated(layers, config.share.start, config.share.end, config.share.loops)
    if config.loop and looping:
        return _repeated(layers, config.loop.start, config.loop.end, config.loop.extra_passes + 1)
    return layers


def _repeated(layers: list[int], start: int, end: int, times: int) -> list[int]:
    return layers[:start] + times * layers[start : end + 1] + layers[end + 1 :]


def _skip_rows(config: ModelConfig, order: list[int]) -> dict[int, int]:
    """Map a decoder slot to its row; the k-th decoder visit merges the k-th newest encoder output.

    Indexing by position is the reference's: row k is the k-th decoder visit, so rows change their meaning when the
    loop is switched on. Indexing by visit names a row by (layer, passes still to come), which keeps "6 <- 3" the same
    row in both plans.
    """
    if config.skips is None:
        return {}
    merges = _merging_slots(order)
    if config.skips.index == "position":
        return {slot: row for row, slot in enumerate(merges)}
    looped = _order(config, looping=True)
    keys = [_key(looped, slot) for slot in _merging_slots(looped)]
    plain = _order(config, looping=False)
    keys += [key for slot in _merging_slots(plain) if (key := _key(plain, slot)) not in keys]
    return {slot: keys.index(_key(order, slot)) for slot in merges}


def _merging_slots(order: list[int]) -> range:
    half = len(order) // 2
    return range(half, half + min(half, len(order) - half))


def _key(order: list[int], slot: int) -> tuple[int, int]:
    return order[slot], order[slot + 1 :].count(order[slot])

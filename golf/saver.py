"""Checkpoints of a running training: gathered while the clock stands still, written while it goes on."""

import contextlib
import time
from collections.abc import Callable, Iterator

from torch import Tensor

from golf.checkpoint import CheckpointWriter
from golf.checkpoint_manifest import Manifest
from golf.distributed import World
from golf.errors import NumericalFaultError
from golf.log import Log
from golf.replicas import check_replicas
from golf.run_folder import RunFolder, versions
from golf.schedule import Moment, boundaries, shadow_index
from golf.train_state import TrainState


class Clock:
    """Seconds spent training; stands still inside `paused`."""

    def __init__(self, elapsed_seconds: float, *, settle: Callable[[], None] = lambda: None) -> None:
        """Start now; `settle` waits until everything that was queued is done."""
        settle()
        self._settle, self._before, self._since = settle, elapsed_seconds, time.perf_counter()
        self._stands = False

    @property
    def elapsed_seconds(self) -> float:
        """Training seconds so far, those of resumed parts included."""
        return self._before if self._stands else self._before + time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for a while, after the queued steps are done: what they take is training."""
        self._settle()
        self._before, self._stands = self.elapsed_seconds, True
        try:
            yield
        finally:
            self._since, self._stands = time.perf_counter(), False


class Saver:
    """Gathers checkpoints off the clock and hands them to the writers."""

    def __init__(
        self,
        state: TrainState,
        world: World,
        folder: RunFolder,
        clock: Clock,
        log: Log,
        *,
        parents: list[str],
        dataset_digest: str,
    ) -> None:
        """Save into `folder`; `parents` are the digests of the checkpoints that the run continues."""
        self.state, self.world, self.folder, self.clock, self.log = state, world, folder, clock, log
        self.parents, self.dataset_digest = parents, dataset_digest
        self.writer, self.shadow_writer = CheckpointWriter(folder.path), CheckpointWriter(folder.shadows)

    def at_boundaries(self, before: Moment | None, now: Moment, loss: Tensor) -> bool:
        """Save what lies between the last step and this one; say whether there was anything."""
        index = None if before is None else shadow_index(self.state.recipe, before, now)
        if index is not None:
            with self.clock.paused():
                if self.world.is_main:
                    manifest = self._manifest(f"shadow_{index}", before, now, {})
                    self.shadow_writer.submit(manifest, tensors=self.state.averages.shadow_state())
                self.world.barrier()  # nobody trains while rank 0's clock stands
        names = boundaries(self.state.recipe, before, now)
        if names:
            self.save(names, before, now, loss)
        return index is not None or bool(names)

    def save(self, names: list[str], before: Moment | None, now: Moment, loss: Tensor) -> None:
        """Save the whole state under one or more boundary names; NumericalFaultError if the ranks' weights differ."""
        with self.clock.paused():
            if self.state.recipe.compat.clock == "rank0":  # ranks with clocks of their own drift apart by design
                check_replicas(self.state.model.state_dict(), self.world)
            tensors = self.state.tensors()
            mean_loss = loss.clone()
            self.world.mean_(mean_loss)
            if self.world.is_main:
                metrics = {"train_loss": float(mean_loss)} if now.step else {}
                self._submit(names, self._manifest(names[0], before, now, metrics), tensors)
            self.world.barrier()  # nobody trains while rank 0's clock stands

    def finish(self, before: Moment | None, now: Moment, loss: Tensor) -> str:
        """Save final_raw and, if the recipe averages, final_ema or final_swa; return the name of the last, written."""
        if self.world.is_main:
            self.folder.final.unlink(missing_ok=True)  # what it says of an earlier ending is over
        self.save(["final_raw"], before, now, loss)
        use, averages = self.state.recipe.average.use, self.state.averages
        boundary = f"final_{use}"
        if averages.falls_back:
            count, source = averages.swa_count, averages.config.swa_of
            self.log.note(
                f"average.use is swa, but snapshots taken: {count}; the result is its source ({source}) instead"
            )
        if use != "raw" and self.world.is_main:
            with self.clock.paused():  # the training is over; waiting for the disk is none of it
                raw = self.writer.settle()
                assert raw is not None
                self.parents = [raw.data_sha256]
                weights = {f"model/{name}": tensor.cpu() for name, tensor in averages.final().items()}
                self._submit([boundary], self._manifest(boundary, before, now, {}), weights)
        self.close()
        self.world.barrier()
        return boundary

    def close(self) -> None:
        """Wait for everything submitted, and for the loader's thread."""
        self.state.loader.close()
        self.writer.close()
        self.shadow_writer.close()

    def _submit(self, names: list[str], manifest: Manifest, tensors: dict[str, Tensor]) -> None:
        broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if broken:
            raise NumericalFaultError(f"{broken[0]} holds NaN or infinity at step {manifest.step}; nothing was saved")
        self.shadow_writer.settle()  # a resume from here would not make that snapshot again
        self.writer.submit(manifest, tensors=tensors, also=names[1:])
        for name in names:
            self.log.event("boundary", name=name, step=manifest.step, progress=manifest.progress)

    def _manifest(self, boundary: str, before: Moment | None, now: Moment, metrics: dict[str, float]) -> Manifest:
        recipe = self.state.recipe
        return Manifest(
            boundary=boundary,
            step=now.step,
            elapsed_seconds=self.clock.elapsed_seconds,
            progress=now.progress,
            lr_multiplier=now.lr_multiplier,
            looping=(before or now).looping,  # the graph these weights were trained in, not that of the next step
            recipe=recipe.to_dict(),
            recipe_digest=recipe.digest,
            loader=self.state.loader.position(),
            seed=recipe.run.seed,
            world_size=self.world.size,
            averages=self.state.averages.describe(now.step),
            optimizer={"momentum": now.momentum, "late_qat": now.late_qat},
            metrics=metrics,
            parents=self.parents,
            versions=versions(),
            dataset_digest=self.dataset_digest,
        )

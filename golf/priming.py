"""Steps thrown away before the clock starts: they compile the graphs, fill the caches and wake the machine."""

from collections.abc import Mapping

from golf.log import Log
from golf.model.plan import LayerPlan
from golf.schedule import muon_momentum
from golf.train_state import TrainState


def prime(state: TrainState, plans: Mapping[bool, LayerPlan], log: Log, *, keep_muon_momentum: bool) -> None:
    """Take the recipe's priming steps with the loop off, then as many with it on, and put everything back.

    A collective. Afterwards weights, optimizer and loader are bit for bit what they were, and the averages saw nothing.
    With `keep_muon_momentum` Muon goes on with the momentum of the last priming step, as the published runs do by
    accident (their momentum lay outside what they restored).
    """
    recipe, optimizer = state.recipe, state.optimizer
    loops = (False, True) if recipe.model.loop else (False,)
    if recipe.run.priming_steps == 0:
        return
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    saved, position = optimizer.state(), state.loader.position()
    with log.progress(len(loops) * recipe.run.priming_steps, "prime") as bar:
        for looping in loops:
            for step in range(recipe.run.priming_steps):
                state.forward_backward(plans[looping], late_qat=False)
                optimizer.step(lr_multiplier=1.0, momentum=muon_momentum(recipe.optim, step))
                bar.advance()
            _record(state, plans[looping], late_qat=False)
        if recipe.schedule.late_qat_below > 0:
            state.forward_backward(plans[loops[-1]], late_qat=True)  # another graph, wanted in the middle of the run
            _record(state, plans[loops[-1]], late_qat=True)
            state.model.zero_grad()
    if keep_muon_momentum:
        saved |= {name: tensor for name, tensor in optimizer.state().items() if name.endswith("/momentum")}
    state.model.load_state_dict(weights)
    optimizer.load_state(saved)
    state.loader.restore(position)


def _record(state: TrainState, plan: LayerPlan, *, late_qat: bool) -> None:
    """Record, where that is done, what later batches of this plan need."""
    if state.gradient.recorder.records:
        batches = state.loader.next_step()
        state.gradient.record(batches[0], plan, count=len(batches), late_qat=late_qat)
